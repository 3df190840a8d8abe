"""MimiState: what streaming Mimi remembers between two calls, one row a slot.

Static tensors only: what each convolution carries over, and a ring of keys and values per
transformer layer. Knows positions and the sliding window; knows nothing about weights or audio.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.mimi_spec import Conv, MimiSpec


class Memory(Protocol):
    """What the layers see of the past, and where they leave what they will need, in one call."""

    @property
    def positions(self) -> Tensor:
        """The transformer positions (R, T) int64 of the call."""

    def joined(self, name: str, x: Tensor) -> Tensor:
        """x (R, steps, channels) behind what the convolution carried over; keeps the new end."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Remembers key and value (R, KH, T, D); what query (R, H, T, D) sees: (R, H, T, D)."""


class MimiState:
    """The state of `num_slots` independent streams, all fresh.

    `carries` maps a convolution's name to its last inputs, (num_slots, steps, channels) float32.
    `keys[layer]` and `values[layer]` are (num_slots, num_key_value_heads, capacity, head_dim)
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
        ring = (num_slots, spec.num_key_value_heads, self.capacity, spec.head_dim)
        self.carries = {
            conv.name: torch.zeros(num_slots, *carry_shape(conv), device=device)
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

    def next_positions(self, rows: Tensor, count: int) -> Tensor:
        """The positions (R, count) int64 that the next `count` inputs of `rows` take."""
        if count > self.max_positions:
            raise ValueError(
                f"{count} positions in one chunk; this state takes at most {self.max_positions}"
            )
        return self.positions[rows, None] + torch.arange(count, device=rows.device)

    def advance(self, rows: Tensor, count: int) -> None:
        self.positions.index_add_(0, rows, torch.full_like(rows, count))

    def visible(self, positions: Tensor, last: Tensor) -> Tensor:
        """Which ring entries the queries at `positions` (R, T) see: (R, 1, T, capacity) bool.

        `last` (R, 1) is the position written last, -1 if none was. Key k is visible to query q iff
        q - window < k <= q.
        """
        held = last - (last - self._ring_index) % self.capacity  # position at each index, < 0: none
        held = held[:, None, None, :]
        return in_window(positions[:, None, :, None], held, self.window) & (held >= 0)


class Turn:
    """One call's `Memory` of the slots `rows`, which writes to their state as it goes.

    The positions count as seen once `state.advance` has been called.
    """

    def __init__(self, state: MimiState, rows: Tensor, count: int) -> None:
        self._state, self._rows = state, rows
        self._positions = state.next_positions(rows, count)
        self._visible = state.visible(self._positions, self._positions[:, -1:])

    @property
    def positions(self) -> Tensor:
        return self._positions

    def joined(self, name: str, x: Tensor) -> Tensor:
        carry = self._state.carries[name]
        x = torch.cat([carry.index_select(0, self._rows), x], dim=1)
        carry.index_copy_(0, self._rows, x[:, -carry.shape[1] :])
        return x

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            query,
            self._extended(self._state.keys[layer], key),
            self._extended(self._state.values[layer], value),
            attn_mask=self._visible,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _extended(self, ring: Tensor, new: Tensor) -> Tensor:
        """Writes (R, KH, T, D) into the ring; returns the rings of the rows."""
        index = self._positions % self._state.capacity
        ring.transpose(1, 2).index_put_((self._rows[:, None], index), new.transpose(1, 2))
        return ring.index_select(0, self._rows)


def carry_shape(conv: Conv) -> tuple[int, int]:
    """Steps and channels of what a convolution carries over; a stride of inputs is one step."""
    if conv.is_transposed:
        return conv.context, conv.in_channels
    return conv.context // conv.stride, conv.in_channels * conv.stride


def in_window(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Whether a query sees a key, by their positions."""
    return (keys <= queries) & (keys > queries - window)
