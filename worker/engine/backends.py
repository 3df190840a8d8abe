"""Which runner serves a device and precision, and whether it fits. Knows both; knows no settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Literal, TypedDict

import torch
from typing_extensions import Unpack

from worker.engine.checkpoint import Checkpoint
from worker.engine.memory import check_memory, free_memory
from worker.engine.pack import PackPrecision
from worker.engine.runner import Runner
from worker.engine.spec import CsmSpec
from worker.engine.torch_runner import TorchRunner, torch_model
from worker.engine.weights import BACKBONE, csm_shapes

Backend = Literal["torch", "openvino"]
Precision = PackPrecision | Literal["bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BYTES = {
    "fp32": 4.0,
    "bf16": 2.0,
    "int8": 1.0,
    "int4": 0.54,
}  # a weight, its share of scales included
PASS_BYTES = 2_400_000  # what a compiled graph keeps for one layer of one depth pass, measured
PROCESS_BYTES = 700_000_000  # libraries, the codec and its buffers, measured


class Room(TypedDict):
    """How much a runner is to hold."""

    num_slots: int
    max_positions: int
    prefix_cache_bytes: int


def open_runner(
    checkpoint: Checkpoint,
    backend: Backend,
    precision: Precision,
    *,
    device: str,
    pack_dir: Path | None,
    num_threads: int,
    **room: Unpack[Room],
) -> Runner:
    """Raises `MemoryTooSmall` (on the CPU; CUDA tells by failing) and `PackInvalid`."""
    if device == "cpu":
        check_memory(
            lambda n: bytes_needed(checkpoint.spec, backend, precision, n, room["max_positions"]),
            room["num_slots"],
            free_memory(),
        )
    num_codes = checkpoint.codec_spec.codebook_size
    if backend == "openvino":
        from worker.engine.openvino_runner import OpenvinoRunner, openvino_model

        assert precision != "bf16"
        graphs = openvino_model(checkpoint, precision, pack_dir, num_threads)
        return OpenvinoRunner(graphs, **room)
    weights = _Cast(checkpoint.weights, torch.device(device), DTYPES[precision])
    model = torch_model(checkpoint.spec, weights)
    return TorchRunner(model, num_codes=num_codes, **room)


def bytes_needed(
    spec: CsmSpec, backend: Backend, precision: Precision, num_slots: int, max_positions: int
) -> int:
    """An estimate for the CPU: weights, compiled graphs, and slots with every position in use."""
    sizes = {name: prod(shape) for name, shape in csm_shapes(spec).items() if len(shape) > 1}
    backbone = sum(n for name, n in sizes.items() if name.startswith(f"{BACKBONE}layers"))
    tables = sum(n for name, n in sizes.items() if "embed" in name and "projector" not in name)
    frame = sum(sizes.values()) - backbone - tables
    rows = num_slots * min(max_positions, spec.backbone.max_positions)
    row_values = 2 * spec.backbone.num_layers * spec.backbone.num_kv_heads * spec.backbone.head_dim
    if backend == "torch":
        weights = (backbone + tables + frame) * BYTES[precision]
        return int(PROCESS_BYTES + weights + rows * row_values * BYTES[precision])
    from worker.engine.openvino_runner import buckets

    passes = spec.depth.num_layers * (spec.num_codebooks - 1)
    graph = frame * BYTES[precision] + passes * PASS_BYTES
    weights = backbone * BYTES[precision] + len(buckets(num_slots)) * graph
    return int(PROCESS_BYTES + weights + rows * row_values * 4)


class _Cast(Mapping[str, torch.Tensor]):
    """Weights moved one at a time as they are asked for, so that two whole copies never coexist."""

    def __init__(
        self, weights: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._weights, self._device, self._dtype = weights, device, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._weights[name].to(self._device, self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
