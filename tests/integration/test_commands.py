"""The command and the scripts, as a user runs them: real children, real sound."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from tests.waiting import until

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
ECHOFORGE = [sys.executable, "-m", "client.cli"]


class Up:
    """`echoforge up` in its own process, its lines kept."""

    def __init__(self, data: Path, *options: str) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("ECHOFORGE_")}
        self.process = subprocess.Popen(
            [*ECHOFORGE, "up", "--port", "0", "--data", str(data), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=env,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def url(self) -> str:
        def ready() -> re.Match[str] | None:
            assert self.process.poll() is None, self.text
            return re.search(r"ready: (http\S+)", self.text)

        until(ready, what="up is ready")
        match = ready()
        assert match is not None
        return match[1]

    def end(self, signal_number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        code = self.process.wait(60)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def children(self) -> list[int]:
        listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listing.split()]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path / "data", "--model", "csm-tiny", "--device", "cpu")
    yield running
    running.end()
    print(running.text)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT
    )


def arguments_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def seconds_of(path: Path) -> float:
    with av.open(str(path)) as container:
        return sum(f.samples for f in container.decode(audio=0)) / 24_000


def test_up_says_it_is_ready_speaks_and_ends_all_of_it_on_ctrl_c(up: Up, tmp_path: Path) -> None:
    url = up.url
    out = tmp_path / "said.flac"
    said = run(
        *ECHOFORGE, "say", "Hello.", "-o", str(out), "--max-audio-seconds", "1.2", "--url", url
    )
    assert said.returncode == 0, said.stderr
    assert seconds_of(out) == pytest.approx(1.2)
    assert "untrained" in said.stdout + said.stderr
    assert "untrained" in up.text
    children = up.children()
    assert len(children) == 3
    assert up.end() == 0
    until(lambda: not any(is_alive(pid) for pid in children))


def test_a_killed_worker_is_started_again_and_its_job_completes(up: Up, tmp_path: Path) -> None:
    url = up.url
    submitted = run(*ECHOFORGE, "submit", "Kill me.", "--max-audio-seconds", "20", "--url", url)
    job_id = submitted.stdout.split()[0]
    worker = next(pid for pid in up.children() if "worker" in arguments_of(pid))
    until(lambda: "begins" in up.text)
    os.kill(worker, signal.SIGKILL)
    watched = run(*ECHOFORGE, "watch", job_id, "--url", url)
    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert up.text.count("begins (attempt") == 2


def test_up_without_a_model_ends_with_the_reason_and_the_way_out(tmp_path: Path) -> None:
    running = Up(tmp_path / "data", "--model", str(tmp_path))
    code = running.process.wait(60)
    running.end()
    assert code == 1
    assert "not a CSM checkpoint" in running.text


def test_the_prototypes_client_script_works(up: Up, tmp_path: Path) -> None:
    out = tmp_path / "api.wav"
    done = run(
        sys.executable, "scripts/test_voice_api.py", "Hi.", "--temperature", "0.9", "--top-k", "40",
        "--device", "cuda", "-o", str(out), "--url", up.url,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert seconds_of(out) > 1
    assert "cuda" in done.stdout + done.stderr  # where it was spoken instead


def test_the_demo_ends_with_a_file_and_leaves_nothing_running(tmp_path: Path) -> None:
    out = tmp_path / "demo.wav"
    done = run(sys.executable, "scripts/demo.py", "Hello.", "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert "untrained" in done.stdout
    assert seconds_of(out) > 1
    assert "% " in done.stderr + done.stdout or "speaking" in done.stderr + done.stdout
