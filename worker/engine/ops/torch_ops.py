"""The vocabulary in PyTorch: the reference, and what runs on CUDA. No op syncs with the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class TorchOps:
    """Implements `worker.engine.ops.Ops` on tensors of one device."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def embed(self, ids: Tensor, table: Tensor, first_row: int = 0) -> Tensor:
        return F.embedding(ids + first_row, table)

    def rows(self, table: Tensor, start: int, stop: int) -> Tensor:
        return table[start:stop].unsqueeze(0)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return weight * scaled.to(x.dtype)

    def split_heads(self, x: Tensor, counts: Sequence[int], head_dim: int) -> tuple[Tensor, ...]:
        heads = x.view(*x.shape[:2], -1, head_dim).transpose(1, 2)
        return torch.split(heads, list(counts), dim=1)

    def merge_heads(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)

    def triangle(self, rows: int) -> Tensor:
        return torch.ones(rows, rows, dtype=torch.bool, device=self._device).tril()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    def join(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat(list(parts), dim=axis)

    def stack(self, columns: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(columns), dim=1)

    def as_row(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1)

    def last_row(self, x: Tensor) -> Tensor:
        return x[:, -1]
