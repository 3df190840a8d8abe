"""Which device an engine runs on, and what happens when CUDA will not have it.

The one place where CUDA gives way to the CPU; whoever asks is told why. Knows the engine; knows
nothing of jobs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from worker.engine.engine import Engine, EngineConfig
from worker.precision import Asked, served_on

log = logging.getLogger(__name__)
Wanted = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class OpenEngine:
    """An engine that fits its device. `fallback` says what was not to be had, and why."""

    engine: Engine
    device: str
    fallback: str | None


def open_engine(
    build: Callable[[EngineConfig], Engine],
    config: EngineConfig,
    wanted: Wanted,
    precision: Asked = "auto",
    is_cuda_there: Callable[[], bool] = torch.cuda.is_available,
) -> OpenEngine:
    """Builds (not starts) an engine. Out of memory on CUDA means fewer slots, then the CPU."""
    if wanted == "cpu" or (wanted == "auto" and not is_cuda_there()):
        return OpenEngine(build(_on("cpu", config, precision)), "cpu", None)
    reason = "CUDA is not available to this PyTorch"
    if is_cuda_there():
        opened, reason = _open_on_cuda(build, config, precision)
        if opened is not None:
            return opened
    return fall_back(build, config, reason, precision)


def fall_back(
    build: Callable[[EngineConfig], Engine],
    config: EngineConfig,
    reason: str,
    precision: Asked = "auto",
) -> OpenEngine:
    """An engine on the CPU instead of CUDA; told of at WARNING and in the result."""
    fallback = f"{reason}; speaking on the CPU instead"
    log.warning("%s", fallback)
    return OpenEngine(build(_on("cpu", config, precision)), "cpu", fallback)


def is_device_fault(error: BaseException) -> bool:
    """Whether the device, rather than what was asked of it, made the engine fail."""
    return isinstance(error, torch.cuda.OutOfMemoryError | torch.AcceleratorError)


def _open_on_cuda(
    build: Callable[[EngineConfig], Engine],
    config: EngineConfig,
    precision: Asked,
) -> tuple[OpenEngine | None, str]:
    num_slots = config.num_slots
    while num_slots:
        try:
            engine = build(_on("cuda", replace(config, num_slots=num_slots), precision))
        except torch.cuda.OutOfMemoryError:
            num_slots //= 2
            log.warning("CUDA is out of memory; trying %d slots", num_slots)
        except RuntimeError as e:
            return None, f"CUDA failed ({str(e).splitlines()[0]})"
        else:
            fewer = f"{num_slots} of {config.num_slots} slots fit into the device's memory"
            is_less = num_slots < config.num_slots
            return OpenEngine(engine, "cuda:0", fewer if is_less else None), ""
    return None, "CUDA is out of memory even for one slot"


def _on(kind: str, config: EngineConfig, precision: Asked) -> EngineConfig:
    served = served_on(kind, precision)
    return replace(config, device=kind, backend=served.backend, precision=served.precision)
