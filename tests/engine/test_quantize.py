from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from openvino import opset15 as op
from torch import Tensor

from worker.engine.ops.openvino_ops import OpenvinoOps, constant_matrix
from worker.engine.quantize import GROUP, Quantised, QuantisedMatrix, dequantise, quantise

SLACK = 1 + 1e-5  # a scale is itself rounded
BOTH = pytest.mark.parametrize("precision", ["int8", "int4"])
WIDTHS = [2, 6, 96, GROUP, GROUP + 2, 2 * GROUP, 3 * GROUP]

weights = (
    st.sampled_from(WIDTHS)
    .flatmap(
        lambda width: arrays(
            np.float32, (3, width), elements=st.floats(-1e3, 1e3, width=32), fill=st.just(0.25)
        )
    )
    .map(torch.from_numpy)
)
unhurried = settings(deadline=None, max_examples=200)


def random_matrix(rows: int, width: int, seed: int = 0) -> Tensor:
    """Normal, with the outliers that trained weights have."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator) / width**0.5
    weight[torch.rand(rows, width, generator=generator) < 0.01] *= 6
    return weight


def step_of_each(matrix: QuantisedMatrix, width: int) -> Tensor:
    """The scale that applies to each element, (out, in)."""
    scales = matrix.scales.flatten(1)
    return scales.repeat_interleave(width // scales.shape[1], dim=1)


@given(weight=weights)
@unhurried
def test_int8_is_off_by_half_a_step_at_most(weight: Tensor) -> None:
    matrix = quantise(weight, "int8")
    error = (dequantise(matrix) - weight).abs()
    assert (error <= matrix.scales / 2 * SLACK).all()
    assert torch.allclose(matrix.scales[:, 0] * 127, weight.abs().amax(1), rtol=1e-5, atol=1e-36)


@given(weight=weights)
@unhurried
def test_int4_is_off_by_half_a_step_or_by_what_was_clipped(weight: Tensor) -> None:
    matrix = quantise(weight, "int4")
    step = step_of_each(matrix, weight.shape[1])
    allowed = torch.maximum(step / 2, weight.abs() - 7 * step)
    assert ((dequantise(matrix) - weight).abs() <= allowed * SLACK).all()


@given(weight=weights)
@unhurried
def test_int4_clips_a_fifth_of_the_largest_weight_at_most(weight: Tensor) -> None:
    matrix = quantise(weight, "int4")
    largest = weight.view(3, matrix.scales.shape[1], -1).abs().amax(-1, keepdim=True)
    assert (matrix.scales * 7 <= largest * SLACK + 1e-36).all()
    assert (matrix.scales * 7 * SLACK >= largest * 0.8).all()


def squared_errors(kept: Tensor, weight: Tensor, groups: int) -> Tensor:
    return (kept - weight).double().view(len(weight), groups, -1).square().sum(-1)


def plainly_rounded(weight: Tensor, groups: int) -> Tensor:
    """Four bits without a search: the largest weight of a group is 7."""
    grouped = weight.view(len(weight), groups, -1)
    scale = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 7
    return ((grouped / scale).round() * scale).view_as(weight)


@given(weight=weights)
@unhurried
def test_the_search_over_clipping_never_loses_to_plain_rounding(weight: Tensor) -> None:
    matrix = quantise(weight, "int4")
    groups = matrix.scales.shape[1]
    ours = squared_errors(dequantise(matrix), weight, groups)
    plain = squared_errors(plainly_rounded(weight, groups), weight, groups)
    assert (ours <= plain * (1 + 1e-4) + 1e-30).all()


@pytest.mark.parametrize("width", [96, GROUP, 4 * GROUP])
def test_the_search_over_clipping_mostly_wins(width: int) -> None:
    weight = random_matrix(200, width)
    matrix = quantise(weight, "int4")
    groups = matrix.scales.shape[1]
    ours = squared_errors(dequantise(matrix), weight, groups)
    plain = squared_errors(plainly_rounded(weight, groups), weight, groups)
    assert (ours < 0.98 * plain).float().mean() > 0.5


def test_int4_puts_the_first_of_two_inputs_into_the_low_half() -> None:
    weight = torch.tensor([[7.0, -7.0, 1.0, 0.0], [-1.0, 2.0, 7.0, -3.0]])
    matrix = quantise(weight, "int4")
    assert matrix.codes.dtype == torch.uint8
    assert matrix.codes.tolist() == [[0x97, 0x01], [0x2F, 0xD7]]
    assert torch.equal(dequantise(matrix), weight)


def test_every_four_bit_code_comes_back() -> None:
    weight = torch.arange(-7.0, 8.0).repeat(2)[None] * 0.5
    assert torch.allclose(dequantise(quantise(weight, "int4")), weight, rtol=1e-6)


@BOTH
def test_a_row_of_zeros_stays_zero_and_leaves_the_others_alone(precision: Quantised) -> None:
    weight = random_matrix(4, 2 * GROUP)
    weight[1] = 0
    weight[2, :GROUP] = 0
    matrix = quantise(weight, precision)
    kept = dequantise(matrix)
    assert torch.isfinite(matrix.scales).all()
    assert (matrix.scales > 0).all()
    assert not kept[1].any()
    assert not kept[2, :GROUP].any()
    assert torch.equal(kept[[0, 3]], dequantise(quantise(weight[[0, 3]], precision)))


def test_an_odd_width_is_refused_for_int4_alone() -> None:
    weight = random_matrix(2, 7)
    with pytest.raises(ValueError, match="7 is odd"):
        quantise(weight, "int4")
    assert dequantise(quantise(weight, "int8")).shape == (2, 7)


@pytest.mark.parametrize(
    ("width", "groups"),
    [(2, 1), (96, 1), (GROUP, 1), (GROUP + 2, 1), (160, 1), (448, 1), (256, 2), (768, 6)],
)
def test_inputs_share_a_scale_by_the_group_or_else_by_the_row(width: int, groups: int) -> None:
    matrix = quantise(random_matrix(3, width), "int4")
    assert matrix.scales.shape == (3, groups, 1)
    assert matrix.codes.shape == (3, width // 2)
    assert quantise(random_matrix(3, width), "int8").scales.shape == (3, 1)


def test_a_group_does_not_see_the_outlier_of_the_next() -> None:
    weight = random_matrix(2, 2 * GROUP)
    alone = dequantise(quantise(weight, "int4"))
    weight[:, -1] = 1000.0
    beside = dequantise(quantise(weight, "int4"))
    assert torch.equal(alone[:, :GROUP], beside[:, :GROUP])
    assert not beside[:, GROUP:-1].any()


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrower_checkpoint_gives_what_its_values_give_in_float32(
    precision: Quantised, dtype: torch.dtype
) -> None:
    weight = random_matrix(5, 256).to(dtype)
    narrow, wide = quantise(weight, precision), quantise(weight.float(), precision)
    assert torch.equal(narrow.codes, wide.codes)
    assert torch.equal(narrow.scales, wide.scales)


def product(matrix: Tensor | QuantisedMatrix, width: int, x: np.ndarray) -> np.ndarray:
    """x times the matrix, by a compiled graph whose activations stay as they are."""
    rows = op.parameter([-1, 1, width], ov.Type.f32)
    graph = ov.Model([op.result(OpenvinoOps().linear(rows, constant_matrix(matrix)))], [rows])
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    compiled = ov.Core().compile_model(graph, "CPU", options)
    result: np.ndarray = compiled(x[:, None])[0][:, 0]
    return result


@BOTH
@pytest.mark.parametrize("width", [GROUP, 160, 2 * GROUP, 8 * GROUP])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_a_graph_multiplies_by_the_matrix_that_the_codes_stand_for(
    precision: Quantised, width: int, num_rows: int
) -> None:
    matrix = quantise(random_matrix(48, width), precision)
    x = np.random.default_rng(width).standard_normal((num_rows, width)).astype(np.float32)
    expected = x.astype(np.float64) @ dequantise(matrix).double().numpy().T
    assert np.abs(product(matrix, width, x) - expected).max() < 1e-5
    assert expected.std() > 0.3


def test_a_graph_multiplies_by_an_unquantised_matrix_too() -> None:
    weight = random_matrix(48, 160)
    x = np.random.default_rng(1).standard_normal((3, 160)).astype(np.float32)
    expected = x.astype(np.float64) @ weight.double().numpy().T
    assert np.abs(product(weight, 160, x) - expected).max() < 1e-5
