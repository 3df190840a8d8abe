"""Keys and values of the backbone: one static place per slot, and copies of shared prefixes.

Knows shapes and bytes; knows nothing of what the rows mean.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from worker.engine.spec import TransformerSpec

# Takes the layer's index and its new keys and values (B, KH, T, D); returns all that may be seen.
Remember = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


class KvCache:
    """`keys` and `values`, (layers, slots, KV heads, positions + 1, D), allocated once.

    The last position is written by slots that do not speak, and never read.
    """

    def __init__(
        self, spec: TransformerSpec, num_slots: int, positions: int,
        dtype: torch.dtype, device: torch.device,
    ) -> None:  # fmt: skip
        shape = (spec.num_layers, num_slots, spec.num_kv_heads, positions + 1, spec.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def remember_rows(self, slot: int, start: int, stop: int) -> Remember:
        """For a prefill of one slot: its rows `start` to `stop` are new, those before are seen."""

        def remember(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            self.keys[layer, slot, :, start:stop] = k[0]
            self.values[layer, slot, :, start:stop] = v[0]
            seen = slice(slot, slot + 1), slice(None), slice(0, stop)
            return self.keys[layer][seen], self.values[layer][seen]

        return remember

    def remember_frame(self, positions: Tensor, span: int) -> Remember:
        """For one frame of every slot: row `positions[slot]` is new, the first `span` are read."""
        slots = torch.arange(len(positions), device=positions.device)

        def remember(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            keys, values = self.keys[layer], self.values[layer]
            keys[slots, :, positions] = k[:, :, 0]
            values[slots, :, positions] = v[:, :, 0]
            return keys[:, :, :span], values[:, :, :span]

        return remember

    def clear(self, slot: int) -> None:
        """A masked row weighs nothing, but nothing times a NaN is a NaN: none may stay behind."""
        self.keys[:, slot].zero_()
        self.values[:, slot].zero_()

    def copy_out(self, slot: int, rows: int) -> Tensor:
        """The first `rows` of a slot, (2, layers, KV heads, rows, D)."""
        part = slice(None), slot, slice(None), slice(0, rows)
        return torch.stack((self.keys[part], self.values[part]))

    def copy_in(self, slot: int, prefix: Tensor) -> None:
        rows = prefix.shape[3]
        self.keys[:, slot, :, :rows] = prefix[0]
        self.values[:, slot, :, :rows] = prefix[1]


class Kept(Protocol):
    """What a runner keeps of a prefix."""

    @property
    def nbytes(self) -> int: ...


P = TypeVar("P", bound=Kept)


class PrefixCache(Generic[P]):
    """Prefilled context, kept for the next utterance that starts with it; the oldest goes first.

    `on_drop` is told what goes.
    """

    def __init__(self, max_bytes: int, on_drop: Callable[[P], None] = lambda _: None) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.num_hits, self.num_misses = 0, 0
        self._on_drop = on_drop
        self._entries: OrderedDict[str, P] = OrderedDict()

    def get(self, key: str) -> P | None:
        entry = self._entries.get(key)
        if entry is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._entries.move_to_end(key)
        return entry

    def put(self, key: str, prefix: P) -> None:
        if prefix.nbytes > self.max_bytes or key in self._entries:
            self._on_drop(prefix)
            return
        self._entries[key] = prefix
        self.num_bytes += prefix.nbytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.nbytes
            self._on_drop(oldest)
