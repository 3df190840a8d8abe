"""`echoforge up` as a real process, with a fake api and a fake worker that really run.

The command finds the fakes because PYTHONPATH names their directory first.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.up import UpError, free_port, own_workers, public_url, ready_line
from tests.client.fake_api import NOTICE
from tests.client.waiting import is_gone, until

ROOT = Path(__file__).parents[2]
API = """
import os, signal, sys, time
import redis
from tests.client.fake_api import FakeApi, answer, served
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("api bye")))
url = os.environ["ECHOFORGE_REDIS_URL"].replace("redis+socket://", "unix://")
redis.Redis.from_url(url).ping()
class Api(FakeApi):
    def _status(self, asked, parts):  # every worker that ever said it is there
        found = [int(pid) for pid in redis.Redis.from_url(url).lrange("pids", 0, -1)]
        workers = [{**self.workers[0], "pid": pid} for pid in found]
        return answer(200, {"workers": workers})
with served(Api(), int(os.environ["ECHOFORGE_PORT"])):
    time.sleep(600)
"""
WORKER = """
import os, signal, sys, time
import redis
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("worker bye")))
names = ("MODEL", "DEVICE", "SLOTS", "THREADS", "DATA_DIR")
print("told", *(os.environ.get("ECHOFORGE_" + name) for name in names), os.getpid())
url = os.environ["ECHOFORGE_REDIS_URL"].replace("redis+socket://", "unix://")
redis.Redis.from_url(url).rpush("pids", os.getpid())
time.sleep(600)
"""

STUBBORN = """
import signal, time
signal.signal(15, lambda *_: print("draining"))
print("told")
while True:
    time.sleep(1)
