"""Any order of transitions, in any number of hands: no job is lost, doubled, or ended twice."""

from __future__ import annotations

from typing import Any

import fakeredis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from shared.jobs import Job, JobFailure, JobStatus, Progress
from shared.keys import JOB_PREFIX
from shared.store import Claim, JobStore, LeaseState
from tests.samples import Clock, a_request, a_worker, an_output

WORKERS = st.sampled_from(["w1", "w2", "w3"])
DEVICES = {"w1": "cpu", "w2": "cpu", "w3": "cuda:0"}
ENDS: dict[str, Any] = {
    "output": None,
    "error": JobFailure(code="x", message="x"),
    "cancelled": True,
}


class JobMachine(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.redis = fakeredis.FakeRedis(decode_responses=True)
        self.store = JobStore(self.redis, clock=self.clock, uptime_s=lambda: 1e9)
        self.expected: set[str] = set()
        self.ended: dict[str, Job] = {}

    @rule(
        target=jobs,
        device=st.sampled_from(["auto", "cuda", "cpu"]),
        priority=st.sampled_from(["high", "normal", "low"]),
    )
    def submit(self, device: str, priority: str) -> str:
        job = self.store.submit(a_request(device=device, priority=priority)).job
        self.expected.add(job.id)
        return job.id

    @rule(target=leases, worker=WORKERS)
    def claim(self, worker: str) -> Any:
        lease = self.store.claim(worker, DEVICES[worker], "csm-tiny")
        return multiple() if lease is None else lease

    @rule(worker=WORKERS)
    def heartbeat(self, worker: str) -> None:
        self.store.heartbeat(a_worker(worker, DEVICES[worker]))

    @rule(lease=leases)
    def renew(self, lease: Claim) -> None:
        held = self._holds(lease)
        state = self.store.renew([(lease, Progress())])[0]
        assert (state is not LeaseState.LOST) == held

    @rule(lease=leases, end=st.sampled_from(sorted(ENDS)))
    def finish(self, lease: Claim, end: str) -> None:
        held = self._holds(lease)
        before = self._record(lease.job_id)
        value = an_output(lease) if end == "output" else ENDS[end]
        done = self.store.finish(lease, **{end: value})
        if not held:
            assert self._record(lease.job_id) == before
            assert done == (before.get("ended_by") == lease.token and _status(end, before))
        else:
            assert done

    @rule(lease=leases, end=st.sampled_from(sorted(ENDS)))
    def finish_with_a_foreign_token(self, lease: Claim, end: str) -> None:
        foreign = Claim(**{**vars(lease), "token": "f" * 32})
        before = self._record(lease.job_id)
        value = an_output(lease) if end == "output" else ENDS[end]
        assert not self.store.finish(foreign, **{end: value})
        assert self._record(lease.job_id) == before

    @rule(lease=leases, transient=st.booleans())
    def release(self, lease: Claim, transient: bool) -> None:
        held = self._holds(lease)
        assert self.store.release(lease, transient=transient) == held

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        self.store.cancel(job_id)

    @rule(job_id=consumes(jobs))
    def erase(self, job_id: str) -> None:
        self.store.erase(job_id)
        self.expected.discard(job_id)
        self.ended.pop(job_id, None)

    @rule(seconds=st.sampled_from([1, 5, 16, 700]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def reap(self) -> None:
        self.store.reap()

    @rule(target=leases, worker=WORKERS)
    def die_with_a_job(self, worker: str) -> Any:
        lease = self.store.claim(worker, DEVICES[worker], "csm-tiny")
        self.clock.advance(16)
        self.store.reap()
        return multiple() if lease is None else lease

    @invariant()
    def every_job_is_in_exactly_one_place(self) -> None:
        places = [job_id for place in self._places() for job_id in place]
        assert sorted(places) == sorted(self.expected)
        assert {job.id for job in self.store.list(limit=10_000)[0]} == self.expected

    @invariant()
    def a_job_is_where_its_status_says(self) -> None:
        waiting, running, terminal = self._places()
        for job_id in self.expected:
            status = self.store.get(job_id).status
            assert (job_id in waiting) == (status is JobStatus.QUEUED)
            assert (job_id in running) == (status is JobStatus.IN_PROGRESS)
            assert (job_id in terminal) == status.is_terminal
            assert self.redis.zscore(f"{JOB_PREFIX}status:{status}", job_id) is not None

    @invariant()
    def an_end_is_written_once_and_stays(self) -> None:
        for job_id in self.expected:
            job = self.store.get(job_id)
            if job.status.is_terminal:
                assert self.ended.setdefault(job_id, job) == job
                assert self._record(job_id)["ends"] == "1"

    @invariant()
    def only_running_jobs_have_a_holder(self) -> None:
        held = {w: set(self.redis.smembers(f"{JOB_PREFIX}worker:{w}:jobs")) for w in DEVICES}
        running = self._places()[1]
        assert sum(map(len, held.values())) == len(running)
        for job_id in self.expected:
            record = self._record(job_id)
            assert ("token" in record) == (job_id in running)
            assert job_id not in running or job_id in held[record["worker"]]

    @invariant()
    def a_suspect_is_spoken_alone(self) -> None:
        for worker in DEVICES:
            mine = self.redis.smembers(f"{JOB_PREFIX}worker:{worker}:jobs")
            if any(self._record(job_id)["alone"] == "1" for job_id in mine):
                assert len(mine) == 1

    def _places(self) -> tuple[list[str], list[str], list[str]]:
        waiting = [
            job_id
            for place in ("queued", "quarantine")
            for device in ("auto", "cuda", "cpu")
            for job_id in self.redis.zrange(f"{JOB_PREFIX}{place}:{device}", 0, -1)
        ]
        running = self.redis.zrange(f"{JOB_PREFIX}running", 0, -1)
        return waiting, running, self.redis.zrange(f"{JOB_PREFIX}terminal", 0, -1)

    def _record(self, job_id: str) -> dict[str, str]:
        return self.redis.hgetall(f"{JOB_PREFIX}job:{job_id}")

    def _holds(self, lease: Claim) -> bool:
        return self._record(lease.job_id).get("token") == lease.token


def _status(end: str, record: dict[str, str]) -> bool:
    names = {"output": "completed", "error": "failed", "cancelled": "cancelled"}
    return record["status"] == names[end]


TestJobMachine = JobMachine.TestCase
TestJobMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
