"""How a code is chosen from logits, per row, without a host sync; and where its noise comes from.

Noise is an input, so that every backend samples alike and a row's choice depends on nothing else
in the batch. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

GREEDY_BELOW = 1e-6  # a temperature by which no logit can be divided any more
LEAST_NOISE = np.float32(1e-9)  # below the generator's own step; its logarithm stays finite


@dataclass(frozen=True)
class Sampling:
    """How one utterance is sampled. Temperature 0 is greedy and ignores the seed."""

    temperature: float = 0.9
    top_k: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 1:
            raise ValueError(f"top_k must be 1 or more, not {self.top_k}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be between 0 and 2**63, not {self.seed}")


class NoiseSource:
    """Standard exponential noise of one utterance, frame by frame, from its seed alone."""

    def __init__(self, seed: int, num_codebooks: int, audio_vocab: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._shape = (num_codebooks, audio_vocab)

    def next_frame(self) -> npt.NDArray[np.float32]:
        """(K, V), never 0. NumPy draws these five times as fast as PyTorch does."""
        noise = self._generator.standard_exponential(self._shape, dtype=np.float32)
        return np.maximum(noise, LEAST_NOISE, out=noise)


def choose(
    logits: Tensor, noise: Tensor, temperature: Tensor, top_k: Tensor, max_top_k: int, codes: int
) -> Tensor:
    """logits (B, V), noise (B, V) exponential, temperature (B,), top_k (B,) int64 -> codes (B,).

    Keeps each row's `top_k` best (ties kept, as the reference does), then takes
    argmax(p / noise): the exponential race, which samples p exactly (Gumbel-max in other words;
    SesameAILabs/csm `_multinomial_sample_one_no_sync`). Rows of temperature 0 take the argmax.
    Entries from `codes` up are reserved and never chosen: the codec has no such codes.
    `max_top_k` bounds every row's `top_k`; it is known to the host, so that shapes stay static.
    """
    logits = logits.float()[:, :codes]
    limit = min(max_top_k, codes)
    best = logits.topk(limit, dim=-1).values
    kth = best.gather(1, (top_k.clamp(max=limit) - 1).unsqueeze(1))
    is_hot = (temperature > GREEDY_BELOW).unsqueeze(1)
    heat = torch.where(is_hot, temperature.unsqueeze(1), 1.0)
    race = logits / heat - noise[:, :codes].log()
    race = race.masked_fill(logits < kth, float("-inf"))
    return torch.where(is_hot, race, logits).argmax(dim=-1)
