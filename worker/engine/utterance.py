"""One utterance, from the outside: what is to be said, and the handle on which it is heard.

The handle may be used from any thread. Knows nothing about tensors on a device, or the batch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from worker.engine.errors import EngineError
from worker.engine.sampling import Sampling

Audio = npt.NDArray[np.float32]  # (samples,), mono, -1 to 1
Codes = npt.NDArray[np.int64]  # (frames, codebooks)
FinishReason = Literal["eos", "length"]


@dataclass(frozen=True, eq=False)
class Segment:
    """Something said before, as context. Give `audio` (24 kHz mono) or its Mimi `codes` (T, K)."""

    speaker_id: int
    text: str
    audio: Audio | None = None
    codes: Codes | None = None

    def __post_init__(self) -> None:
        if (self.audio is None) == (self.codes is None):
            raise ValueError("a context segment needs either audio or codes")


@dataclass(frozen=True, eq=False)
class Utterance:
    """What is to be said. `max_frames` None allows what the text's length makes plausible."""

    text: str
    speaker_id: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    context: tuple[Segment, ...] = ()
    max_frames: int | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"max_frames must be 1 or more, not {self.max_frames}")


@dataclass(frozen=True, eq=False)
class Speech:
    """What was said. `generate_s` is wall time since submission; `ttfa_s` the first audio's."""

    audio: Audio
    codes: Codes
    sample_rate: int
    finish_reason: FinishReason
    generate_s: float
    ttfa_s: float | None


class Handle:
    """An utterance on its way: audio as it comes, the end, and a way to stop it."""

    def __init__(self, sample_rate: int, max_frames: int) -> None:
        self.sample_rate, self.max_frames = sample_rate, max_frames
        self._submitted = time.monotonic()
        self._changed = threading.Condition()
        self._chunks: list[Audio] = []
        self._frames: list[npt.NDArray[np.int64]] = []
        self._speech: Speech | None = None
        self._error: EngineError | None = None
        self._ttfa_s: float | None = None
        self._is_cancelled = False

    @property
    def frames_done(self) -> int:
        return len(self._frames)

    @property
    def has_sound(self) -> bool:
        return self._ttfa_s is not None

    @property
    def is_done(self) -> bool:
        return self._speech is not None or self._error is not None

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled

    def cancel(self) -> None:
        """Ends the utterance before its next frame; its waiters see `UtteranceCancelled`."""
        self._is_cancelled = True

    def chunks(self) -> Iterator[Audio]:
        """The audio in order, each piece as soon as it exists. Raises what ended the utterance."""
        index = 0
        while True:
            with self._changed:
                while len(self._chunks) == index and not self.is_done:
                    self._changed.wait()
                fresh, error = self._chunks[index:], self._error
                is_done = self.is_done
            yield from fresh
            index += len(fresh)
            if is_done and index == len(self._chunks):
                break
        if error is not None:
            raise error

    def result(self, timeout_s: float | None = None) -> Speech:
        """Waits for the end. Raises what ended the utterance, or `TimeoutError`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.is_done, timeout_s):
                raise TimeoutError("the utterance is still being spoken")
        if self._error is not None:
            raise self._error
        assert self._speech is not None
        return self._speech

    # The engine's side.

    def add_frame(self, codes: npt.NDArray[np.int64]) -> None:
        self._frames.append(codes)

    def add_audio(self, audio: Audio) -> None:
        with self._changed:
            if self._ttfa_s is None:
                self._ttfa_s = time.monotonic() - self._submitted
            self._chunks.append(audio)
            self._changed.notify_all()

    def finish(self, reason: FinishReason, num_codebooks: int) -> None:
        codes = np.array(self._frames, dtype=np.int64).reshape(-1, num_codebooks)
        audio = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.float32)
        elapsed = time.monotonic() - self._submitted
        with self._changed:
            self._speech = Speech(audio, codes, self.sample_rate, reason, elapsed, self._ttfa_s)
            self._changed.notify_all()

    def fail(self, error: EngineError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()
