"""The server as a process: it starts from the environment, and goes when it is told to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.integration


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def server(port: int, valkey_url: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = os.environ | {
        "ECHOFORGE_PORT": str(port),
        "ECHOFORGE_REDIS_URL": valkey_url,
        "ECHOFORGE_DATA_DIR": str(tmp_path),
    }
    with subprocess.Popen([sys.executable, "-m", "api"], cwd=ROOT, env=env) as process:
        await_answer(port)
        yield process
        process.kill()


def await_answer(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            httpx2.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
        except httpx2.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def test_sigterm_answers_the_long_polls_and_leaves_with_zero(
    server: subprocess.Popen[bytes], port: int
) -> None:
    base = f"http://127.0.0.1:{port}"
    job = httpx2.post(f"{base}/api/generate", json={"text": "Hi"}, trust_env=False).json()
    answers = []

    def poll() -> None:
        answers.append(
            httpx2.get(f"{base}/api/jobs/{job['id']}?wait=60", timeout=70, trust_env=False)
        )

    thread = threading.Thread(target=poll)
    thread.start()
    time.sleep(0.5)
    server.send_signal(signal.SIGTERM)
    assert server.wait(20) == 0
    thread.join()
    assert (answers[0].status_code, answers[0].json()["status"]) == (200, "queued")


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("ECHOFORGE_PORT", "99999", "ECHOFORGE_PORT"),
        ("ECHOFORGE_REDIS_URL", "reds://:s3cret@h/0", "ECHOFORGE_REDIS_URL: must begin with"),
        ("ECHOFORGE_HOST", "0.0.0.0", "set ECHOFORGE_ALLOW_REMOTE=true"),
    ],
)
def test_a_wrong_environment_is_said_in_one_line_without_secrets(
    variable: str, value: str, told: str
) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "api"],
        cwd=ROOT,
        env=os.environ | {variable: value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 78
    assert told in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert "s3cret" not in ran.stderr


def test_it_listens_beyond_loopback_once_that_is_allowed(
    port: int, valkey_url: str, tmp_path: Path
) -> None:
    env = os.environ | {
        "ECHOFORGE_HOST": "0.0.0.0",
        "ECHOFORGE_ALLOW_REMOTE": "true",
        "ECHOFORGE_PORT": str(port),
        "ECHOFORGE_REDIS_URL": valkey_url,
        "ECHOFORGE_DATA_DIR": str(tmp_path),
    }
    with subprocess.Popen([sys.executable, "-m", "api"], cwd=ROOT, env=env) as process:
        await_answer(port)
        process.kill()
