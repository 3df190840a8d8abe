"""One job from claim to end, with a real engine, a real audio store, and fakeredis."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import av
import fakeredis
import numpy as np
import pytest
import torch

from shared.audio_store import AudioStore
from shared.errors import StoreUnavailable
from shared.jobs import Job, JobStatus, SpeechRequest
from shared.store import Claim, JobStore
from shared.workers import WorkerInfo
from tests.samples import Clock, a_worker
from tests.waiting import until
from worker.engine.engine import Engine
from worker.leases import LeaseKeeper
from worker.speaking import Desk, seed_of

LEASE_S = 15.0


class Bench:
    """A worker's parts on a bench: nothing ticks unless a test says so."""

    def __init__(self, engine: Engine, root: Path) -> None:
        self.clock = Clock()
        server = fakeredis.FakeRedis(decode_responses=True, server=fakeredis.FakeServer())
        self.store = JobStore(server, lease_s=LEASE_S, clock=self.clock, uptime_s=lambda: 1e9)
        self.audio = AudioStore(root)
        self.exits: list[int] = []
        self.leases = LeaseKeeper(
            self.store, engine, self.describe,
            renew_s=1.0, watchdog_s=60.0, exit_process=self.exits.append,
        )  # fmt: skip
        self.desk = Desk(self.store, engine, self.audio, self.leases, worker_id="w1", device="cpu")
        self.leases.beat()

    def describe(self, active: int, is_draining: bool) -> WorkerInfo:
        return a_worker(active=active, state="draining" if is_draining else "ready")

    def submit(self, text: str = "Hello there.", **fields: object) -> str:
        limit = {"max_audio_seconds": 0.4} | fields
        return self.store.submit(SpeechRequest(text=text, **limit)).job.id  # type: ignore[arg-type]

    def answer_aside(self) -> threading.Thread:
        thread = threading.Thread(target=self.desk.answer)
        thread.start()
        until(lambda: bool(self.leases.held))
        return thread

    def job(self, job_id: str) -> Job:
        return self.store.get(job_id)


@pytest.fixture
def bench(start_engine: Callable[..., Engine], tmp_path: Path) -> Bench:
    return Bench(start_engine(), tmp_path / "audio")


def files(bench: Bench) -> list[str]:
    return sorted(p.name for p in bench.audio._root.iterdir())


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_a_job_ends_completed_with_the_audio_its_record_names(bench: Bench, kind: str) -> None:
    job_id = bench.submit(format=kind, seed=7)
    bench.desk.answer()
    job = bench.job(job_id)
    assert job.status is JobStatus.COMPLETED
    assert job.output is not None
    path = bench.audio.path(job.output.name)
    with av.open(str(path)) as container:
        samples = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
        assert container.metadata.get("comment", "").startswith("AI-generated")
    assert samples.shape[1] == 5 * 1920
    assert (job.output.duration_s, job.output.seed, job.output.bytes) == (
        0.4, 7, path.stat().st_size,
    )  # fmt: skip
    assert job.output.finish_reason == "length"
    assert job.model == "csm-tiny"
    assert files(bench) == [job.output.name]


def test_one_doorbell_answers_every_waiting_job(bench: Bench) -> None:
    ids = [bench.submit(f"number {i}") for i in range(3)]
    bench.desk.answer()
    assert {bench.job(i).status for i in ids} == {JobStatus.COMPLETED}


def test_the_same_request_with_a_seed_gives_the_same_file(bench: Bench) -> None:
    outputs = [bench.job(i).output for i in (bench.submit(seed=3), bench.submit(seed=3))]
    assert outputs == [None, None]
    ids = [bench.submit(seed=3), bench.submit(seed=3)]
    bench.desk.answer()
    first, second = (bench.job(i).output for i in ids)
    assert first is not None
    assert second is not None
    assert first.sha256 == second.sha256


def test_without_a_seed_the_jobs_id_is_one_so_that_a_second_try_says_the_same() -> None:
    def a_claim(job_id: str) -> Claim:
        return Claim(job_id, "t", SpeechRequest(text="a"), 1, False, None, 0.0, 1.0)

    assert seed_of(a_claim("job_a")) == seed_of(a_claim("job_a"))
    assert seed_of(a_claim("job_a")) != seed_of(a_claim("job_b"))


def test_progress_is_told_while_a_job_runs(bench: Bench) -> None:
    job_id = bench.submit(max_audio_seconds=24)
    thread = bench.answer_aside()
    until(lambda: bench.leases.held[0].handle.frames_done > 3)
    bench.leases.beat()
    progress = bench.job(job_id).progress
    assert progress is not None
    assert progress.frames > 3
    assert progress.audio_seconds == pytest.approx(progress.frames * 0.08)
    assert 0 < progress.percent < 100
    assert progress.eta_s is not None
    bench.store.cancel(job_id)
    bench.leases.beat()
    thread.join()


