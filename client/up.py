"""`echoforge up`: Redis, the API and the workers of one machine, as child processes.

Knows the order of starting and ending, and when all of it is ready; nothing about jobs.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

from client.api_error import SpeechApiError
from client.embedded import DEATH_SIGNAL, EmbeddedRedis
from client.job_display import worker_notices
from client.parts import REDIS_STAGE, api_part, part_environment, require, worker_parts
from client.setup_error import SetupError
from client.speech_client import SpeechClient
from client.stop_signals import StopSignals
from client.supervisor import Part, Supervisor
from shared.settings import Settings

TICK_S = 0.1
ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class UpError(SetupError):
    """Nothing was started."""


class Up:
    """`run` blocks until asked to stop (returns 0) or until a part dies for good (returns 1).

    `given`: the settings named on the command line. The children read the same environment as
    this process, plus these.
    """

    def __init__(self, settings: Settings, num_workers: int, given: Mapping[str, object]) -> None:
        self._settings = settings
        self._num_workers = num_workers
        self._given = dict(given)
        self._write = _LogLines().write
        self._supervisor = Supervisor(self._write)
        self._redis: EmbeddedRedis | None = None

    def run(self) -> int:
        require("api")
        require("worker")
        port = free_port(self._settings.host, self._settings.port)
        url = public_url(self._settings.host, port)
        self._given["port"] = port
        if "redis_url" not in self._settings.model_fields_set:
            self._redis = EmbeddedRedis(self._settings.data_dir / "redis")
        with StopSignals() as signals, SpeechClient(url) as client:
            try:
                self._start(signals)
                self._watch(signals, client)
            finally:
                self._stop(signals)
        if self._supervisor.failure:
            print(f"echoforge: {self._supervisor.failure}", file=sys.stderr)
            return 1
        return 0

    def _start(self, signals: StopSignals) -> None:
        if self._redis is not None:
            self._start_redis(self._redis)
        if signals.is_asked:
            return
        env = part_environment(self._given)
        for part in (api_part(env), *worker_parts(self._settings, self._num_workers, env)):
            self._supervisor.start(part)

    def _start_redis(self, redis: EmbeddedRedis) -> None:
        redis.lock()
        self._given["redis_url"] = redis.url
        self._supervisor.start(
            Part(
                "redis",
                redis.argv,
                stage=REDIS_STAGE,
                pass_fds=redis.pass_fds,
                death_signal=DEATH_SIGNAL,
            )
        )
        redis.await_ready(lambda: self._supervisor.is_running("redis"))

    def _watch(self, signals: StopSignals, client: SpeechClient) -> None:
        is_announced = False
        while not signals.is_asked and self._supervisor.failure is None:
            self._supervisor.tick()
            is_announced = is_announced or self._announce(client)
            time.sleep(TICK_S)

    def _announce(self, client: SpeechClient) -> bool:
        """Prints the one line, once a worker of ours is ready; False until then."""
        try:
            if not client.is_ready():
                return False
            status = own_workers(client.status(), self._supervisor.pids().values())
        except SpeechApiError:  # it was ready a moment ago, and will be again
            return False
        if not status["workers"]:
            return False
        print(ready_line(client.base_url, status, self._num_workers), flush=True)
        for notice in worker_notices(status):
            print(f"note: {notice}", flush=True)
        return True

    def _stop(self, signals: StopSignals) -> None:
        if signals.is_asked and self._supervisor.pids():
            self._write(
                f"ending: waiting up to {self._settings.drain_s:g} s for running jobs; "
                "Ctrl-C again to stop now"
            )
        self._supervisor.stop(lambda: signals.is_hurried)
        if self._redis is not None:
            self._redis.unlock()


class _LogLines:
    """Whole lines to stderr, from many threads; a reader that left is no reason to stop working."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        try:
            with self._lock:
                print(line, file=sys.stderr, flush=True)
        except BrokenPipeError:
            pass


def free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0; UpError when the API could not listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the API will do
            door.bind((host, port))
            return int(door.getsockname()[1])
    except OSError as error:
        raise UpError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port or --host"
        ) from error


def public_url(host: str, port: int) -> str:
    """Where a client on this machine finds the API."""
    reachable = ANY_HOST.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def own_workers(status: Mapping[str, Any], pids: Collection[int]) -> dict[str, Any]:
    """`status` with those workers only that are ready and are processes `pids` of this machine.

    The heartbeat of one that was killed stays in Redis for a while, and another machine may
    serve the same queue.
    """
    here = socket.gethostname()
    workers = [
        worker
        for worker in status.get("workers") or []
        if worker.get("pid") in pids
        and worker.get("host", here) == here
        and worker.get("state", "ready") == "ready"
    ]
    return {**status, "workers": workers}


def ready_line(url: str, status: Mapping[str, Any], num_workers: int) -> str:
    workers = status.get("workers") or []
    num_ready = min(len(workers), num_workers)
    counted = f"{num_workers} worker{'s' if num_workers > 1 else ''}"
    if num_ready < num_workers:
        counted = f"{num_ready} of {counted} so far"
    speaking = dict.fromkeys(f"{w.get('model')} on {w.get('device')}" for w in workers)
    return f"EchoForge is ready: {url} · {counted} · {', '.join(speaking)}"
