"""A thread that does one thing every so often, and outlives the times when it cannot be done.

Knows when; what is done is the caller's business.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from shared.errors import SpeechError

log = logging.getLogger(__name__)


class Ticker:
    """Calls `tick` every `every_s` until `stop`; an expected failure is logged, and tried again."""

    def __init__(self, name: str, every_s: float, tick: Callable[[], None]) -> None:
        self._every_s, self._tick = every_s, tick
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self._tick()
            except (SpeechError, OSError) as e:
                log.warning("%s: put off: %s", self._thread.name, e)
            except Exception:  # the maintenance tick: without it, jobs would be lost in silence
                log.exception("%s failed; it will be tried again", self._thread.name)
