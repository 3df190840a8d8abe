"""The jobs this worker holds: one thread renews all their leases, tells their progress, and hears
what is to be cancelled.

Knows the store and the engine's pulse; knows nothing of audio or Celery. A lease is renewed only
while the engine gives signs of life: a hung engine must lose its jobs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shared.jobs import Progress
from shared.store import Claim, JobStore, LeaseState
from shared.ticker import Ticker
from shared.workers import WorkerInfo
from worker.engine.engine import Engine
from worker.engine.utterance import Handle

log = logging.getLogger(__name__)
EXIT_HUNG = 70  # the supervisor restarts; whoever holds the jobs next starts them afresh


@dataclass(eq=False)
class Lease:
    """A claimed job, and the utterance that speaks it as soon as there is one."""

    claim: Claim
    handle: Handle | None = None
    expected_frames: int = 1
    frame_rate: float = 1.0
    began_at: float = field(default_factory=time.monotonic)
    is_lost: bool = False
    is_released: bool = False
    _is_stopped: bool = False

    def attach(self, handle: Handle, expected_frames: int, frame_rate: float) -> Handle:
        """From now on `stop` reaches the engine, also a `stop` that came before."""
        self.expected_frames, self.frame_rate = expected_frames, frame_rate
        self.handle = handle
        if self._is_stopped:
            handle.cancel()
        return handle

    def stop(self) -> None:
        self._is_stopped = True
        if self.handle is not None:
            self.handle.cancel()

    def progress(self) -> Progress:
        frames = self.handle.frames_done if self.handle else 0
        share = min(frames / self.expected_frames, 0.99)
        elapsed = time.monotonic() - self.began_at
        left = self.expected_frames - frames
        return Progress(
            frames=frames,
            audio_seconds=round(frames / self.frame_rate, 2),
            percent=int(100 * share),
            eta_s=round(elapsed / frames * left, 1) if frames and left > 0 else None,
        )


class LeaseKeeper:
    """Owns the leases; `hold` and `drop` from any thread."""

    def __init__(
        self,
        store: JobStore,
        engine: Engine,
        describe: Callable[[int, bool], WorkerInfo],
        *,
        renew_s: float,
        watchdog_s: float,
        exit_process: Callable[[int], None] = os._exit,
    ) -> None:
        self._store, self._engine, self._describe = store, engine, describe
        self._watchdog_s, self._exit_process = watchdog_s, exit_process
        self._leases: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self.is_draining = threading.Event()
        self.is_over = False  # drained: nothing may be begun, or waited for, any more
        self._ticker = Ticker("leases", renew_s, self.beat)
        self.start, self.stop = self._ticker.start, self._ticker.stop

    def hold(self, claim: Claim) -> Lease:
        """Renewed from now on. A claim that comes after the drain is over is given back at once."""
        lease = Lease(claim)
        with self._lock:
            self._leases[claim.token] = lease
            is_late = self.is_over
        if is_late:
            self._give_back(lease)
        return lease

    def drop(self, lease: Lease) -> None:
        with self._lock:
            self._leases.pop(lease.claim.token, None)

    @property
    def held(self) -> list[Lease]:
        with self._lock:
            return list(self._leases.values())

    def drain(self, drain_s: float) -> None:
        """Waits for the running jobs; what is not done in time goes back to the queue uncounted."""
        self.is_draining.set()
        deadline = time.monotonic() + drain_s
        while self.held and time.monotonic() < deadline:
            time.sleep(0.05)
        with self._lock:
            self.is_over = True
            left = list(self._leases.values())
        for lease in left:
            self._give_back(lease)

    def _give_back(self, lease: Lease) -> None:
        lease.is_released = True
        lease.stop()

    def beat(self) -> None:
        """Renews everything, and gives the worker's sign of life. May raise StoreUnavailable."""
        if self._engine.tick_age_s > self._watchdog_s:
            log.critical("the engine has not ticked for %.0f s; exiting", self._engine.tick_age_s)
            self._exit_process(EXIT_HUNG)
            return
        leases = self.held
        self._store.heartbeat(self._describe(len(leases), self.is_draining.is_set()))
        states = self._store.renew([(lease.claim, lease.progress()) for lease in leases])
        for lease, state in zip(leases, states, strict=True):
            self._obey(lease, state)

    def _obey(self, lease: Lease, state: LeaseState) -> None:
        if state is LeaseState.HELD or (lease.handle and lease.handle.is_done):
            return
        lease.is_lost = state is LeaseState.LOST
        if lease.is_lost:
            log.warning("%s is no longer ours; its utterance is stopped", lease.claim.job_id)
        lease.stop()
