"""The small vocabulary in which the models are written, so that one definition has many backends.

Each backend (torch here; graph builders later) implements `Ops`. Between the ops a model only
reshapes, slices and adds.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Ops(Protocol):
    """Shapes: B batch, T rows, H heads, D head size. All results have the input's dtype."""

    def embed(self, ids: Tensor, table: Tensor) -> Tensor:
        """Rows of `table` (V, W) at `ids` (...): (..., W)."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (..., in) times weight (out, in) transposed: (..., out)."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x over its root mean square along the last axis, computed in float32, times weight."""

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate-half RoPE of x (B, H, T, D) by cos and sin (B, 1, T, D)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax attention with grouped heads: q (B, H, T, D), k and v (B, KH, S, D).

        `mask` is true where a row is seen; None lets all be seen.
        """

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up (Shazeer 2020, arXiv:2002.05202)."""