def test_cancel_stops_the_utterance_at_the_next_renewal(bench: Bench) -> None:
    job_id = bench.submit(max_audio_seconds=24)
    thread = bench.answer_aside()
    bench.store.cancel(job_id)
    assert bench.job(job_id).status is JobStatus.IN_PROGRESS
    bench.leases.beat()
    thread.join()
    assert bench.job(job_id).status is JobStatus.CANCELLED
    assert files(bench) == []


def test_a_job_given_to_another_worker_is_dropped_without_a_trace(bench: Bench) -> None:
    job_id = bench.submit(max_audio_seconds=24)
    thread = bench.answer_aside()
    bench.clock.advance(LEASE_S + 1)
    bench.store.reap()
    stolen = bench.store.claim("w2", "cpu", "csm-tiny")
    assert stolen is not None
    bench.leases.beat()
    thread.join()
    assert bench.job(job_id).status is JobStatus.IN_PROGRESS
    assert files(bench) == []


def test_a_late_finish_deletes_its_own_audio_and_changes_nothing(bench: Bench) -> None:
    job_id = bench.submit()
    claim = bench.store.claim("w1", "cpu", "csm-tiny")
    assert claim is not None
    bench.clock.advance(LEASE_S + 1)
    bench.store.reap()
    assert bench.store.claim("w2", "cpu", "csm-tiny") is not None
    bench.desk._speak(claim)
    assert bench.job(job_id).status is JobStatus.IN_PROGRESS
    assert files(bench) == []


def test_drain_gives_back_what_is_not_done_in_time_without_counting(bench: Bench) -> None:
    job_id = bench.submit(max_audio_seconds=24)
    thread = bench.answer_aside()
    bench.leases.drain(0.05)
    thread.join()
    job = bench.job(job_id)
    assert job.status is JobStatus.QUEUED
    assert job.crashes == 0
    bench.desk.answer()  # draining: takes nothing
    assert bench.job(job_id).status is JobStatus.QUEUED


def test_drain_lets_a_short_job_end(bench: Bench) -> None:
    job_id = bench.submit(max_audio_seconds=0.8)
    thread = bench.answer_aside()
    bench.leases.drain(30.0)
    thread.join()
    assert bench.job(job_id).status is JobStatus.COMPLETED


def test_text_that_does_not_fit_fails_with_the_budget(bench: Bench) -> None:
    job_id = bench.submit("x" * 600)
    bench.desk.answer()
    error = bench.job(job_id).error
    assert error is not None
    assert (error.code, error.retryable) == ("prompt_too_long", False)
    assert "of 512 rows" in error.message


def test_a_job_past_its_time_limit_fails(bench: Bench) -> None:
    job_id = bench.submit(max_audio_seconds=24, timeout_s=1)
    bench.desk.answer()
    error = bench.job(job_id).error
    assert error is not None
    assert (error.code, error.retryable) == ("deadline_exceeded", True)


def test_an_engine_that_stops_gives_its_jobs_back_uncounted(bench: Bench) -> None:
    job_id = bench.submit(max_audio_seconds=24)
    thread = bench.answer_aside()
    bench.leases.is_draining.set()  # as the watch does, so that no other job is taken
    bench.desk.engine.stop()
    thread.join()
    job = bench.job(job_id)
    assert (job.status, job.crashes) == (JobStatus.QUEUED, 0)


class FullDisk(AudioStore):
    """A disk without room, until some is made."""

    is_full = True

    def _create(self, part: Path) -> BinaryIO:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super()._create(part)


def test_a_full_disk_gives_the_job_back_and_it_completes_when_there_is_room(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.speaking.STORAGE_PAUSE_S", 0.0)
    disk = bench.desk.audio = FullDisk(bench.audio._root)
    job_id = bench.submit()
    claim = bench.store.claim("w1", "cpu", "csm-tiny")
    assert claim is not None
    bench.desk._speak(claim)
    assert bench.job(job_id).status is JobStatus.QUEUED
    assert files(bench) == []
    disk.is_full = False
    bench.desk.answer()
    assert bench.job(job_id).status is JobStatus.COMPLETED


class AbsentRedis:
    """The store's finish, while Redis is away for `calls` calls."""

    def __init__(self, store: JobStore, calls: int) -> None:
        self._finish, self.calls = store.finish, calls

    def __call__(self, *args: object, **kwargs: object) -> bool:
        self.calls -= 1
        if self.calls >= 0:
            raise StoreUnavailable("away")
        return self._finish(*args, **kwargs)  # type: ignore[arg-type]


def test_a_finish_is_told_again_until_redis_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.speaking.FINISH_PAUSE_S", 0.01)
    monkeypatch.setattr(bench.store, "finish", AbsentRedis(bench.store, calls=3))
    job_id = bench.submit()
    bench.desk.answer()
    assert bench.job(job_id).status is JobStatus.COMPLETED


def test_a_surprise_fails_the_job_and_not_the_worker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.desk, "_save", surprise)
    first = bench.submit()
    bench.desk.answer()
    error = bench.job(first).error
    assert error is not None
    assert error.code == "internal"
    monkeypatch.undo()
    second = bench.submit()
    bench.desk.answer()
    assert bench.job(second).status is JobStatus.COMPLETED


