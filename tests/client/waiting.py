"""Waiting in tests: until something is so, or the test has failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def until(is_so: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Ended, even if nobody has collected its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
