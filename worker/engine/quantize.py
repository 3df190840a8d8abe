"""Weight-only quantisation: symmetric int8 per row, symmetric int4 per group of inputs.

Knows matrices; knows no model, file or backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Quantised = Literal["int8", "int4"]
GROUP = 128  # inputs that share an int4 scale
_LEVELS = {"int8": 127, "int4": 7}
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)  # clipping the largest weight of four bits pays for the rest


@dataclass(frozen=True)
class QuantisedMatrix:
    """`codes` times `scales` is the matrix (out, in).

    int8: codes (out, in) int8, scales (out, 1) float32. int4: codes (out, in / 2) uint8, two a
    byte, the first in the low half; scales (out, groups, 1) float32.
    """

    codes: Tensor
    scales: Tensor


def quantise(weight: Tensor, precision: Quantised) -> QuantisedMatrix:
    """weight (out, in) of any float dtype. int4 needs an even number of inputs."""
    rows, width = weight.shape
    if precision == "int8":
        codes, scales = _nearest(weight.float(), _LEVELS["int8"], (1.0,))
        return QuantisedMatrix(codes, scales)
    if width % 2:
        raise ValueError(f"int4 packs two inputs a byte; {width} is odd")
    groups = width // GROUP if width % GROUP == 0 else 1
    codes, scales = _nearest(weight.float().view(rows, groups, -1), _LEVELS["int4"], _SHRINKS)
    return QuantisedMatrix(_pack_pairs(codes.view(rows, width)), scales)


def dequantise(matrix: QuantisedMatrix) -> Tensor:
    """The matrix (out, in) in float32 that the codes stand for."""
    if matrix.codes.dtype == torch.int8:
        return matrix.codes.float() * matrix.scales
    codes = _unpack_pairs(matrix.codes)
    groups = matrix.scales.shape[1]
    return (codes.view(len(codes), groups, -1).float() * matrix.scales).view_as(codes)


def _nearest(weight: Tensor, levels: int, shrinks: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Codes int8 and scales of the last axis, by the least squared error over `shrinks`."""
    largest = weight.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    best_codes, best_scale = _rounded(weight, largest * shrinks[0] / levels, levels)
    best_error = _squared_error(weight, best_codes, best_scale)
    for shrink in shrinks[1:]:
        codes, scale = _rounded(weight, largest * shrink / levels, levels)
        error = _squared_error(weight, codes, scale)
        is_better = error < best_error
        best_codes = torch.where(is_better, codes, best_codes)
        best_scale = torch.where(is_better, scale, best_scale)
        best_error = torch.where(is_better, error, best_error)
    return best_codes, best_scale


def _rounded(weight: Tensor, scale: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    return (weight / scale).round().clamp(-levels, levels).to(torch.int8), scale


def _squared_error(weight: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    return (codes * scale - weight).square_().sum(dim=-1, keepdim=True)


def _pack_pairs(codes: Tensor) -> Tensor:
    nibbles = codes.view(torch.uint8) & 0xF
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def _unpack_pairs(packed: Tensor) -> Tensor:
    low, high = packed & 0xF, packed >> 4
    nibbles = torch.stack((low, high), dim=-1).flatten(1).to(torch.int8)
    return torch.where(nibbles > 7, nibbles - 16, nibbles)
