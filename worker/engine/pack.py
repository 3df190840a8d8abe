"""A model's weights, packed once for a precision and kept in a file beside the other data.

The file is named after the checkpoint's fingerprint and the precision, written whole or not at all,
and mapped into memory, not read. Knows names, files and quantisation; knows no backend.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.engine.checkpoint import Checkpoint
from worker.engine.errors import PackInvalid
from worker.engine.quantize import Quantised, QuantisedMatrix, quantise
from worker.engine.spec import CsmSpec
from worker.engine.weights import Weights, depth_table, matrices, vectors

log = logging.getLogger(__name__)
VERSION = "2"  # of names and layout: raise it when either changes, and all is packed anew
CODES, SCALES = ".codes", ".scales"
_SAMPLE = 4096  # bytes of a tensor's start, middle and end that go into the fingerprint

PackPrecision = Literal["fp32"] | Quantised
Pack = Mapping[str, "Tensor | QuantisedMatrix"]


def fingerprint(weights: Weights) -> str:
    """Names the values: every tensor's name, shape, dtype, and three pieces of its bytes.

    Not a checksum: it tells checkpoints apart, in milliseconds, without reading gigabytes.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        raw = tensor.contiguous().view(-1).view(torch.uint8)
        middle = len(raw) // 2
        for start in (0, middle, max(0, len(raw) - _SAMPLE)):
            digest.update(raw[start : start + _SAMPLE].numpy().tobytes())
    return digest.hexdigest()


def open_pack(checkpoint: Checkpoint, precision: PackPrecision, directory: Path | None) -> Pack:
    """The checkpoint's pack: from `directory` when it is there, else made, and kept there.

    fp32 is never kept: it is the checkpoint itself. Raises `PackInvalid` for a file that is not
    what its name says.
    """
    if directory is None or precision == "fp32":
        return dict(make_pack(checkpoint.spec, checkpoint.weights, precision))
    directory = directory.expanduser()
    mark = fingerprint(checkpoint.weights)
    file = directory / f"{checkpoint.name}-{mark[:16]}-{precision}-v{VERSION}.safetensors"
    if not file.exists():
        _write(file, make_pack(checkpoint.spec, checkpoint.weights, precision), mark, precision)
    return _read(file, mark, precision)


def make_pack(
    spec: CsmSpec, weights: Weights, precision: PackPrecision
) -> Iterator[tuple[str, Tensor | QuantisedMatrix]]:
    """Each matrix in `precision`; norms, rotations and the depth table in float32."""
    wide = _Wide(weights)
    for name, matrix in matrices(spec, weights):
        yield name, _packed(matrix, precision)
    yield from vectors(spec, wide)
    yield "depth_table", depth_table(spec, wide)


def _packed(matrix: Tensor, precision: PackPrecision) -> Tensor | QuantisedMatrix:
    return matrix.float() if precision == "fp32" else quantise(matrix, precision)


def _write(
    file: Path,
    pack: Iterator[tuple[str, Tensor | QuantisedMatrix]],
    mark: str,
    precision: PackPrecision,
) -> None:
    began = time.monotonic()
    log.info("packing the weights in %s, once for this checkpoint: %s", precision, file)
    tensors: dict[str, Tensor] = {}
    for name, part in pack:
        if isinstance(part, QuantisedMatrix):
            tensors |= {name + CODES: part.codes, name + SCALES: part.scales}
        else:
            tensors[name] = part.contiguous()
    try:
        _save(file, tensors, {"fingerprint": mark, "precision": precision})
    except (OSError, SafetensorError) as e:
        size = sum(tensor.nbytes for tensor in tensors.values()) / 1e9
        raise PackInvalid(
            f"the packed weights cannot be written to {file.parent} ({e}); they need"
            f" {size:.1f} GB there: make room, or set ECHOFORGE_DATA_DIR"
        ) from e
    log.info("packed in %.0f s, %.2f GB", time.monotonic() - began, file.stat().st_size / 1e9)


def _save(file: Path, tensors: dict[str, Tensor], told: dict[str, str]) -> None:
    """Whole or not at all; of several that write at once, any one's file stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=file.parent)
    os.close(handle)
    draft = Path(name)
    try:
        save_file(tensors, draft, told)
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _read(file: Path, mark: str, precision: PackPrecision) -> Pack:
    again = f"delete {file}, and it is made again"
    try:
        with safe_open(file, framework="pt") as opened:
            told = opened.metadata() or {}
        tensors = load_file(file)  # mapped, not read
    except (SafetensorError, OSError) as e:
        raise PackInvalid(f"the packed weights are damaged ({e}); {again}") from e
    if told.get("fingerprint") != mark or told.get("precision") != precision:
        raise PackInvalid(f"the packed weights are of another checkpoint or precision; {again}")
    scales = {n.removesuffix(SCALES): t for n, t in tensors.items() if n.endswith(SCALES)}
    plain = {n: t for n, t in tensors.items() if not n.endswith((CODES, SCALES))}
    return plain | {n: QuantisedMatrix(tensors[n + CODES], s) for n, s in scales.items()}


class _Wide(Mapping[str, Tensor]):
    """Weights in float32, one at a time."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name].float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
