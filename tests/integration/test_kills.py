"""Whatever is killed, whenever: the job ends once, and its audio is whole."""

from __future__ import annotations

import hashlib
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.jobs import Job, JobStatus, SpeechRequest
from tests.integration.faulty_worker import POINTS
from tests.integration.service import Service
from tests.waiting import until

pytestmark = pytest.mark.integration
SHORT, LONG = 0.8, 24.0  # seconds of audio


def submit(service: Service, seconds: float = SHORT, **fields: object) -> str:
    """Straight into the store: no doorbell is rung, so the workers' tick has to notice."""
    request = SpeechRequest(text="Kill me.", max_audio_seconds=seconds, seed=1, **fields)  # type: ignore[arg-type]
    return service.store.submit(request).job.id


def assert_whole(service: Service, job: Job) -> None:
    assert job.status is JobStatus.COMPLETED, job
    assert job.output is not None
    data = service.audio.path(job.output.name).read_bytes()
    assert len(data) == job.output.bytes
    assert hashlib.sha256(data).hexdigest() == job.output.sha256


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_at_any_point_costs_nothing(service: Service, point: str) -> None:
    job_id = submit(service)
    assert service.start_worker(fault=point).wait() == -signal.SIGKILL
    was_told = point == "after_finish"
    before = service.store.get(job_id)
    assert (before.status is JobStatus.COMPLETED) == was_told
    service.start_worker()
    job = service.await_end(job_id)
    assert_whole(service, job)
    assert job.crashes == (0 if was_told else 1)
    assert job.attempts == (1 if was_told else 2)


def test_a_worker_killed_with_a_full_batch_loses_none_of_it(service: Service) -> None:
    ids = [submit(service) for _ in range(4)]
    service.start_worker(fault="while_speaking").wait()
    service.start_worker()
    jobs = [service.await_end(job_id) for job_id in ids]
    for job in jobs:
        assert_whole(service, job)
    assert len({job.output.sha256 for job in jobs if job.output}) == 1


def test_a_job_that_kills_its_workers_fails_and_its_neighbours_do_not(service: Service) -> None:
    poison = submit(service)
    for _ in range(8):
        if service.store.get(poison).status.is_terminal:
            break
        worker = service.start_worker(fault="while_speaking")
        until(lambda w=worker: not w.is_running or service.store.get(poison).status.is_terminal)
        worker.end()
        until(
            lambda: service.store.get(poison).status is not JobStatus.IN_PROGRESS or _reap(service)
        )
    error = service.store.get(poison).error
    assert error is not None
    assert error.code == "crashed_worker"
    innocent = submit(service)
    service.start_worker()
    assert_whole(service, service.await_end(innocent))


def _reap(service: Service) -> bool:
    service.store.reap()
    return False


@pytest.mark.parametrize(("point", "crashes"), [("engine_breaks", 1), ("device_breaks", 0)])
def test_a_worker_whose_engine_fails_exits_and_its_job_completes_elsewhere(
    service: Service, point: str, crashes: int
) -> None:
    job_id = submit(service, seconds=8)
    worker = service.start_worker(fault=point)
    assert worker.wait() == 70
    assert "the engine failed; exiting" in worker.text
    service.start_worker()
    job = service.await_end(job_id)
    assert_whole(service, job)
    assert (job.attempts, job.crashes) == (2, crashes)


def test_sigterm_while_redis_is_away_ends_the_worker_and_loses_nothing(service: Service) -> None:
    job_id = submit(service, seconds=LONG)
    worker = service.start_worker(drain_s=0.2)
    service.await_frames(job_id)
    service.valkey.kill()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    service.valkey.start()
    service.start_worker()
    assert_whole(service, service.await_end(job_id))


