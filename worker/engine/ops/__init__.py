"""The small vocabulary in which the language model is written, so that one definition has many
backends: PyTorch runs it eagerly, OpenVINO builds a graph from it.

A model is built of these operations alone, and never looks into an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Matrix = Any  # a weight as its backend keeps it: a tensor, or quantised codes with their scales


class Ops(Protocol[T]):
    """Shapes: B batch, T rows, H heads, D head size. All results have the input's dtype."""

    def add(self, x: T, y: T) -> T:
        """x plus y, of one shape."""

    def embed(self, ids: T, table: T, first_row: int = 0) -> T:
        """Rows `first_row` + `ids` (...) of `table` (V, W): (..., W)."""

    def rows(self, table: T, start: int, stop: int) -> T:
        """Rows `start` to `stop` of `table` (V, W) as a batch of one: (1, T, W)."""

    def linear(self, x: T, weight: Matrix) -> T:
        """x (..., in) times weight (out, in) transposed: (..., out)."""

    def rms_norm(self, x: T, weight: T, eps: float) -> T:
        """x over its root mean square along the last axis, computed in float32, times weight."""

    def split_heads(self, x: T, counts: Sequence[int], head_dim: int) -> tuple[T, ...]:
        """x (B, T, sum(counts) D) -> one (B, count, T, D) for each count."""

    def merge_heads(self, x: T) -> T:
        """x (B, H, T, D) -> (B, T, H D)."""

    def rotate(self, x: T, cos: T, sin: T) -> T:
        """Rotate-half RoPE of x (B, H, T, D) by cos and sin (B, T, D)."""

    def triangle(self, rows: int) -> T:
        """The causal mask (T, T) of `rows` new rows, true where a row is seen."""

    def attend(self, q: T, k: T, v: T, mask: T | None) -> T:
        """Softmax attention with grouped heads: q (B, H, T, D), k and v (B, KH, S, D).

        `mask` is true where a row is seen; None lets all be seen.
        """

    def swiglu(self, gate: T, up: T) -> T:
        """silu(gate) * up (Shazeer 2020, arXiv:2002.05202)."""

    def join(self, parts: Sequence[T], axis: int) -> T:
        """Arrays one after the other along `axis`."""

    def stack(self, columns: Sequence[T]) -> T:
        """(B,) each -> (B, number of columns)."""

    def as_row(self, x: T) -> T:
        """(B, W) -> (B, 1, W)."""

    def last_row(self, x: T) -> T:
        """(B, T, W) -> (B, W)."""
