"""The vocabulary in OpenVINO: each operation adds nodes to a graph, which is compiled afterwards.

A dimension written -1 is the batch's, where a graph leaves it open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import Node
from openvino import opset15 as op
from torch import Tensor

from worker.engine.quantize import QuantisedMatrix
from worker.engine.sampling import GREEDY_BELOW

_LEAST = np.float32(np.finfo(np.float32).min)


@dataclass(frozen=True)
class ConstantMatrix:
    """A weight (out, in) as constants of a graph: one copy, however often it is used."""

    codes: Node
    scales: Node | None
    shape: tuple[int, int]

    def as_node(self) -> Node:
        """float32, decompressed where it is used; the compiler fuses that into the product."""
        if self.scales is None:
            return self.codes
        wide = op.multiply(op.convert(self.codes, ov.Type.f32), self.scales)
        return wide if len(wide.shape) == 2 else op.reshape(wide, list(self.shape), False)


def constant_matrix(weight: Tensor | QuantisedMatrix) -> ConstantMatrix:
    """Takes the tensors' memory as it is: nothing is copied, so they must live as long."""
    if isinstance(weight, Tensor):
        rows, width = weight.shape
        return ConstantMatrix(_shared(weight.numpy()), None, (rows, width))
    codes, scales = weight.codes.numpy(), weight.scales.numpy()
    rows, width = codes.shape
    if codes.dtype == np.int8:
        return ConstantMatrix(_shared(codes), _shared(scales), (rows, width))
    groups = scales.shape[1]
    shape = ov.Shape([rows, groups, 2 * width // groups])
    nibbles = op.constant(ov.Tensor(codes, shape, ov.Type.i4), shared_memory=True)
    return ConstantMatrix(nibbles, _shared(scales), (rows, 2 * width))


def constant(values: Any, dtype: npt.DTypeLike) -> Node:
    return op.constant(np.asarray(values, dtype))


def _shared(values: npt.NDArray[Any]) -> Node:
    return op.constant(values, shared_memory=True)


def _ints(*values: int) -> Node:
    return constant(values, np.int64)


class OpenvinoOps:
    """Implements `worker.engine.ops.Ops` on graph nodes."""

    def add(self, x: Node, y: Node) -> Node:
        return op.add(x, y)

    def embed(self, ids: Node, table: Node, first_row: int = 0) -> Node:
        if first_row:
            ids = op.add(ids, constant(first_row, np.int32))
        return op.gather(table, ids, constant(0, np.int32))

    def rows(self, table: Tensor, start: int, stop: int) -> Node:
        return op.constant(table[start:stop].unsqueeze(0).numpy())

    def linear(self, x: Node, weight: ConstantMatrix) -> Node:
        return op.matmul(x, weight.as_node(), False, True)

    def rms_norm(self, x: Node, weight: Node, eps: float) -> Node:
        square = op.reduce_mean(op.power(x, constant(2.0, np.float32)), _ints(-1), True)
        root = op.sqrt(op.add(square, constant(eps, np.float32)))
        return op.multiply(op.multiply(x, op.divide(constant(1.0, np.float32), root)), weight)

    def split_heads(self, x: Node, counts: Sequence[int], head_dim: int) -> tuple[Node, ...]:
        rows = _size(x, 1)
        heads = op.reshape(x, _ints(-1, rows, sum(counts), head_dim), False)
        heads = op.transpose(heads, _ints(0, 2, 1, 3))
        bounds = np.cumsum([0, *counts])
        return tuple(
            op.slice(heads, _ints(a), _ints(b), _ints(1), _ints(1)) for a, b in pairwise(bounds)
        )

    def merge_heads(self, x: Node) -> Node:
        heads, rows, head_dim = _size(x, 1), _size(x, 2), _size(x, 3)
        x = op.transpose(x, _ints(0, 2, 1, 3))
        return op.reshape(x, _ints(-1, rows, heads * head_dim), False)

    def rotate(self, x: Node, cos: Node, sin: Node) -> Node:
        half = _size(x, 3) // 2
        first = op.slice(x, _ints(0), _ints(half), _ints(1), _ints(3))
        second = op.slice(x, _ints(half), _ints(2 * half), _ints(1), _ints(3))
        turned = op.concat([op.multiply(second, constant(-1.0, np.float32)), first], 3)
        cos, sin = op.unsqueeze(cos, _ints(1)), op.unsqueeze(sin, _ints(1))
        return op.add(op.multiply(x, cos), op.multiply(turned, sin))

    def triangle(self, rows: int) -> Node:
        return op.constant(np.tri(rows, dtype=bool))

    def attend(self, q: Node, k: Node, v: Node, mask: Node | None) -> Node:
        heads, rows, head_dim = _size(q, 1), _size(q, 2), _size(q, 3)
        kv_heads = _size(k, 1)
        group = heads // kv_heads
        q = op.reshape(q, _ints(-1, kv_heads, group * rows, head_dim), False)
        q = op.multiply(q, constant(head_dim**-0.5, np.float32))
        scores = op.matmul(q, k, False, True)
        if mask is not None:
            tiled = op.tile(mask, _ints(group, 1))
            scores = op.select(tiled, scores, constant(_LEAST, np.float32))
        mixed = op.matmul(op.softmax(scores, -1), v, False, False)
        return op.reshape(mixed, _ints(-1, heads, rows, head_dim), False)

    def swiglu(self, gate: Node, up: Node) -> Node:
        return op.multiply(op.swish(gate), up)

    def join(self, parts: Sequence[Node], axis: int) -> Node:
        return op.concat(list(parts), axis)

    def stack(self, columns: Sequence[Node]) -> Node:
        return op.concat([op.unsqueeze(column, _ints(1)) for column in columns], 1)

    def as_row(self, x: Node) -> Node:
        return op.unsqueeze(x, _ints(1))

    def last_row(self, x: Node) -> Node:
        rows = _size(x, 1)
        return op.gather(x, constant(rows - 1, np.int32), constant(1, np.int32))

    def choose(
        self, logits: Node, noise: Node, temperature: Node, top_k: Node, max_top_k: int, codes: int
    ) -> Node:
        """`worker.engine.sampling.choose` as a graph; top_k (B,) and the codes (B,) are int32."""
        logits = op.slice(logits, _ints(0), _ints(codes), _ints(1), _ints(1))
        noise = op.slice(noise, _ints(0), _ints(codes), _ints(1), _ints(1))
        limit = min(max_top_k, codes)
        kept = op.topk(logits, constant(limit, np.int32), 1, "max", "value").output(0)
        place = op.minimum(top_k, constant(limit, np.int32))
        place = op.unsqueeze(op.subtract(place, constant(1, np.int32)), _ints(1))
        kth = op.gather_elements(kept, place, 1)
        heat = op.unsqueeze(temperature, _ints(1))
        is_hot = op.greater(heat, constant(GREEDY_BELOW, np.float32))
        race = op.divide(logits, op.select(is_hot, heat, constant(1.0, np.float32)))
        race = op.subtract(race, op.log(noise))
        race = op.select(op.less(logits, kth), constant(_LEAST, np.float32), race)
        return _first_best(op.select(is_hot, race, logits), codes)


def _first_best(values: Node, count: int) -> Node:
    """The index (B,) int32 of each row's best of `count`; of equals the first, as PyTorch takes it.

    OpenVINO's own top-k takes any of equals, and its stable one is many times slower.
    """
    places = constant(np.arange(count)[None], np.float32)
    is_best = op.equal(values, op.reduce_max(values, _ints(1), True))
    beyond = constant(count, np.float32)
    return op.convert(op.reduce_min(op.select(is_best, places, beyond), _ints(1)), ov.Type.i32)


def _size(x: Node, axis: int) -> int:
    return int(x.get_output_partial_shape(0)[axis].get_length())
