"""One job from claim to end: claim -> submit -> save -> finish.

Translates a request into an utterance and the engine's errors into a job's. Knows the store, the
engine and the audio store; knows nothing of Celery or HTTP.
"""

from __future__ import annotations

import hashlib
import logging
import time
from functools import partial

from shared.audio_store import AudioStore, PublishedFile
from shared.errors import StorageFull, StoreUnavailable
from shared.jobs import JobFailure, Output, SpeechRequest
from shared.store import Claim, JobStore
from worker.audio_file import CONTENT_TYPES, write_audio
from worker.device import is_device_fault
from worker.engine.engine import Engine
from worker.engine.errors import (
    DeadlinePassed,
    EngineError,
    EngineStopped,
    UtteranceCancelled,
)
from worker.engine.prompt import USUAL_CHARS_PER_S
from worker.engine.sampling import Sampling
from worker.engine.utterance import Handle, Speech, Utterance
from worker.leases import Lease, LeaseKeeper
from worker.model import model_notice

log = logging.getLogger(__name__)
FINISH_PATIENCE_S = 120.0  # Redis may be restarting; the compare-and-set decides when it is back
FINISH_PAUSE_S = 1.0
STORAGE_PAUSE_S = 5.0  # a full disk does not empty at once: do not speak in vain
RETRYABLE = frozenset({DeadlinePassed.code})


