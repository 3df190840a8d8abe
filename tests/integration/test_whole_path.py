"""Over HTTP, through the queue, to sound: what a client sees."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import httpx2
import numpy as np
import pytest

from client import SpeechApiError
from tests.integration.service import Service
from tests.waiting import until
from worker.engine.checkpoint import load_checkpoint
from worker.engine.engine import Engine, EngineConfig
from worker.engine.sampling import Sampling
from worker.engine.utterance import Utterance
from worker.precision import Served

pytestmark = pytest.mark.integration
SEED_EXAMPLE = {
    "text": "This is a test of the voice generation system.",
    "speaker_id": 1,
    "temperature": 0.7,
    "top_k": 50,
    "device": "auto",
    "style": "default",
}


def http(service: Service) -> httpx2.Client:
    return httpx2.Client(base_url=service.client.base_url, timeout=30)


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)[0]


def test_the_prototypes_example_request_becomes_sound(service: Service, tmp_path: Path) -> None:
    service.start_worker()
    service.start_api()
    service.await_workers(1)
    with http(service) as client:
        accepted = client.post("/api/generate", json=SEED_EXAMPLE)
        assert accepted.status_code == 202
        job = accepted.json()
        assert accepted.headers["Location"] == f"/api/jobs/{job['id']}"
        assert client.get("/readyz").status_code == 200
    done = service.client.wait(job["id"])
    assert done["status"] == "completed"
    assert done["model"] == "csm-tiny"
    path = tmp_path / "out.wav"
    service.client.download(job["id"], path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == done["output"]["sha256"]
    assert len(decoded(path)) / 24_000 == pytest.approx(done["output"]["duration_s"])


@pytest.mark.parametrize("served", [Served("torch", "fp32"), Served("openvino", "int8")])
def test_the_sound_is_what_the_model_says_for_that_text_and_seed(
    service: Service, tiny_path: Path, tmp_path: Path, served: Served
) -> None:
    service.start_worker(precision=served.precision)
    service.start_api()
    service.await_workers(1)
    path = tmp_path / "out.flac"
    service.client.say("Hear me.", path, seed=11, format="flac", max_audio_seconds=1.2)
    config = EngineConfig(
        num_slots=1, max_positions=512, backend=served.backend, precision=served.precision
    )
    engine = Engine(load_checkpoint(tiny_path), config).start()
    speech = engine.submit(Utterance("Hear me.", 1, Sampling(seed=11), max_frames=15)).result(60)
    engine.stop()
    heard = decoded(path) / 32767
    assert len(heard) == len(speech.audio)
    assert np.abs(heard - speech.audio).max() < 1e-3


def test_progress_is_seen_and_cancel_ends_a_running_job(service: Service) -> None:
    service.start_worker()
    service.start_api()
    job = service.client.generate("Long.", max_audio_seconds=24)
    until(lambda: (service.client.job(job["id"])["progress"] or {}).get("percent", 0) > 0)
    told = service.client.job(job["id"])
    assert told["status"] == "in_progress"
    assert 0 < told["progress"]["audio_seconds"] < 24
    assert service.client.cancel(job["id"])["cancel_requested_at"]
    assert service.client.wait(job["id"])["status"] == "cancelled"


def test_fifty_submits_with_one_key_make_one_job(service: Service) -> None:
    service.start_api()
    barrier = threading.Barrier(50)
    answers: list[tuple[int, str, str | None]] = []

    def submit() -> None:
        with http(service) as client:
            barrier.wait()
            answer = client.post(
                "/api/generate", json={"text": "Once."}, headers={"Idempotency-Key": "one"}
            )
        replayed = answer.headers.get("Idempotency-Replayed")
        answers.append((answer.status_code, answer.json()["id"], replayed))

    threads = [threading.Thread(target=submit) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _, _ in answers} == {202}
    assert len({job_id for _, job_id, _ in answers}) == 1
    assert sum(replayed is None for _, _, replayed in answers) == 1
    assert len(service.client.jobs()) == 1


def test_with_redis_away_nothing_is_accepted_and_the_way_out_is_said(service: Service) -> None:
    service.start_api()
    before = service.client.generate("Before.")
    service.valkey.kill()
    with http(service) as client:
        for answer in (
            client.post("/api/generate", json={"text": "Lost?"}),
            client.get(f"/api/jobs/{before['id']}"),
            client.get("/readyz"),
        ):
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.headers["Content-Type"] == "application/problem+json"
        assert client.get("/healthz").status_code == 200
        service.valkey.start()
        until(lambda: client.get(f"/api/jobs/{before['id']}").status_code == 200)
    assert [job["id"] for job in service.client.jobs()] == [before["id"]]


def test_a_job_outlives_a_restart_of_the_api_and_of_redis(service: Service) -> None:
    api = service.start_api()
    job = service.client.generate("Still here.", max_audio_seconds=0.4)
    api.send(9)
    api.wait()
    service.valkey.restart()
    service.start_worker()
    service.start_api()
    assert service.client.wait(job["id"])["status"] == "completed"


def test_a_device_that_no_worker_has_goes_to_the_other_and_says_so(service: Service) -> None:
    service.start_worker()
    service.start_api()
    job = service.client.generate("Where?", device="cuda", max_audio_seconds=0.4)
    done = service.client.wait(job["id"])
    assert done["status"] == "completed"
    assert "no cuda worker was alive" in done["device_fallback"]
    assert done["device"] == "cpu"


def test_two_workers_share_the_jobs(service: Service) -> None:
    service.start_api()
    for _ in range(2):
        service.start_worker(slots=1)
    service.await_workers(2)
    ids = [service.client.generate(f"Job {n}.", max_audio_seconds=2)["id"] for n in range(8)]
    assert {service.client.wait(i)["status"] for i in ids} == {"completed"}
    spoken = [p.text.count("completed:") for p in service.processes if "worker" in p.name]
    assert sum(spoken) == 8
    assert all(spoken)


def test_expired_audio_is_gone_and_said_to_be(
    make_service: Callable[..., Service],
) -> None:
    service = make_service(sweep_s=0.5)
    service.start_worker()
    service.start_api()
    job = service.client.generate("Brief.", max_audio_seconds=0.4, expires_in_s=1)
    service.client.wait(job["id"])
    with http(service) as client:
        until(lambda: client.get(f"/api/jobs/{job['id']}/audio").status_code == 410)
    until(lambda: not list(service.settings.audio_dir.iterdir()))


@pytest.fixture
def small_disk(service: Service) -> Iterator[Callable[[str], None]]:
    """Mounts a file system of a given size where audio goes; called again, it grows."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    options: list[str] = []

    def resize(size: str) -> None:
        remount = ["-o", "remount"] if options else []
        options.append(size)
        place = str(service.settings.audio_dir)
        command = ["mount", "-t", "tmpfs", *remount, "-o", f"size={size}", "tmpfs", place]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            options.pop()
            pytest.skip("may not mount here; tests/worker has a full disk of its own")

    yield resize
    for process in service.processes:
        process.end()
    if options:
        subprocess.run(["umount", str(service.settings.audio_dir)], check=True)


def test_a_full_disk_loses_nothing_and_the_job_completes_when_there_is_room(
    service: Service, small_disk: Callable[[str], None]
) -> None:
    small_disk("64k")
    service.start_worker()
    service.start_api()
    job = service.client.generate("Too much.", max_audio_seconds=4)
    until(lambda: "disk for audio is full" in service.logs())
    assert service.client.job(job["id"])["status"] in ("queued", "in_progress")
    assert not list(service.settings.audio_dir.iterdir())
    small_disk("16m")
    done = service.client.wait(job["id"])
    assert done["status"] == "completed"
    assert done["metrics"]["attempts"] > 1


def test_an_error_of_the_api_reaches_the_client_with_its_code(service: Service) -> None:
    service.start_api()
    with pytest.raises(SpeechApiError) as error:
        service.client.job("job_" + "0" * 32)
    assert (error.value.status, error.value.code) == (404, "job_not_found")
