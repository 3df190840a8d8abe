"""A whole service for tests: a real Valkey, real worker processes, a real HTTP server.

Leases are short, so that a death is noticed in seconds. Knows how the parts are started and ended.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from client import SpeechApiError, SpeechClient
from shared.audio_store import AudioStore
from shared.jobs import Job
from shared.settings import Settings
from shared.store import JobStore
from tests.valkey import Valkey
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "lease_s": 2.0,
    "renew_s": 0.2,
    "tick_s": 0.3,
    "slots": 4,
    "max_positions": 512,
    "model": "csm-tiny",
    "precision": "fp32",  # PyTorch: a worker is ready in two seconds; no graphs are compiled
    "device": "cpu",
    "threads": 1,
}


class Process:
    """A child whose output goes to a file that a failing test shows."""

    def __init__(self, name: str, arguments: list[str], settings: Settings, log: Path) -> None:
        values = settings.model_dump(mode="json")
        env = os.environ | {f"ECHOFORGE_{k.upper()}": str(v) for k, v in values.items()}
        self.name, self.log = name, log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments], cwd=ROOT, env=env, stdout=out, stderr=out
            )

    def send(self, signal_number: int) -> None:
        self._process.send_signal(signal_number)

    def wait(self, timeout_s: float = 60.0) -> int:
        return self._process.wait(timeout_s)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        if self.is_running:
            self._process.kill()
        self._process.wait()


class Service:
    def __init__(self, root: Path, **changes: object) -> None:
        self.root = root
        (root / "valkey").mkdir()
        self.valkey = Valkey(root / "valkey")
        self.valkey.start()
        values = QUICK | changes
        self.settings = Settings(
            redis_url=self.valkey.url,
            data_dir=root / "data",
            port=_free_port(),
            **values,  # type: ignore[arg-type]
        )
        self.store = JobStore.connect(self.settings)
        self.audio = AudioStore(self.settings.audio_dir)
        self.client = SpeechClient(f"http://127.0.0.1:{self.settings.port}")
        self.processes: list[Process] = []

    def start_api(self) -> Process:
        api = self._start("api", ["api"], self.settings)
        until(lambda: self._is_up(api), what="the API answers")
        return api

    def start_worker(self, fault: str | None = None, **changes: object) -> Process:
        """With a `fault`, the worker kills itself at that point; see faulty_worker.py."""
        settings = self.settings.model_copy(update=changes)
        arguments = ["tests.integration.faulty_worker", fault] if fault else ["worker"]
        return self._start(f"worker{len(self.processes)}", arguments, settings)

    def await_workers(self, count: int) -> None:
        until(lambda: len(self.store.workers()) >= count, what=f"{count} workers alive")

    def await_end(self, job_id: str) -> Job:
        until(lambda: self.store.get(job_id).status.is_terminal, what=f"{job_id} ends")
        return self.store.get(job_id)

    def await_frames(self, job_id: str, frames: int = 1) -> None:
        def is_spoken() -> bool:
            progress = self.store.get(job_id).progress
            return progress is not None and progress.frames >= frames

        until(is_spoken, what=f"{job_id} has {frames} frames")

    def stop(self) -> None:
        for process in self.processes:
            process.end()
        self.client.close()
        self.store.close()
        self.valkey.kill()

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.text}" for p in self.processes)

    def _start(self, name: str, arguments: list[str], settings: Settings) -> Process:
        process = Process(name, arguments, settings, self.root / f"{name}.log")
        self.processes.append(process)
        return process

    def _is_up(self, api: Process) -> bool:
        assert api.is_running, api.text
        try:
            self.client.status()
        except SpeechApiError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])