def test_a_hung_engine_is_not_renewed_for_and_ends_the_process(bench: Bench) -> None:
    engine = bench.desk.engine
    engine.stop()
    engine.last_tick = time.monotonic() - 61
    bench.leases.beat()
    assert bench.exits == [70]


class BrokenRunner:
    """Stands in for the runner, and fails as a model or as a card would."""

    max_positions = 512

    def __init__(self, error: Exception) -> None:
        self._error = error

    def prepare(self, *_: object) -> None: ...

    def start(self, *_: object) -> None: ...

    def stop(self, *_: object) -> None: ...

    def run(self, *_: object) -> None:
        raise self._error


def test_an_engine_broken_by_a_job_leaves_its_lease_to_run_out_and_counts_a_crash(
    bench: Bench,
) -> None:
    bench.desk.engine.runner = BrokenRunner(IndexError("a code out of range"))  # type: ignore[assignment]
    job_id = bench.submit()
    bench.desk.answer()
    assert bench.job(job_id).status is JobStatus.IN_PROGRESS
    assert bench.store.claim("w2", "cpu", "csm-tiny") is None
    bench.clock.advance(LEASE_S + 1)
    bench.store.reap()
    job = bench.job(job_id)
    assert (job.status, job.crashes) == (JobStatus.QUEUED, 1)


def test_an_engine_broken_by_its_device_gives_the_job_back_but_not_for_ever(bench: Bench) -> None:
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    bench.desk.engine.runner = BrokenRunner(error)  # type: ignore[assignment]
    job_id = bench.submit()
    bench.desk.answer()
    job = bench.job(job_id)
    assert (job.status, job.crashes) == (JobStatus.QUEUED, 0)


def test_a_worker_that_fell_back_to_the_cpu_says_so_in_its_jobs(bench: Bench) -> None:
    bench.desk.fallback = "CUDA failed (no driver); speaking on the CPU instead"
    open_to_any, for_cpu = bench.submit(), bench.submit(device="cpu")
    bench.desk.answer()
    assert bench.job(open_to_any).device_fallback == bench.desk.fallback
    assert bench.job(for_cpu).device_fallback is None


def test_a_claim_that_comes_while_the_worker_drains_is_waited_for(bench: Bench) -> None:
    job_id = bench.submit()
    claim = bench.store.claim("w1", "cpu", "csm-tiny")  # asked for before the drain began
    assert claim is not None
    bench.leases.is_draining.set()
    bench.desk._speak(claim)
    assert bench.job(job_id).status is JobStatus.COMPLETED


def test_a_claim_that_comes_after_the_drain_is_given_back(bench: Bench) -> None:
    job_id = bench.submit(max_audio_seconds=24)
    claim = bench.store.claim("w1", "cpu", "csm-tiny")
    assert claim is not None
    bench.leases.drain(0.0)
    bench.desk._speak(claim)
    job = bench.job(job_id)
    assert (job.status, job.crashes) == (JobStatus.QUEUED, 0)


def test_an_engine_that_is_over_takes_no_job_from_the_queue(bench: Bench) -> None:
    job_id = bench.submit()
    bench.desk.engine.stop()
    bench.desk.answer()
    job = bench.job(job_id)
    assert (job.status, job.attempts) == (JobStatus.QUEUED, 0)


def test_a_job_refused_by_an_engine_that_just_failed_is_not_to_blame(bench: Bench) -> None:
    job_id = bench.submit()
    claim = bench.store.claim("w1", "cpu", "csm-tiny")
    assert claim is not None
    bench.desk.engine.failure = IndexError("another job's doing")
    bench.desk._speak(claim)
    job = bench.job(job_id)
    assert (job.status, job.crashes) == (JobStatus.QUEUED, 0)


def test_a_request_that_a_newer_version_stored_fails_with_the_way_out(bench: Bench) -> None:
    newer, readable = bench.submit(), bench.submit()
    record = f"{{echoforge}}:job:{newer}"
    body = bench.store._redis.hget(record, "request")
    assert isinstance(body, str)
    bench.store._redis.hset(record, "request", body.replace('"wav"', '"vinyl"'))
    bench.desk.answer()
    assert bench.store._redis.hget(record, "status") == "failed"
    assert "update the workers" in str(bench.store._redis.hget(record, "error"))
    assert bench.job(readable).status is JobStatus.COMPLETED


def test_the_job_says_that_its_model_is_untrained(bench: Bench) -> None:
    job_id = bench.submit()
    bench.desk.answer()
    notice = bench.store._redis.hget(f"{{echoforge}}:job:{job_id}", "model_notice")
    assert "noise, not speech" in str(notice)
