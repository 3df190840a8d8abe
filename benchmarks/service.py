"""The whole service beside the bare engine: HTTP, a queue with `appendfsync always`, files."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bare import BareEngine, text_of
from benchmarks.machine import spread
from tests.integration.service import Service
from tests.waiting import until

SLOTS = 8
POSITIONS = 512
FRAME_S = 0.08
POLLS_PER_S = 200


def bench_service(model: Path, pack_dir: Path, frames: int, rounds: int) -> dict[str, Any]:
    bare = BareEngine(model, pack_dir, SLOTS, POSITIONS)
    with tempfile.TemporaryDirectory() as root:
        service = _service(Path(root), model, pack_dir)
        try:
            return _measured(service, bare, frames, rounds)
        except BaseException:
            print(service.logs())
            raise
        finally:
            service.stop()
            bare.close()


def _service(root: Path, model: Path, pack_dir: Path) -> Service:
    service = Service(
        root, model=str(model), precision="int8", slots=SLOTS, max_positions=POSITIONS, threads=0,
        lease_s=15.0, renew_s=1.0, tick_s=3.0,
    )  # fmt: skip
    packed = service.settings.data_dir / "packed"
    packed.parent.mkdir(parents=True, exist_ok=True)
    packed.symlink_to(pack_dir.resolve())
    service.start_api()
    service.start_worker()
    until(lambda: bool(service.store.workers()), timeout_s=300, what="the worker is ready")
    return service


def _measured(service: Service, bare: BareEngine, frames: int, rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {}
    waits: list[float] = []
    for number in range(rounds):
        for count in (1, SLOTS):
            times.setdefault(f"bare {count}", []).append(bare.speak(count, frames))
            seconds, queued = _speak(service, count, frames)
            times.setdefault(f"service {count}", []).append(seconds)
            waits += queued
        with _polling(service):
            times.setdefault("polled 8", []).append(_speak(service, SLOTS, frames)[0])
        print(f"round {number + 1} of {rounds} done", flush=True)
    for name, samples in times.items():
        print(f"  {name:10} jobs of {frames} frames: {spread(samples)} s")
    middle = {name: statistics.median(samples) for name, samples in times.items()}
    return {
        "throughput_share_1": round(middle["bare 1"] / middle["service 1"], 3),
        "throughput_share_8": round(middle["bare 8"] / middle["service 8"], 3),
        "polled_share_8": round(middle["service 8"] / middle["polled 8"], 3),
        "aggregate_rtf_8": round(middle["service 8"] / (SLOTS * frames * FRAME_S), 3),
        "queue_wait_s": round(statistics.median(waits), 3),
        "first_byte_s": round(_first_byte(service), 3),
        "submit_ms": _submit_ms(service),
    }


def _speak(service: Service, count: int, frames: int) -> tuple[float, list[float]]:
    """Seconds from the first POST until the last job has ended, and each job's queue wait."""
    began = time.perf_counter()
    jobs = [
        service.client.generate(text_of(i), seed=i, max_audio_seconds=frames * FRAME_S)
        for i in range(count)
    ]
    ended = [service.client.wait(job["id"], timeout_s=600) for job in jobs]
    seconds = time.perf_counter() - began
    assert all(job["status"] == "completed" for job in ended), ended
    return seconds, [job["metrics"]["queue_s"] for job in ended]


@contextmanager
def _polling(service: Service) -> Iterator[None]:
    """Somebody asks for a job's state, 200 times a second."""
    job = service.client.generate("polled", max_audio_seconds=FRAME_S)
    service.client.wait(job["id"], timeout_s=600)
    is_over = threading.Event()

    def poll() -> None:
        while not is_over.wait(1 / POLLS_PER_S):
            service.client.job(job["id"])

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _submit_ms(service: Service, count: int = 300) -> dict[str, float]:
    """While eight jobs are being spoken, how long a POST takes; they are cancelled afterwards."""
    busy = [service.client.generate(text_of(i), max_audio_seconds=20.0) for i in range(SLOTS)]
    for job in busy:
        service.await_frames(job["id"])
    times, jobs = [], []
    for index in range(count):
        began = time.perf_counter()
        jobs.append(service.client.generate(text_of(index), priority="low"))
        times.append((time.perf_counter() - began) * 1e3)
        time.sleep(0.01)
    for job in [*jobs, *busy]:
        service.client.cancel(job["id"])
    cuts = statistics.quantiles(times, n=100)
    return {"p50": round(cuts[49], 2), "p95": round(cuts[94], 2), "p99": round(cuts[98], 2)}


def _first_byte(service: Service) -> float:
    """From the POST of one short job to the first byte of its audio, which is whole by then."""
    began = time.perf_counter()
    job = service.client.generate(text_of(0), max_audio_seconds=1.0)
    service.client.wait(job["id"], timeout_s=600)
    with tempfile.TemporaryDirectory() as folder:
        service.client.download(job["id"], Path(folder) / "a.wav")
        return time.perf_counter() - began
