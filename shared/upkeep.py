"""Upkeep: what every process does now and then, so that no job waits for a process that is gone.

Knows when and in which order; how is the store's, the doorbell's and the audio store's business.
Everything here may run in many processes at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from shared.audio_store import AudioStore
from shared.doorbell import Doorbell
from shared.store import JobStore, Reaped

MAX_RINGS = 64  # of one doorbell in one tick
ORPHAN_AGE_S = 3600.0  # far longer than a file can take from its first byte to its record

log = logging.getLogger(__name__)


class Upkeep:
    """Call `tick` every few seconds. Raises SpeechError when Redis is away, OSError when the
    audio directory is; just tick again."""

    def __init__(
        self,
        store: JobStore,
        doorbell: Doorbell,
        audio: AudioStore,
        *,
        sweep_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._doorbell = doorbell
        self._audio = audio
        self._sweep_s = sweep_s
        self._clock = clock
        self._next_sweep = 0.0
        self._missing: dict[str, int] = {}

    def tick(self) -> None:
        self._reap()
        self._ring_missing()
        if self._clock() >= self._next_sweep:
            self.sweep()
            self._next_sweep = self._clock() + self._sweep_s

    def sweep(self) -> None:
        """Expired audio goes before its record says so: no record ever hides a file."""
        while expired := self._store.expired_audio():
            for job_id, name in expired:
                self._audio.delete(name)
                self._store.forget_audio(job_id)
        orphans = self._audio.sweep_orphans(self._store.names_audio, ORPHAN_AGE_S)
        if orphans:
            log.info("%d orphaned audio files deleted", len(orphans))

    def _reap(self) -> None:
        reaped = self._store.reap()
        if reaped != Reaped():
            log.info("reaped: %s", reaped)

    def _ring_missing(self) -> None:
        """Rings what was missing in two ticks running: a message on its way is not missing."""
        missing = self._store.backlog()
        for queue, now in missing.items():
            times = min(now, self._missing.get(queue, 0), MAX_RINGS)
            if times:
                self._doorbell.ring(queue, times)
        self._missing = missing
