"""The CSM: backbone, depth decoder and heads, written once against `Ops`.

Knows the model's own structure; knows nothing of slots, text, sampling, the codec, or how a weight
is stored. Math as in transformers' `models/csm` and SesameAILabs/csm `models.py`, which agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic

from worker.engine.ops import Ops, T
from worker.engine.spec import CsmSpec, TransformerSpec

# Takes the layer's index and its rotated q (B, H, T, D), k and v (B, KH, T, D); remembers k and v,
# and returns what the rows see of all that is remembered, (B, H, T, D).
Attend = Callable[[int, T, T, T], T]
# Takes logits (B, V) and the codebook's index; returns codes (B,).
Choose = Callable[[T, int], T]


class Transformer(Generic[T]):
    """One stack; its weights carry its `name`. The caller keeps keys and values."""

    def __init__(self, spec: TransformerSpec, name: str, w: Mapping[str, Any], ops: Ops[T]) -> None:
        self.spec, self.name, self.ops, self._w = spec, name, ops, w
        self._heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)

    def __call__(self, x: T, cos: T, sin: T, attend: Attend[T]) -> T:
        """x (B, T, W), rotated by cos and sin (B or 1, T, D) -> hidden states (B, T, W), normed."""
        for index in range(self.spec.num_layers):
            x = self.ops.add(x, self._mix(index, x, cos, sin, attend))
            x = self.ops.add(x, self._feed_forward(index, x))
        return self.ops.rms_norm(x, self._w[f"{self.name}.norm"], self.spec.eps)

    def _mix(self, index: int, x: T, cos: T, sin: T, attend: Attend[T]) -> T:
        ops = self.ops
        qkv = ops.linear(self._normed(index, "attention_norm", x), self._of(index, "qkv"))
        q, k, v = ops.split_heads(qkv, self._heads, self.spec.head_dim)
        seen = attend(index, ops.rotate(q, cos, sin), ops.rotate(k, cos, sin), v)
        return ops.linear(ops.merge_heads(seen), self._of(index, "out"))

    def _feed_forward(self, index: int, x: T) -> T:
        x = self._normed(index, "mlp_norm", x)
        gate, up = (self.ops.linear(x, self._of(index, part)) for part in ("gate", "up"))
        return self.ops.linear(self.ops.swiglu(gate, up), self._of(index, "down"))

    def _normed(self, index: int, norm: str, x: T) -> T:
        return self.ops.rms_norm(x, self._of(index, norm), self.spec.eps)

    def _of(self, index: int, part: str) -> Any:
        return self._w[f"{self.name}.{index}.{part}"]


class Csm(Generic[T]):
    """The whole model over weights named as in `weights.py`, in whatever form `ops` takes them."""

    def __init__(self, spec: CsmSpec, w: Mapping[str, Any], ops: Ops[T]) -> None:
        self.spec, self.ops, self.w = spec, ops, w
        self.backbone = Transformer(spec.backbone, "backbone", w, ops)
        self.depth = Transformer(spec.depth, "depth", w, ops)

    def read(self, rows: T, positions: T, attend: Attend[T]) -> T:
        """Backbone rows (B, T, W) at `positions` (B, T) -> hidden states (B, T, W)."""
        cos = self.ops.embed(positions, self.w["backbone.cos"])
        sin = self.ops.embed(positions, self.w["backbone.sin"])
        return self.backbone(rows, cos, sin, attend)

    def speak_frame(self, hidden: T, choose: Choose[T]) -> T:
        """One 80 ms frame: hidden (B, W) of the last backbone row -> codes (B, K).

        The depth decoder starts afresh: rows [hidden, emb(c0)] first, then one row a codebook.
        """
        ops, w = self.ops, self.w
        codes = [choose(ops.linear(hidden, w["first_head"]), 0)]
        attend = _FreshMemory(ops, self.depth.spec.num_layers)
        first = ops.as_row(ops.linear(hidden, w["projection"]))
        rows = ops.join([first, self._code_row(codes[0], 0)], axis=1)
        start = 0
        for codebook in range(1, self.spec.num_codebooks):
            cos = ops.rows(w["depth.cos"], start, codebook + 1)
            sin = ops.rows(w["depth.sin"], start, codebook + 1)
            last = ops.last_row(self.depth(rows, cos, sin, attend))
            codes.append(choose(ops.linear(last, w[f"heads.{codebook - 1}"]), codebook))
            if codebook < self.spec.num_codebooks - 1:
                rows, start = self._code_row(codes[-1], codebook), codebook + 1
        return ops.stack(codes)

    def _code_row(self, code: T, codebook: int) -> T:
        first_row = codebook * self.spec.audio_vocab
        return self.ops.as_row(self.ops.embed(code, self.w["depth_table"], first_row))


class _FreshMemory(Generic[T]):
    """Keys and values of one frame's depth passes: they grow row by row, and go with the frame."""

    def __init__(self, ops: Ops[T], num_layers: int) -> None:
        self._ops = ops
        self._seen: list[tuple[T, T] | None] = [None] * num_layers

    def __call__(self, layer: int, q: T, k: T, v: T) -> T:
        past, mask = self._seen[layer], None
        if past is None:
            mask = self._ops.triangle(2)  # the first pass brings two rows
        else:
            k = self._ops.join([past[0], k], axis=2)
            v = self._ops.join([past[1], v], axis=2)
        self._seen[layer] = (k, v)
        return self._ops.attend(q, k, v, mask)
