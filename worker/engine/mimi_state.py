"""MimiState: what streaming Mimi remembers between two calls, one row a slot.

Static tensors only: what each convolution carries over, and a ring of keys and values per
transformer layer. Knows positions and the sliding window; knows nothing about weights or audio.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from worker.engine.mimi_spec import Conv, MimiSpec


class MimiState:
    """The state of `num_slots` independent streams, all fresh.

    `carries` maps a convolution's name to its last inputs, (num_slots, channels, context) float32.
    `keys[layer]` and `values[layer]` are (num_slots, capacity, num_key_value_heads, head_dim)
    float32, position p at index p % capacity, keys already rotated. `positions` (num_slots,) int64
    counts the transformer positions each slot has seen. `capacity` is the sliding window plus the
    positions of the largest chunk less one, so that a chunk overwrites nothing it still sees.
    """

    def __init__(
        self,
        spec: MimiSpec,
        convs: Iterable[Conv],
        num_slots: int,
        max_positions: int,
        device: torch.device | None = None,
    ) -> None:
        self.max_positions = max_positions
        self.window = spec.sliding_window
        self.capacity = spec.sliding_window + max_positions - 1
        ring = (num_slots, self.capacity, spec.num_key_value_heads, spec.head_dim)
        self.carries = {
            conv.name: torch.zeros(num_slots, conv.in_channels, conv.context, device=device)
            for conv in convs
            if conv.context
        }
        self.keys = [torch.zeros(ring, device=device) for _ in range(spec.num_hidden_layers)]
        self.values = [torch.zeros(ring, device=device) for _ in range(spec.num_hidden_layers)]
        self.positions = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._ring_index = torch.arange(self.capacity, device=device)

    def reset(self, rows: Tensor) -> None:
        """Makes the slots `rows` (R,) int64 fresh; the others keep their streams."""
        for tensor in (*self.carries.values(), *self.keys, *self.values, self.positions):
            tensor.index_fill_(0, rows, 0)

    def carry(self, name: str, rows: Tensor) -> Tensor:
        """(R, channels, context)"""
        return self.carries[name].index_select(0, rows)

    def keep(self, name: str, rows: Tensor, carry: Tensor) -> None:
        self.carries[name].index_copy_(0, rows, carry)

    def next_positions(self, rows: Tensor, count: int) -> Tensor:
        """The positions (R, count) int64 that the next `count` inputs of `rows` take."""
        if count > self.max_positions:
            raise ValueError(
                f"{count} positions in one chunk; this state takes at most {self.max_positions}"
            )
        return self.positions[rows, None] + torch.arange(count, device=rows.device)

    def advance(self, rows: Tensor, count: int) -> None:
        self.positions.index_add_(0, rows, torch.full_like(rows, count))

    def extend(
        self, layer: int, rows: Tensor, positions: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Writes keys and values (R, T, heads, head_dim); returns the rings (R, capacity, ...)."""
        where = (rows[:, None], positions % self.capacity)
        self.keys[layer].index_put_(where, keys)
        self.values[layer].index_put_(where, values)
        return self.keys[layer].index_select(0, rows), self.values[layer].index_select(0, rows)

    def visible(self, positions: Tensor) -> Tensor:
        """Which ring entries the queries at `positions` (R, T) see: (R, 1, T, capacity) bool.

        Key k is visible to query q iff q - window < k <= q, once the chunk itself is written.
        """
        last = positions[:, -1:]
        held = last - (last - self._ring_index) % self.capacity  # position at each index, < 0: none
        queries, held = positions[:, None, :, None], held[:, None, None, :]
        return (held <= queries) & (held > queries - self.window) & (held >= 0)
