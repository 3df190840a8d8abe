"""Which runner serves a device and precision, and whether it fits. Knows no settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import torch

from worker.engine.checkpoint import Checkpoint
from worker.engine.memory import check_memory, free_memory, openvino_bytes, torch_bytes
from worker.engine.pack import PackPrecision
from worker.engine.runner import Runner
from worker.engine.torch_runner import TorchRunner, torch_model

Backend = Literal["torch", "openvino"]
Precision = PackPrecision | Literal["bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
        need = torch_bytes if backend == "torch" else openvino_bytes
        spec, positions = checkpoint.spec, room["max_positions"]
        check_memory(
            lambda slots: need(spec, precision, slots, positions), room["num_slots"], free_memory()
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
