"""The worker process: load the model or exit, answer doorbells until SIGTERM, drain, leave.

Knows how the parts are joined and in which order they start and stop; each part knows its work.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import uuid
import warnings
from dataclasses import dataclass

import torch
from celery import Celery
from celery.platforms import SecurityWarning
from celery.signals import setup_logging, worker_ready, worker_shutting_down

from shared.audio_store import AudioStore
from shared.doorbell import ANSWER, Doorbell, make_celery
from shared.errors import StoreUnavailable
from shared.keys import queues_for
from shared.settings import Settings
from shared.store import JobStore
from shared.ticker import Ticker
from shared.upkeep import Upkeep
from shared.workers import WorkerInfo
from worker.device import OpenEngine, open_engine
from worker.engine.engine import Engine, EngineConfig
from worker.leases import LeaseKeeper
from worker.model import load_model, model_notice
from worker.speaking import Desk

log = logging.getLogger(__name__)
EXIT_INTERRUPTED = 130
GIVE_BACK_S = 0.5
EXIT_FAILED = 70  # the device or the engine failed: a restart may help


@dataclass
class Worker:
    """One process, one device, one loaded model."""

    settings: Settings
    opened: OpenEngine
    store: JobStore
    app: Celery

    def __post_init__(self) -> None:
        self.id = uuid.uuid4().hex
        self.started_at = time.time()
        self.audio = AudioStore(self.settings.audio_dir)
        self.leases = LeaseKeeper(
            self.store,
            self.engine,
            self.describe,
            renew_s=self.settings.renew_s,
            watchdog_s=self.settings.watchdog_s,
        )
        upkeep = Upkeep(self.store, Doorbell(self.app), self.audio, sweep_s=self.settings.sweep_s)
        self.upkeep = Ticker("upkeep", self.settings.tick_s, upkeep.tick)
        opened = self.opened
        self.desk = Desk(
            self.store,
            self.engine,
            self.audio,
            self.leases,
            worker_id=self.id,
            device=opened.device,
            fallback=opened.fallback if opened.device == "cpu" else None,
        )

    @property
    def engine(self) -> Engine:
        return self.opened.engine

    def describe(self, active: int, is_draining: bool) -> WorkerInfo:
        return WorkerInfo(
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self.opened.device,
            model=self.engine.checkpoint.name,
            model_notice=model_notice(self.engine.checkpoint),
            slots=self.engine.config.num_slots,
            active=active,
            started_at=self.started_at,
            engine_tick_age_s=round(self.engine.tick_age_s, 2),
            device_fallback=self.opened.fallback,
            precision=self.engine.config.precision,
            prefix_hits=self.engine.runner.prefixes.num_hits,
            prefix_misses=self.engine.runner.prefixes.num_misses,
            prefix_bytes=self.engine.runner.prefixes.num_bytes,
            state="draining" if is_draining else "ready",
        )

    def run(self) -> int:
        """Serves until SIGTERM or SIGINT, or until the engine fails; returns the exit code."""
        self.app.task(name=ANSWER)(self.desk.answer)
        worker_shutting_down.connect(self._drain)
        self.engine.start()
        self.leases.start()
        self.upkeep.start()
        threading.Thread(target=self._watch_engine, name="watch", daemon=True).start()
        log.info("ready: %s", self._summary())
        self._serve()
        is_asked = self.leases.is_draining.is_set()
        self.stop()
        if not is_asked:
            log.critical("Celery stopped by itself; exiting so that the supervisor starts afresh")
        return 0 if is_asked and self.engine.failure is None else EXIT_FAILED

    def stop(self) -> None:
        self.upkeep.stop()
        self.leases.stop()
        self.engine.stop()
        self._leave()

    def _leave(self) -> None:
        try:
            self.store.leave(self.id)
        except StoreUnavailable as e:
            log.warning("not signed off (%s); the heartbeat will run out", e)

    def _serve(self) -> None:
        setup_logging.connect(_keep_our_logging)
        worker_ready.connect(_ignore_unsafe_signals)
        # Celery minds being root for pickle's sake; nothing here is ever unpickled
        warnings.simplefilter("ignore", SecurityWarning)
        worker = self.app.Worker(
            pool="threads",  # one process owns the device; a thread waits for each utterance
            concurrency=self.engine.config.num_slots,
            queues=queues_for(self.opened.device),
            hostname=f"{self.id[:12]}@{socket.gethostname()}",
            quiet=True,
            without_gossip=True,  # workers say what there is to say by heartbeat, in the store
            without_mingle=True,
            without_heartbeat=True,
        )
        worker.start()

    def _drain(self, **_: object) -> None:
        """In a signal handler: no more than starting a thread is safe here."""
        signal.signal(signal.SIGINT, _leave_at_once)  # Celery's own second Ctrl-C needs a process
        if self.leases.is_draining.is_set():
            return
        self.leases.is_draining.set()
        drain_s = self.settings.drain_s
        threading.Thread(target=self.leases.drain, args=(drain_s,), name="drain").start()

    def _watch_engine(self) -> None:
        """A failed engine has failed its handles; once their jobs are seen to, nothing is left."""
        while self.engine.failure is None:
            time.sleep(0.2)
        self.leases.is_draining.set()
        time.sleep(GIVE_BACK_S)  # for a claim under way
        while self.leases.held:
            time.sleep(0.05)
        self._leave()
        log.critical("the engine failed; exiting so that the supervisor starts afresh")
        os._exit(EXIT_FAILED)

    def _summary(self) -> str:
        config, checkpoint = self.engine.config, self.engine.checkpoint
        return (
            f"{checkpoint.name} on {self.opened.device} in {config.precision},"
            f" {config.num_slots} slots of {self.engine.runner.max_positions} positions"
        )


def make_worker(settings: Settings) -> Worker:
    """Loads the model onto its device. Raises `EngineError` when there is nothing to serve."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    checkpoint = load_model(settings)
    config = EngineConfig(
        num_slots=settings.slots,
        max_positions=settings.max_positions,
        max_audio_s=settings.max_audio_s,
        num_threads=settings.threads,
        pack_dir=settings.data_dir / "packed",
    )
    opened = open_engine(
        lambda c: Engine(checkpoint, c), config, settings.device, settings.precision
    )
    if notice := model_notice(checkpoint):
        log.warning("%s", notice)
    return Worker(settings, opened, JobStore.connect(settings), make_celery(settings))


def _leave_at_once(*_: object) -> None:
    """The second Ctrl-C: the leases run out, and others speak the jobs."""
    os._exit(EXIT_INTERRUPTED)


def _ignore_unsafe_signals(**_: object) -> None:
    """What Celery does on these is not for a pool of threads: crash, start over, print locals."""
    for number in (signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _keep_our_logging(**_: object) -> None:
    """Celery configures no logging where something answers this signal; doorbells are no news."""
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
