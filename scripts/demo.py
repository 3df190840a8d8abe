"""`make demo`: starts everything, speaks one text over HTTP, saves a WAV, stops everything.

A thin driver of `echoforge up` and `echoforge say`: what it does, a user can type.
"""

from __future__ import annotations

import argparse
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

START_S = 180.0
ECHOFORGE = [sys.executable, "-m", "client.cli"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text")
    parser.add_argument("--model", default="csm-tiny", help="csm-tiny, csm-1b or a directory")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/demo.wav"))
    args = parser.parse_args()
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _failed(f"cannot make {args.output.parent} ({error.strerror})")
    with tempfile.TemporaryDirectory(prefix="echoforge-demo-") as data:
        up = subprocess.Popen(
            [*ECHOFORGE, "up", "--port", "0", "--data", data, "--model", args.model],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            url = _await_ready(up, START_S)
            return _say(url, args.text, args.output) if url else 1
        except queue.Empty:
            return _failed(f"the service was not ready within {START_S:g} s; see its lines above")
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(60)


def _await_ready(up: subprocess.Popen[str], patience_s: float) -> str | None:
    """The service's address from its one ready line; None when it ended instead.

    queue.Empty when neither came within `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(up, lines), daemon=True).start()
    while line := lines.get(timeout=max(0.0, deadline - time.monotonic())):
        print(line, end="", flush=True)
        if match := re.search(r"ready: (http\S+)", line):
            return match[1]
    return None


def _failed(reason: str) -> int:
    print(f"demo: {reason}", file=sys.stderr)
    return 1


def _read(up: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    assert up.stdout is not None
    with up.stdout as told:
        for line in told:
            lines.put(line)
    lines.put("")


def _say(url: str, text: str, output: Path) -> int:
    command = [*ECHOFORGE, "say", text, "-o", str(output), "--url", url]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
