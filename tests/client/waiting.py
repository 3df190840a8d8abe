"""Waiting in tests: until something is so, or the test has failed."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(is_so: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
