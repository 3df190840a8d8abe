from __future__ import annotations

import logging

import pytest

from worker.engine.errors import PrecisionUnavailable
from worker.precision import Asked, Served, served_on


@pytest.mark.parametrize(
    ("kind", "asked", "served"),
    [
        ("cpu", "auto", Served("openvino", "int8")),
        ("cpu", "int4", Served("openvino", "int4")),
        ("cpu", "bf16", Served("torch", "bf16")),
        ("cpu", "fp32", Served("torch", "fp32")),
        ("cuda", "auto", Served("torch", "bf16")),
        ("cuda", "fp32", Served("torch", "fp32")),
    ],
)
def test_each_device_serves_what_was_asked(kind: str, asked: Asked, served: Served) -> None:
    assert served_on(kind, asked, is_openvino_there=True) == served


def test_without_openvino_auto_speaks_with_pytorch_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert served_on("cpu", "auto", is_openvino_there=False) == Served("torch", "fp32")
    assert "OpenVINO is not installed" in caplog.text
    assert "pip install" in caplog.text


def test_without_openvino_a_quantised_precision_is_refused_with_the_way_out() -> None:
    with pytest.raises(PrecisionUnavailable, match=r"int4 needs OpenVINO.*pip install"):
        served_on("cpu", "int4", is_openvino_there=False)
    assert served_on("cpu", "bf16", is_openvino_there=False) == Served("torch", "bf16")


@pytest.mark.parametrize("asked", ["int8", "int4"])
def test_quantised_weights_are_refused_on_cuda(asked: Asked) -> None:
    with pytest.raises(PrecisionUnavailable, match=r"runs on the CPU only.*ECHOFORGE_DEVICE=cpu"):
        served_on("cuda", asked)
