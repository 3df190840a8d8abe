"""What the engine asks of a runner: one language model on one device, a batch of slots.

One contract, two runners: `torch_runner` (CUDA, and the reference) and `openvino_runner` (CPU).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from worker.engine.prompt import Prompt
from worker.engine.sampling import NoiseSource, Sampling
from worker.engine.scheduler import Batch, Turn
from worker.engine.spec import CsmSpec

Codes = npt.NDArray[np.int64]  # (K,), one frame


class Speaker:
    """What one slot's utterance needs beside its keys and values."""

    def __init__(self, spec: CsmSpec, prompt: Prompt, sampling: Sampling) -> None:
        self.prompt, self.sampling = prompt, sampling
        self.noise = NoiseSource(sampling.seed, spec.num_codebooks, spec.audio_vocab)


class PrefixCounts(Protocol):
    """How a runner's prefix cache has fared since it was made."""

    num_hits: int
    num_misses: int
    num_bytes: int


class Runner(Protocol):
    """Owns the model's arrays. What a turn says depends on its prompt and sampling alone."""

    num_slots: int
    max_positions: int

    @property
    def prefixes(self) -> PrefixCounts: ...

    def prepare(self, sampling: Sampling) -> None:
        """Makes ready what `sampling` needs beyond the usual; on the thread of who asks for it."""

    def start(self, turn: Turn, prompt: Prompt, sampling: Sampling) -> None:
        """Gives an admitted turn its slot; a known prefix is taken, and `rows_done` says so."""

    def stop(self, turn: Turn) -> None:
        """The turn is over, or will never start."""

    def warm_up(self) -> None:
        """One frame with nobody speaking: a device that cannot do it fails here, at load."""

    def run(self, batch: Batch) -> dict[Turn, Codes]:
        """Does the batch's prefills, and one frame for all who speak: their codes (K,) each."""