class Desk:
    """Where jobs are taken in, spoken and handed out; one for the whole worker."""

    def __init__(
        self, store: JobStore, engine: Engine, audio: AudioStore, leases: LeaseKeeper,
        *, worker_id: str, device: str, fallback: str | None = None,
    ) -> None:  # fmt: skip
        self.store, self.engine, self.audio, self.leases = store, engine, audio, leases
        self.worker_id, self.device, self.fallback = worker_id, device, fallback

    def answer(self) -> None:
        """A doorbell rang: speaks jobs until none waits, or the worker is to end."""
        while claim := self._claim():
            self._speak(claim)

    def _claim(self) -> Claim | None:
        if self.leases.is_draining.is_set() or self.engine.is_over:
            return None
        checkpoint = self.engine.checkpoint
        try:
            return self.store.claim(
                self.worker_id,
                self.device,
                checkpoint.name,
                fallback=self.fallback or "",
                notice=model_notice(checkpoint) or "",
            )
        except StoreUnavailable as e:
            log.warning("no job claimed: %s", e)
            return None

    def _speak(self, claim: Claim) -> None:
        log.info("%s begins (attempt %d)", claim.job_id, claim.attempt)
        lease = self.leases.hold(claim)
        try:
            self._see_through(lease)
        except Exception:  # the task boundary: a surprise fails this job, not the worker
            log.exception("%s failed for a reason nobody thought of", claim.job_id)
            self._fail(claim, "internal", "The worker failed on this job; its log says why.")
        finally:
            self.leases.drop(lease)

    def _see_through(self, lease: Lease) -> None:
        claim = lease.claim
        try:
            self._publish(claim, self._submit(lease).result())
        except UtteranceCancelled:
            self._stopped(lease)
        except EngineStopped as e:
            self._give_back(lease, e)
        except EngineError as e:
            self._fail(claim, e.code, str(e))
        except (StorageFull, OSError) as e:
            log.error("%s goes back to the queue: its audio cannot be stored: %s", claim.job_id, e)
            self._release(claim, transient=True)
            self.leases.is_draining.wait(STORAGE_PAUSE_S)

    def _submit(self, lease: Lease) -> Handle:
        frame_rate = self.engine.frame_rate
        handle = self.engine.submit(utterance_of(lease.claim, frame_rate))
        expected = self._expected_frames(lease.claim.request, handle.max_frames)
        return lease.attach(handle, expected, frame_rate)

    def _publish(self, claim: Claim, speech: Speech) -> None:
        if not len(speech.audio):
            self._fail(claim, "empty_audio", "The model ended before it spoke; try another seed.")
            return
        file = self._save(claim, speech)
        output = output_of(claim, speech, file)
        is_ours = self._finish(claim, output=output, speech=speech)
        if is_ours:
            log.info("%s completed: %.2f s of audio", claim.job_id, output.duration_s)
        elif is_ours is False:
            log.warning("%s was given to another; its audio here is deleted", claim.job_id)
            self.audio.delete(file.name)

    def _save(self, claim: Claim, speech: Speech) -> PublishedFile:
        kind = claim.request.format
        write = partial(write_audio, audio=speech.audio, sample_rate=speech.sample_rate, kind=kind)
        return self.audio.publish(claim.job_id, claim.token, kind, write)

    def _stopped(self, lease: Lease) -> None:
        """An utterance ends early for three reasons: lost, given back, or cancelled."""
        if lease.is_released:
            self._release(lease.claim)
        elif not lease.is_lost:
            self._finish(lease.claim, cancelled=True)

    def _fail(self, claim: Claim, code: str, message: str) -> None:
        log.info("%s failed: %s", claim.job_id, code)
        error = JobFailure(code=code, message=message, retryable=code in RETRYABLE)
        self._finish(claim, error=error)

    def _finish(
        self, claim: Claim, *, output: Output | None = None, error: JobFailure | None = None,
        cancelled: bool = False, speech: Speech | None = None,
    ) -> bool | None:  # fmt: skip
        """Tells the store until it hears; the claim's token decides whether it is still ours.

        None when it was never heard: the record may name the file or not, so the file stays, and
        the orphan sweep decides.
        """
        deadline = time.monotonic() + FINISH_PATIENCE_S
        while True:
            try:
                return self.store.finish(
                    claim,
                    output=output,
                    error=error,
                    cancelled=cancelled,
                    generate_s=round(speech.generate_s, 3) if speech else None,
                    ttfa_s=round(speech.ttfa_s, 3) if speech and speech.ttfa_s else None,
                )
            except StoreUnavailable as e:
                if self.leases.is_over or time.monotonic() > deadline:
                    log.error("%s: its end could not be told (%s)", claim.job_id, e)
                    return None
                time.sleep(FINISH_PAUSE_S)

    def _give_back(self, lease: Lease, error: EngineStopped) -> None:
        """The engine ended. A job that was not begun, or was begun when it was told to end, is
        not to blame. If the device failed, it may be: that is counted, up to a limit.

        Otherwise this job, or a neighbour, broke the engine: the lease is left to run out, which
        counts a crash, so that after a second one the job is spoken alone.
        """
        failure, claim = self.engine.failure, lease.claim
        if failure is None or lease.handle is None:
            self._release(claim)
        elif is_device_fault(failure):
            self._release(claim, transient=True)
        else:
            log.error("%s was being spoken when the engine failed: %s", claim.job_id, error)

    def _release(self, claim: Claim, *, transient: bool = False) -> None:
        try:
            self.store.release(claim, transient=transient)
        except StoreUnavailable as e:
            log.warning("%s not given back (%s); its lease will run out", claim.job_id, e)

    def _expected_frames(self, request: SpeechRequest, max_frames: int) -> int:
        """For progress only. An untrained model does not know where to end."""
        if request.max_audio_seconds is not None or not self.engine.checkpoint.is_trained:
            return max_frames
        usual = len(request.text) / USUAL_CHARS_PER_S * self.engine.frame_rate
        return max(1, min(max_frames, int(usual)))


def utterance_of(claim: Claim, frame_rate: float) -> Utterance:
    request = claim.request
    limit = request.max_audio_seconds
    return Utterance(
        text=request.text,
        speaker_id=request.speaker_id,
        sampling=Sampling(request.temperature, request.top_k, seed_of(claim)),
        max_frames=None if limit is None else max(1, int(limit * frame_rate)),
        timeout_s=max(claim.deadline_s, 0.0),
    )


def seed_of(claim: Claim) -> int:
    """The request's seed, else one from the job's id: a job spoken again says the same.

    48 bits, since JSON clients round above 53.
    """
    if claim.request.seed is not None:
        return claim.request.seed
    return int.from_bytes(hashlib.sha256(claim.job_id.encode()).digest()[:6], "big")


def output_of(claim: Claim, speech: Speech, file: PublishedFile) -> Output:
    return Output(
        name=file.name,
        format=claim.request.format,
        content_type=CONTENT_TYPES[claim.request.format],
        bytes=file.bytes,
        sample_rate=speech.sample_rate,
        duration_s=round(len(speech.audio) / speech.sample_rate, 3),
        frames=len(speech.codes),
        sha256=file.sha256,
        seed=seed_of(claim),
        finish_reason=speech.finish_reason,
    )
