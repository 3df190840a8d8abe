"""JobStore: the only owner of job keys. Every transition is one script in `scripts/`, run whole.

Knows records, leases and places; knows nothing about Celery's protocol, HTTP or audio. Time is
Redis's clock. A call whose reply was lost is made once more: ids and tokens are made here, before
it, so that repeating it changes nothing.
"""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, cast

import redis
from pydantic import ValidationError

from shared.errors import IdempotencyConflict, InvalidInput, JobNotFound, QueueFull
from shared.jobs import Job, JobFailure, JobStatus, Output, Progress, SpeechRequest, new_job_id
from shared.keys import DEVICES, JOB_PREFIX, celery_list, device_class, doorbell_queue
from shared.record import job_of, stored_request
from shared.redis_link import open_redis, redis_call
from shared.settings import Settings
from shared.workers import WorkerInfo

MAX_ERRORS = 5  # transient errors of one job before it is told to the client
REAP_LIMIT = 200  # jobs touched by one reap, so that Redis is never held for long

CRASHED = JobFailure(
    code="crashed_worker",
    message="Three workers died while they spoke this job alone; change the text or the limits.",
)
UNREADABLE = JobFailure(
    code="unreadable_request",
    message="A newer version stored this job; update the workers, and submit it again.",
)
TOO_LATE = JobFailure(
    code="deadline_exceeded",
    message="The job did not end within `timeout_s`; submit it again, or allow more time.",
    retryable=True,
)
TOO_MANY_ERRORS = JobFailure(
    code="transient_errors",
    message=f"The workers failed {MAX_ERRORS} times, each time for want of resources; try later.",
    retryable=True,
)


@dataclass(frozen=True)
class Claim:
    """A worker's lease on a job. The token fences: whoever holds another one is refused."""

    job_id: str
    token: str
    request: SpeechRequest
    attempt: int
    alone: bool
    device_fallback: str | None
    created_at: float
    deadline_s: float  # seconds left of the request's timeout_s


class LeaseState(IntEnum):
    LOST = 0
    HELD = 1
    CANCEL = 2


@dataclass(frozen=True)
class Submission:
    job: Job
    replayed: bool
    doorbell: str  # the queue to ring


@dataclass(frozen=True)
class Reaped:
    """What one `reap` did, for the log."""

    requeued: int = 0
    quarantined: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    removed: int = 0