"""


class Running:
    """The command, its lines as they come, and its end."""

    def __init__(self, directory: Path, *options: str) -> None:
        argv = [sys.executable, "-m", "client.cli", "up", "--data", str(directory / "data")]
        env = {k: v for k, v in os.environ.items() if not k.startswith("ECHOFORGE_")}
        self.process = subprocess.Popen(
            [*argv, *options],
            cwd=directory,
            env={**env, "PYTHONPATH": f"{directory}{os.pathsep}{ROOT}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def line(self, words: str) -> str:
        deadline = time.monotonic() + 20
        while (found := self._find(words)) is None and self._reader.is_alive():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            time.sleep(0.02)
        assert found is not None, "\n".join(self.lines)
        return found

    def _find(self, words: str) -> str | None:
        return next((line for line in list(self.lines) if words in line), None)

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=20)
        self._reader.join()
        self.process.stdout.close()
        return code


@pytest.fixture
def up(tmp_path):
    for name, code in (("api", API), ("worker", WORKER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "__main__.py").write_text(code)

    @contextmanager
    def run(*options: str):
        running = Running(tmp_path, *options)
        try:
            yield running
        finally:
            running.process.kill()
            running.end()

    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_it_says_once_that_it_is_ready_and_ends_cleanly(up, number):
    with up("--port", "0") as running:
        ready = running.line("ready")
        assert ready.startswith("EchoForge is ready: http://127.0.0.1:")
        assert ready.endswith("· 1 worker · csm-tiny on cpu")
        running.line(f"note: {NOTICE}")
        assert running.end(number) == 0
        byes = [line for line in running.lines if line.endswith(" bye")]
        assert byes == ["worker1 | worker bye", "api     | api bye"]
        assert "Traceback" not in "\n".join(running.lines)


def test_its_options_reach_every_part(up, tmp_path):
    options = ("--model", "csm-tiny", "--device", "cpu", "--slots", "2", "--workers", "2")
    with up("--port", "0", *options) as running:
        share = max(1, (os.cpu_count() or 1) // 2)
        for name in ("worker1", "worker2"):
            told = running.line(f"{name} | told")
            assert f"told csm-tiny cpu 2 {share} {tmp_path / 'data'} " in told
        assert running.end(signal.SIGTERM) == 0


def test_a_worker_that_cannot_load_its_model_ends_everything_with_its_reason(up, tmp_path):
    (tmp_path / "worker" / "__main__.py").write_text("print('no model'); raise SystemExit(78)")
    with up("--port", "0") as running:
        assert running.end() == 1
        assert running.lines[-1] == (
            "echoforge: worker1 ended with code 78: it cannot work as configured (exit code 78); "
            "its last line: no model"
        )


def test_a_killed_worker_is_started_again(up):
    with up("--port", "0") as running:
        first = running.line("worker1 | told").split()[-1]
        os.kill(int(first), signal.SIGKILL)
        running.line("worker1 was killed by signal 9; started again")
        until(lambda: sum("worker1 | told" in line for line in list(running.lines)) == 2)
        assert running.end(signal.SIGTERM) == 0


def test_a_second_up_on_the_same_data_is_refused_clearly(up):
    with up("--port", "0") as first:
        first.line("ready")
        with up("--port", "0") as second:
            assert second.end() == 1
        assert len(second.lines) == 1
        assert f"in use by another EchoForge (process {first.process.pid})" in second.lines[0]
        assert first.end(signal.SIGTERM) == 0


def test_a_taken_port_is_told_before_anything_starts(up, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with up("--port", str(port)) as running:
            assert running.end() == 1
    assert running.lines == [
        f"echoforge: cannot listen on 127.0.0.1:{port} (Address already in use); "
        "choose another --port or --host"
    ]
    assert not (tmp_path / "data").exists()


def test_a_given_redis_is_used_instead_of_the_embedded_one(up, tmp_path):
    with up("--port", "0", "--redis-url", "redis://127.0.0.1:9/0") as running:
        running.line("api     | redis.exceptions.ConnectionError")
        running.end(signal.SIGTERM)
    assert not (tmp_path / "data" / "redis").exists()


def test_kill_9_leaves_nothing_running(up, tmp_path):
    with up("--port", "0") as running:
        running.line("ready")
        pids = _children(running)
        assert len(pids) == 3
        running.end(signal.SIGKILL)
        until(lambda: all(map(is_gone, pids)))


def test_kill_9_ends_even_a_worker_and_an_api_that_ignore_sigterm(up, tmp_path):
    for name in ("api", "worker"):
        (tmp_path / name / "__main__.py").write_text(STUBBORN)
    with up("--port", "0") as running:
        running.line("api     | told")
        running.line("worker1 | told")
        pids = _children(running)
        running.end(signal.SIGKILL)
        until(lambda: all(map(is_gone, pids)), timeout_s=5)


def test_a_dead_workers_last_heartbeat_is_not_taken_for_ready(up, tmp_path):
    with up("--port", "0") as first:
        first.line("ready")
        first.end(signal.SIGKILL)
    (tmp_path / "worker" / "__main__.py").write_text("import time; time.sleep(2)\n" + WORKER)
    with up("--port", "0") as second:
        ready = second.line("ready")
        told = second.line("worker1 | told")
        assert second.lines.index(told) < second.lines.index(ready)
        assert second.end(signal.SIGTERM) == 0


def test_only_ready_workers_of_this_machine_and_this_command_count():
    here = socket.gethostname()
    ours = {"pid": 7, "host": here, "state": "ready"}
    others = [{**ours, "pid": 8}, {**ours, "host": "other"}, {**ours, "state": "draining"}]
    assert own_workers({"workers": [*others, ours]}, {7}) == {"workers": [ours]}


def test_ctrl_c_says_how_long_it_may_take_and_how_to_hurry(up):
    with up("--port", "0") as running:
        running.line("ready")
        assert running.end(signal.SIGINT) == 0
        assert (
            "ending: waiting up to 25 s for running jobs; Ctrl-C again to stop now" in running.lines
        )


def test_an_api_that_refuses_its_settings_ends_everything_with_its_reason(up, tmp_path):
    (tmp_path / "api" / "__main__.py").write_text("print('not safe'); raise SystemExit(78)")
    with up("--port", "0", "--host", "0.0.0.0") as running:
        assert running.end() == 1
        assert running.lines[-1].startswith("echoforge: api ended with code 78: ")
        assert running.lines[-1].endswith("its last line: not safe")


def test_a_second_ctrl_c_does_not_wait_for_the_drain(up, tmp_path):
    (tmp_path / "worker" / "__main__.py").write_text(STUBBORN)
    with up("--port", "0") as running:
        running.line("worker1 | told")
        running.process.send_signal(signal.SIGINT)
        running.line("draining")
        until(lambda: running.process.send_signal(signal.SIGINT) or _ended(running), timeout_s=5)


def test_any_address_is_reached_over_the_loopback():
    assert public_url("0.0.0.0", 8000) == "http://127.0.0.1:8000"
    assert public_url("::", 8000) == "http://[::1]:8000"
    assert public_url("speech.lan", 80) == "http://speech.lan:80"


def test_an_address_that_is_not_this_machines_is_told():
    with pytest.raises(UpError, match=r"cannot listen on 192\.0\.2\.1:8000"):
        free_port("192.0.2.1", 8000)


def test_the_ready_line_says_when_some_workers_are_still_loading():
    one = {"workers": [{"model": "csm-1b", "device": "cuda:0"}]}
    assert ready_line("http://h:1", one, 2) == (
        "EchoForge is ready: http://h:1 · 1 of 2 workers so far · csm-1b on cuda:0"
    )


def _children(running: Running) -> list[int]:
    pid = running.process.pid
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _ended(running: Running) -> bool:
    return running.process.poll() is not None
