"""Which backend and precision serve a device: what was asked for, or a refusal with the way out.

Knows devices and what is installed; knows no model.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from typing import Literal

from worker.engine.backends import Backend, Precision
from worker.engine.errors import PrecisionUnavailable

log = logging.getLogger(__name__)
Asked = Literal["auto", "fp32", "bf16", "int8", "int4"]
QUANTISED = ("int8", "int4")
INSTALL = "pip install 'echoforge[cpu]'"


@dataclass(frozen=True)
class Served:
    backend: Backend
    precision: Precision


def has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


def served_on(kind: str, asked: Asked, is_openvino_there: bool | None = None) -> Served:
    """What `kind` ("cpu", "cuda") runs. Raises `PrecisionUnavailable`."""
    if kind != "cpu":
        return _on_cuda(asked)
    there = has_openvino() if is_openvino_there is None else is_openvino_there
    if asked == "auto" and not there:
        log.warning(
            "OpenVINO is not installed: speaking in fp32, several times slower; %s", INSTALL
        )
        return Served("torch", "fp32")
    if asked == "auto":
        return Served("openvino", "int8")
    if asked in QUANTISED and not there:
        raise PrecisionUnavailable(
            f"{asked} needs OpenVINO, which is not installed: {INSTALL},"
            " or set ECHOFORGE_PRECISION=fp32"
        )
    return Served("openvino" if asked in QUANTISED else "torch", asked)


def _on_cuda(asked: Asked) -> Served:
    if asked == "int8" or asked == "int4":
        raise PrecisionUnavailable(
            f"{asked} runs on the CPU only; set ECHOFORGE_PRECISION=auto (bf16 on CUDA),"
            " or ECHOFORGE_DEVICE=cpu"
        )
    return Served("torch", "bf16" if asked == "auto" else asked)
