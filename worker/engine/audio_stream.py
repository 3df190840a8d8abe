"""Frames become sound: each slot's codes are gathered and decoded in growing chunks.

The first chunk is one frame, for an early first sound; later ones are longer and cheaper.
Knows the codec and its state per slot; knows nothing of the language model.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch

from worker.engine.mimi import Mimi
from worker.engine.utterance import Audio

CHUNK_FRAMES = (1, 2, 4, 8)  # the last one repeats

Codes = npt.NDArray[np.int64]


class AudioStream:
    """The streaming decoder of every slot."""

    def __init__(self, codec: Mimi, num_slots: int) -> None:
        self._codec = codec
        self._state = codec.new_state(num_slots)
        self._pending: list[list[Codes]] = [[] for _ in range(num_slots)]
        self._num_chunks = [0] * num_slots

    def warm_up(self) -> None:
        """One chunk of each size, so that no first sound waits for a shape to be made ready."""
        for frames in CHUNK_FRAMES:
            for _ in range(frames):
                self.add(0, np.zeros(self._codec.spec.num_quantizers, np.int64))
            self.decode_due({0})

    def start(self, slot: int) -> None:
        """Makes a slot fresh, for a new utterance."""
        self._state.reset(self._rows([slot]))
        self._pending[slot], self._num_chunks[slot] = [], 0

    def add(self, slot: int, codes: Codes) -> None:
        """Takes one frame (K,)."""
        self._pending[slot].append(codes)

    def decode_due(self, ending: set[int]) -> dict[int, Audio]:
        """Decodes the slots whose chunk is full, and what is left of those that are `ending`."""
        groups: dict[int, list[int]] = defaultdict(list)
        for slot, frames in enumerate(self._pending):
            if frames and (slot in ending or len(frames) >= self._chunk_frames(slot)):
                groups[len(frames)].append(slot)
        return {
            slot: audio for slots in groups.values() for slot, audio in self._decode(slots).items()
        }

    def _chunk_frames(self, slot: int) -> int:
        return CHUNK_FRAMES[min(self._num_chunks[slot], len(CHUNK_FRAMES) - 1)]

    @torch.inference_mode()
    def _decode(self, slots: list[int]) -> dict[int, Audio]:
        """Slots that wait with equally many frames, in one call."""
        codes = torch.from_numpy(np.stack([np.stack(self._pending[s], axis=1) for s in slots]))
        codes = codes.to(self._codec.device)
        audio = self._codec.decode_step(codes, self._state, self._rows(slots)).clamp(-1, 1)
        for slot in slots:
            self._pending[slot] = []
            self._num_chunks[slot] += 1
        return dict(zip(slots, audio.float().cpu().numpy(), strict=True))

    def _rows(self, slots: list[int]) -> torch.Tensor:
        return torch.tensor(slots, device=self._codec.device)
