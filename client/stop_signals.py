"""StopSignals: counts the requests to end (Ctrl-C, SIGTERM, a closed terminal). Acts on none."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_PRESS_S = 0.5  # wrappers pass the terminal's Ctrl-C on, so one press may arrive twice


class StopSignals:
    """A context manager that holds the signals; only for the main thread."""

    def __init__(self) -> None:
        self._num_requests = 0
        self._last_at = float("-inf")
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def is_asked(self) -> bool:
        return self._num_requests > 0

    @property
    def is_hurried(self) -> bool:
        return self._num_requests > 1

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last_at > SAME_PRESS_S:
            self._num_requests += 1
            self._last_at = now
