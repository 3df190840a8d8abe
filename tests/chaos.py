"""Chaos, as a command: many jobs, workers and Redis killed all the time, and a count of what broke.

`python -m tests.chaos --jobs 600 --seed 1` (`make chaos`). The real worker, the real model path
(csm-tiny), a real Valkey with `appendfsync always`. Doorbells are dropped on purpose, some jobs are
cancelled. Exits 1 if a job was lost, ended twice, or points to audio that is not whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from shared.doorbell import Doorbell, make_celery
from shared.errors import StoreUnavailable
from shared.jobs import Job, JobStatus, SpeechRequest
from shared.upkeep import Upkeep
from tests.integration.service import Service

DROPPED_DOORBELLS = 0.02
CANCELLED = 0.03


@dataclass
class Chaos:
    """One run. Every `kill_s` a worker dies; Redis dies `redis_kills` times, evenly spread."""

    service: Service
    num_jobs: int
    num_workers: int
    kill_s: float
    redis_kills: int
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    accepted: list[str] = field(default_factory=list)

    def run(self) -> list[str]:
        """Returns what is wrong; empty when the promise was kept."""
        self.doorbell = Doorbell(make_celery(self.service.settings))
        self.upkeep = Upkeep(self.service.store, self.doorbell, self.service.audio, sweep_s=3600.0)
        self.workers = [self.service.start_worker() for _ in range(self.num_workers)]
        began = next_kill = time.monotonic()
        while not self._is_done():
            self._submit_some()
            if time.monotonic() >= next_kill:
                self._kill_a_worker()
                next_kill = time.monotonic() + self.kill_s
            if self._redis_is_due():
                self.service.valkey.restart()
                self.counts["redis killed"] += 1
            self._tick()
            time.sleep(0.1)
        self.counts["seconds"] = round(time.monotonic() - began)
        return self._faults()

    def _submit_some(self) -> None:
        for _ in range(min(10, self.num_jobs - len(self.accepted))):
            request = SpeechRequest(text=f"Job {len(self.accepted)}.", max_audio_seconds=0.4)
            try:
                submission = self.service.store.submit(request)
            except StoreUnavailable:
                self.counts["submit refused"] += 1
                return
            self.accepted.append(submission.job.id)
            if self.chance.random() < DROPPED_DOORBELLS:
                self.counts["doorbells dropped"] += 1
            else:
                self.doorbell.ring(submission.doorbell)
            self._maybe_cancel(submission.job.id)

    def _maybe_cancel(self, job_id: str) -> None:
        if self.chance.random() < CANCELLED:
            self.service.store.cancel(job_id)
            self.counts["cancels"] += 1

    def _kill_a_worker(self) -> None:
        index = self.chance.randrange(self.num_workers)
        if self.workers[index].is_running:
            self.workers[index].send(signal.SIGKILL)
            self.counts["workers killed"] += 1
        self.workers[index].wait()
        self.workers[index] = self.service.start_worker()

    def _redis_is_due(self) -> bool:
        share = len(self.accepted) / self.num_jobs
        return self.counts["redis killed"] < int(share * (self.redis_kills + 1) - 1e-9)

    def _tick(self) -> None:
        try:
            self.upkeep.tick()
        except StoreUnavailable:
            self.counts["ticks put off"] += 1

    def _is_done(self) -> bool:
        if len(self.accepted) < self.num_jobs:
            return False
        try:
            counts = self.service.store.counts()
        except StoreUnavailable:
            return False
        return sum(counts[s] for s in JobStatus if s.is_terminal) >= self.num_jobs

    def _faults(self) -> list[str]:
        faults = []
        for job_id in self.accepted:
            job = self.service.store.get(job_id)
            self.counts[job.status.value] += 1
            self.counts["spoken again"] += max(0, job.attempts - 1)
            ends = int(str(self.service.store._redis.hget(f"{{echoforge}}:job:{job_id}", "ends")))
            if not job.status.is_terminal:
                faults.append(f"{job_id} lost: {job.status}")
            if ends != 1:
                faults.append(f"{job_id} ended {ends} times")
            if job.status is JobStatus.FAILED:
                faults.append(f"{job_id} failed: {job.error}")
            if job.status is JobStatus.COMPLETED and not self._is_whole(job):
                faults.append(f"{job_id} has bad audio")
        return faults

    def _is_whole(self, job: Job) -> bool:
        assert job.output is not None
        data = self.service.audio.path(job.output.name).read_bytes()
        return hashlib.sha256(data).hexdigest() == job.output.sha256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill-s", type=float, default=3.0, help="a worker dies this often")
    parser.add_argument("--redis-kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as root:
        service = Service(Path(root), max_queued=args.jobs)
        try:
            chaos = Chaos(
                service, args.jobs, args.workers, args.kill_s, args.redis_kills,
                random.Random(args.seed),
            )  # fmt: skip
            faults = chaos.run()
        finally:
            service.stop()
    print(json.dumps({"jobs": args.jobs, **chaos.counts, "faults": len(faults)}))
    for fault in faults[:20]:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