class JobStore:
    """Safe to share between threads; `redis` must decode its responses."""

    def __init__(
        self,
        redis: redis.Redis,
        *,
        lease_s: float = 15,
        max_queued: int = 1000,
        clock: Callable[[], float] | None = None,
        uptime_s: Callable[[], float] | None = None,
    ) -> None:
        self._redis = redis
        self._lease_s = lease_s
        self._max_queued = max_queued
        self._clock = clock
        self._uptime_s = uptime_s or self._server_uptime_s
        self._scripts = {name: redis.register_script(text) for name, text in _SCRIPTS.items()}

    @classmethod
    def connect(cls, settings: Settings) -> JobStore:
        """Opens nothing yet: the first call finds out whether Redis is there."""
        client = open_redis(settings.redis_url)
        return cls(client, lease_s=settings.lease_s, max_queued=settings.max_queued)

    def close(self) -> None:
        """Lets go of the connections; the next call opens one again."""
        self._redis.close()

    @redis_call
    def ping(self) -> None:
        self._redis.ping()

    # A client's verbs

    def submit(
        self,
        request: SpeechRequest,
        *,
        job_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Submission:
        """The commit point. Raises QueueFull, IdempotencyConflict or StoreUnavailable."""
        verdict, *told = self._submit(job_id or new_job_id(), request, idempotency_key)
        if verdict == "full":
            raise QueueFull("The queue is full; try again later.", _retry_after_s(told[0]))
        if verdict == "conflict":
            raise IdempotencyConflict(
                "This Idempotency-Key came with another request before; use a new key."
            )
        doorbell, view = told
        return Submission(job_of(view), verdict == "replayed", doorbell_queue(doorbell))

    def get(self, job_id: str) -> Job:
        return _only(self._look([job_id]), job_id)

    def list(
        self, *, status: JobStatus | None = None, limit: int = 20, after: str | None = None
    ) -> tuple[Sequence[Job], str | None]:
        """Newest first, and the cursor of the next page, if there is one."""
        ids, cursor = self._page(f"status:{status}" if status else "jobs", limit, _cursor(after))
        return self._look(ids), cursor

    def cancel(self, job_id: str) -> Job:
        """Waiting: cancelled now. Running: noted, and told to its worker. Ended: unchanged."""
        view = self._cancel(job_id)
        return _only([job_of(view)] if view else [], job_id)

    def erase(self, job_id: str) -> str | None:
        """Cancels, and removes every trace. Returns the name of the audio to delete, if any."""
        name = self._erase(job_id)
        if name is None:
            raise _not_found(job_id)
        return name or None

    # A worker's verbs

    def claim(
        self, worker_id: str, device: str, model: str, *, fallback: str = "", notice: str = ""
    ) -> Claim | None:
        """The best waiting job this worker may speak, or None.

        `fallback`: why the worker is not on the device it wanted, told to who left it open.
        `notice`: what must be said about the model.
        """
        token = uuid.uuid4().hex
        told = self._claim(worker_id, device, model, token, fallback, notice)
        if told is None:
            return None
        job_id, body, attempt, alone, device_fallback, created_at, deadline_s = told
        request = self._readable(job_id, token, body)
        if request is None:
            return self.claim(worker_id, device, model, fallback=fallback, notice=notice)
        return Claim(
            job_id=job_id,
            token=token,
            request=request,
            attempt=int(attempt),
            alone=alone == "1",
            device_fallback=device_fallback or None,
            created_at=float(created_at),
            deadline_s=float(deadline_s),
        )

    @redis_call
    def renew(self, leases: Sequence[tuple[Claim, Progress]]) -> Sequence[LeaseState]:
        """One call for the whole batch; the answers are in the order of the leases."""
        if not leases:
            return []
        told = [(c.job_id, c.token, progress.model_dump_json()) for c, progress in leases]
        states = self._run("renew", self._lease_s, *(part for lease in told for part in lease))
        return [LeaseState(int(state)) for state in states]

    def finish(
        self,
        claim: Claim,
        *,
        output: Output | None = None,
        error: JobFailure | None = None,
        cancelled: bool = False,
        generate_s: float | None = None,
        ttfa_s: float | None = None,
    ) -> bool:
        """Ends the job, with exactly one of `output`, `error` and `cancelled`.

        True also when this very finish is repeated; False when the claim is no longer the job's.
        """
        assert [output is not None, error is not None, cancelled].count(True) == 1
        return self._finish(
            claim.job_id, claim.token, output=output, error=error, times=(generate_s, ttfa_s)
        )

    @redis_call
    def release(self, claim: Claim, *, transient: bool = False) -> bool:
        """Gives the job back to its old place; no crash is counted.

        `transient`: it failed for want of resources. That is counted, and fails it in the end.
        """
        failure = TOO_MANY_ERRORS.model_dump_json()
        told = (claim.job_id, claim.token, int(transient), MAX_ERRORS, failure)
        return bool(self._run("release", *told))

    @redis_call
    def heartbeat(self, worker: WorkerInfo) -> None:
        kind = device_class(worker.device)
        info = worker.model_dump_json()
        self._run("heartbeat", worker.id, kind, info, worker.slots, self._lease_s)

    @redis_call
    def leave(self, worker_id: str) -> None:
        """The worker goes in order: it stops counting as alive at once."""
        self._run("leave", worker_id)

    @redis_call
    def workers(self) -> Sequence[WorkerInfo]:
        """Those alive: heard of within one lease."""
        return [WorkerInfo.model_validate_json(info) for info in self._run("workers")]

    # Upkeep; any process may run it at any time

    @redis_call
    def reap(self) -> Reaped:
        """Gives back the jobs of silent workers, expires what waited too long, removes old records.

        After a restart of Redis no lease is taken for one lease: the workers could not renew.
        """
        reap_leases = self._uptime_s() >= self._lease_s
        failures = (CRASHED.model_dump_json(), TOO_LATE.model_dump_json())
        return Reaped(*map(int, self._run("reap", int(reap_leases), REAP_LIMIT, *failures)))

    @redis_call
    def backlog(self) -> dict[str, int]:
        """Doorbell queue -> waiting jobs without a waiting message."""
        queues = [doorbell_queue(device) for device in DEVICES]
        waiting = [int(jobs) for jobs in self._run("waiting")]
        messages = [self._redis.llen(celery_list(queue)) for queue in queues]
        return {q: max(0, n - m) for q, n, m in zip(queues, waiting, messages, strict=True)}

    @redis_call
    def counts(self) -> dict[JobStatus, int]:
        """How many records there are of each status."""
        return {status: self._cardinality(f"status:{status}") for status in JobStatus}

    @redis_call
    def expired_audio(self, limit: int = 100) -> Sequence[tuple[str, str]]:
        """(job id, file name) of audio past its time. Delete the file, then `forget_audio`."""
        flat = self._run("expired_audio", limit)
        return list(zip(flat[::2], flat[1::2], strict=True))

    @redis_call
    def forget_audio(self, job_id: str) -> None:
        """The file is gone: the record says so, and is itself removed a day later."""
        self._run("forget_audio", job_id)

    @redis_call
    def names_audio(self, name: str) -> bool:
        """Whether some record points to this file."""
        job_id = name.partition(".")[0]
        return self._redis.hget(f"{JOB_PREFIX}job:{job_id}", "audio") == name

    # One Redis call each, so that each can be repeated

    @redis_call
    def _submit(self, job_id: str, request: SpeechRequest, key: str | None) -> Sequence[Any]:
        body = request.model_dump_json()
        told = self._run(
            "submit",
            job_id,
            body,
            request.device,
            ("high", "normal", "low").index(request.priority),
            request.start_timeout_s,
            request.timeout_s,
            request.expires_in_s,
            self._max_queued,
            _sha256(key) if key else "",
            _sha256(body),
        )
        return cast("Sequence[Any]", told)

    @redis_call
    def _look(self, ids: Sequence[str]) -> Sequence[Job]:
        return [job_of(view) for view in self._run("look", *ids)]

    @redis_call
    def _page(self, index: str, limit: int, below: str) -> tuple[Sequence[str], str | None]:
        rows = cast(
            "list[tuple[str, float]]",
            self._redis.zrevrangebyscore(
                f"{JOB_PREFIX}{index}", below, "-inf", start=0, num=limit + 1, withscores=True
            ),
        )
        more = len(rows) > limit
        return [row[0] for row in rows[:limit]], f"{rows[limit - 1][1]:.0f}" if more else None

    @redis_call
    def _cancel(self, job_id: str) -> Sequence[object] | None:
        return cast("Sequence[object] | None", self._run("cancel", job_id))

    @redis_call
    def _erase(self, job_id: str) -> str | None:
        return cast("str | None", self._run("erase", job_id))

    @redis_call
    def _claim(self, worker_id: str, device: str, *rest: str) -> Sequence[str] | None:
        model, token, fallback, notice = rest
        who = (worker_id, device, device_class(device), model, token)
        too_late = TOO_LATE.model_dump_json()
        told = self._run("claim", *who, self._lease_s, too_late, fallback, notice)
        return cast("Sequence[str] | None", told)

    def _readable(self, job_id: str, token: str, body: str) -> SpeechRequest | None:
        """None, and the job is failed, when a newer process stored what this one cannot read."""
        try:
            return stored_request(body)
        except ValidationError:
            self._finish(job_id, token, error=UNREADABLE)
            return None

    @redis_call
    def _finish(
        self,
        job_id: str,
        token: str,
        *,
        output: Output | None = None,
        error: JobFailure | None = None,
        times: tuple[float | None, float | None] = (None, None),
    ) -> bool:
        """Neither output nor error: cancelled."""
        ended = JobStatus.FAILED if error else JobStatus.CANCELLED
        done = self._run(
            "finish",
            job_id,
            token,
            JobStatus.COMPLETED.value if output else ended.value,
            output.model_dump_json() if output else "",
            output.name if output else "",
            error.model_dump_json() if error else "",
            *("" if seconds is None else seconds for seconds in times),
        )
        return bool(done)

    def _run(self, script: str, *args: str | float) -> Any:
        clock = f"{self._clock():.6f}" if self._clock else ""
        return self._scripts[script](keys=[JOB_PREFIX], args=[clock, *args])

    def _cardinality(self, index: str) -> int:
        return self._redis.zcard(f"{JOB_PREFIX}{index}")

    def _server_uptime_s(self) -> float:
        return float(self._redis.info("server")["uptime_in_seconds"])


def _load_scripts() -> dict[str, str]:
    folder = Path(__file__).parent / "scripts"
    words = (folder / "_words.lua").read_text()
    return {
        path.stem: words + path.read_text()
        for path in folder.glob("*.lua")
        if not path.name.startswith("_")
    }


_SCRIPTS = _load_scripts()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _retry_after_s(seconds_per_job: str) -> int:
    """About when the next place is free; 5 seconds while nothing is known."""
    return min(300, max(1, math.ceil(float(seconds_per_job)) or 5))


def _cursor(after: str | None) -> str:
    if after is None:
        return "+inf"
    if not re.fullmatch(r"[0-9]{1,15}", after):
        raise InvalidInput("`after` is not a cursor; send the `next` of the page before.")
    return f"({after}"


def _only(jobs: Sequence[Job], job_id: str) -> Job:
    if not jobs:
        raise _not_found(job_id)
    return jobs[0]


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id}; it may have been erased, or be past its time.")
