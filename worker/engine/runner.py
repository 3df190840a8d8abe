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


USUAL_TOP_K = 64


def frame_top_k(top_k: int, num_codes: int) -> int:
    """The bound on top-k that a frame is made for: the usual one, or every code.

    It is part of the frame's shape, so there are only two, and a larger top-k is rare.
    """
    return min(USUAL_TOP_K, num_codes) if top_k <= USUAL_TOP_K else num_codes


def buckets(num_slots: int) -> list[int]:
    """The batch sizes that graphs are made for: 1, 4, 8, 16 and so on, up to the slots there are.

    Each takes seconds to compile and keeps its own copy of the depth decoder. Two or three slots
    cost little less than four.
    """
    sizes = [1]
    while sizes[-1] < num_slots:
        sizes.append(min(max(4, 2 * sizes[-1]), num_slots))
    return sizes


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