def test_a_second_ctrl_c_ends_the_worker_at_once(service: Service) -> None:
    job_id = submit(service, seconds=LONG)
    worker = service.start_worker(drain_s=60.0)
    service.await_frames(job_id)
    worker.send(signal.SIGINT)
    until(lambda: any(w.state == "draining" for w in service.store.workers()))
    worker.send(signal.SIGINT)
    assert worker.wait() == 130
    service.start_worker()
    assert_whole(service, service.await_end(job_id))


def test_a_damaged_checkpoint_ends_the_worker_with_one_clear_error(
    service: Service, tiny_path: Path
) -> None:
    path = Path(shutil.copytree(tiny_path, service.root / "damaged"))
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    worker = service.start_worker(model=str(path))
    assert worker.wait() == 78
    errors = [line for line in worker.text.splitlines() if "[error" in line]
    assert len(errors) == 1
    assert "half downloaded" in errors[0]
    assert "Traceback" not in worker.text


def test_sigterm_lets_running_jobs_end(service: Service) -> None:
    job_id = submit(service, seconds=8)
    worker = service.start_worker(drain_s=60.0)
    service.await_frames(job_id)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    job = service.store.get(job_id)
    assert_whole(service, job)
    assert service.store.workers() == []


def test_sigterm_gives_back_what_does_not_end_in_time(service: Service) -> None:
    running, waiting = submit(service, seconds=LONG), submit(service)
    worker = service.start_worker(drain_s=0.1, slots=1)
    service.await_frames(running)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    job = service.store.get(running)
    assert (job.status, job.crashes) == (JobStatus.QUEUED, 0)
    assert job.queue_position == 1
    service.start_worker()
    for job_id in (running, waiting):
        assert_whole(service, service.await_end(job_id))


def test_redis_killed_and_restarted_in_mid_job_costs_nothing(service: Service) -> None:
    running, waiting = submit(service, seconds=LONG), submit(service)
    worker = service.start_worker(slots=1)
    service.await_frames(running)
    service.valkey.restart()
    for job_id in (running, waiting):
        job = service.await_end(job_id)
        assert_whole(service, job)
        assert job.attempts == 1
    assert worker.is_running


def test_a_frozen_worker_that_wakes_late_changes_nothing(service: Service) -> None:
    job_id = submit(service, seconds=8)
    frozen = service.start_worker()
    service.await_frames(job_id)
    frozen.send(signal.SIGSTOP)
    service.start_worker()
    job = service.await_end(job_id)
    assert job.attempts == 2
    frozen.send(signal.SIGCONT)
    until(lambda: "no longer ours" in frozen.text or "was given to another" in frozen.text)
    until(lambda: len(service.store.workers()) == 2)
    assert service.store.get(job_id) == job
    assert_whole(service, job)
    until(lambda: len(list(service.settings.audio_dir.iterdir())) == 1)


def test_the_api_gives_back_the_jobs_of_a_dead_worker_too(service: Service) -> None:
    job_id = submit(service, seconds=LONG)
    worker = service.start_worker()
    service.await_frames(job_id)
    worker.send(signal.SIGKILL)
    service.start_api()
    until(lambda: service.store.get(job_id).status is JobStatus.QUEUED)
    assert service.store.get(job_id).crashes == 1


def test_cancel_frees_the_slot_for_the_next_job(service: Service) -> None:
    service.start_worker(slots=1)
    service.await_workers(1)
    long, short = submit(service, seconds=LONG), submit(service)
    service.await_frames(long)
    service.store.cancel(long)
    assert service.await_end(long).status is JobStatus.CANCELLED
    assert_whole(service, service.await_end(short))


def test_a_worker_without_a_model_exits_with_one_clear_line(
    make_service: Callable[..., Service],
) -> None:
    service = make_service()
    worker = service.start_worker(model=str(service.root / "nothing"))
    assert worker.wait() == 78
    lines = worker.text.strip().splitlines()
    assert len(lines) == 1
    assert "cannot load the model" in lines[0]
    assert "known are csm-1b, csm-tiny" in lines[0]
