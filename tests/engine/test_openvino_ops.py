"""The vocabulary in OpenVINO against the one in PyTorch, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import Node
from openvino import opset15 as op
from torch import Tensor

from worker.engine.ops.openvino_ops import OpenvinoOps, constant_matrix
from worker.engine.ops.torch_ops import TorchOps
from worker.engine.sampling import NoiseSource, choose

OURS, THEIRS = OpenvinoOps(), TorchOps()
VOCAB, CODES = 2051, 2048  # of CSM: the last three are reserved
OPTIONS: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
Built = Node | tuple[Node, ...]
Run = Callable[..., list[np.ndarray]]


@pytest.fixture(params=[False, True], ids=["fixed", "open"])
def run(request: pytest.FixtureRequest) -> Run:
    """Builds a graph of its inputs, compiles and runs it; their batch is fixed, or left open."""

    def build_and_run(build: Callable[..., Built], *arrays: Tensor) -> list[np.ndarray]:
        return run_graph(build, *arrays, is_open=request.param)

    return build_and_run


def run_graph(build: Callable[..., Built], *arrays: Tensor, is_open: bool) -> list[np.ndarray]:
    compiled = compile_graph(build, *arrays, is_open=is_open)
    results = compiled([array.numpy() for array in arrays])
    return [results[index] for index in range(len(compiled.outputs))]


def compile_graph(
    build: Callable[..., Built], *arrays: Tensor, is_open: bool = False
) -> ov.CompiledModel:
    inputs = [op.parameter(shape_of(a, is_open), a.numpy().dtype) for a in arrays]
    built = build(*inputs)
    results = [op.result(node) for node in (built if isinstance(built, tuple) else (built,))]
    return ov.Core().compile_model(ov.Model(results, inputs), "CPU", OPTIONS)


def shape_of(array: Tensor, is_open: bool) -> list[int]:
    return [-1 if is_open else array.shape[0], *array.shape[1:]]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_close(ours: np.ndarray, theirs: Tensor) -> None:
    assert ours.shape == tuple(theirs.shape)
    assert np.abs(ours - theirs.numpy()).max() < 1e-5


def test_add(run: Run) -> None:
    x, y = normal(3, 2, 8), normal(3, 2, 8) + 1
    assert_close(run(OURS.add, x, y)[0], THEIRS.add(x, y))


@pytest.mark.parametrize("first_row", [0, 7])
@pytest.mark.parametrize("shape", [(5,), (5, 3)])
def test_embed(run: Run, shape: tuple[int, ...], first_row: int) -> None:
    table = normal(20, 8)
    ids = torch.randint(0, 13, shape, dtype=torch.int32)
    [ours] = run(lambda i: OURS.embed(i, op.constant(table.numpy()), first_row), ids)
    assert_close(ours, THEIRS.embed(ids, table, first_row))


def test_rows(run: Run) -> None:
    table, x = normal(20, 8), normal(1, 4, 8)
    [ours] = run(lambda y: OURS.add(OURS.rows(table, 3, 7), y), x)
    assert_close(ours, THEIRS.rows(table, 3, 7) + x)


@pytest.mark.parametrize("shape", [(3, 24), (3, 2, 24)])
def test_linear(run: Run, shape: tuple[int, ...]) -> None:
    x, weight = normal(*shape), normal(16, 24)
    [ours] = run(lambda y: OURS.linear(y, constant_matrix(weight)), x)
    assert_close(ours, THEIRS.linear(x, weight))


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_rms_norm(run: Run, size: float) -> None:
    x, weight = normal(3, 2, 24) * size, normal(24)
    [ours] = run(lambda y: OURS.rms_norm(y, op.constant(weight.numpy()), 1e-5), x)
    assert_close(ours, THEIRS.rms_norm(x, weight, 1e-5))


def test_split_heads(run: Run) -> None:
    x = normal(3, 2, 8 * 4)
    parts = run(lambda y: OURS.split_heads(y, (4, 2, 2), 4), x)
    for ours, theirs in zip(parts, THEIRS.split_heads(x, (4, 2, 2), 4), strict=True):
        assert_close(ours, theirs)


def test_merge_heads(run: Run) -> None:
    x = normal(3, 4, 2, 8)
    assert_close(run(OURS.merge_heads, x)[0], THEIRS.merge_heads(x))


@pytest.mark.parametrize("batch", [1, 3], ids=["shared angles", "own angles"])
def test_rotate(run: Run, batch: int) -> None:
    x, angles = normal(3, 4, 2, 8), normal(batch, 2, 8)
    cos, sin = angles.cos(), angles.sin()
    if batch == 1:  # constants, as in the depth decoder
        [ours] = run(lambda y: OURS.rotate(y, OURS.rows(cos[0], 0, 2), OURS.rows(sin[0], 0, 2)), x)
    else:
        [ours] = run(OURS.rotate, x, cos, sin)
    assert_close(ours, THEIRS.rotate(x, cos, sin))


def test_triangle(run: Run) -> None:
    x = normal(5, 5)
    [ours] = run(lambda y: op.select(OURS.triangle(5), y, op.constant(np.float32(9))), x)
    assert_close(ours, torch.where(THEIRS.triangle(5), x, 9.0))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attend_to_all_that_came_before(run: Run, kv_heads: int) -> None:
    q, k, v = normal(3, 4, 1, 8) * 3, normal(3, kv_heads, 6, 8), normal(3, kv_heads, 6, 8)
    [ours] = run(lambda *qkv: OURS.attend(*qkv, None), q, k, v)
    assert_close(ours, THEIRS.attend(q, k, v, None))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attend_under_the_causal_mask(run: Run, kv_heads: int) -> None:
    q, k, v = normal(3, 4, 2, 8) * 3, normal(3, kv_heads, 2, 8), normal(3, kv_heads, 2, 8)
    [ours] = run(lambda *qkv: OURS.attend(*qkv, OURS.triangle(2)), q, k, v)
    assert_close(ours, THEIRS.attend(q, k, v, THEIRS.triangle(2)))


def test_swiglu(run: Run) -> None:
    x, y = normal(3, 2, 12) * 4, normal(3, 2, 12)
    assert_close(run(OURS.swiglu, x, y)[0], THEIRS.swiglu(x, y))


@pytest.mark.parametrize("axis", [1, 2])
def test_join(run: Run, axis: int) -> None:
    shapes = {1: ((3, 2, 8), (3, 1, 8)), 2: ((3, 4, 2, 8), (3, 4, 1, 8))}[axis]
    parts = [normal(*shape) for shape in shapes]
    assert_close(run(lambda *p: OURS.join(p, axis), *parts)[0], THEIRS.join(parts, axis))


def test_stack(run: Run) -> None:
    columns = [torch.randint(0, 99, (3,), dtype=torch.int32) for _ in range(4)]
    [ours] = run(lambda *c: OURS.stack(c), *columns)
    assert np.array_equal(ours, THEIRS.stack(columns).numpy())


def test_as_row_and_last_row(run: Run) -> None:
    x, rows = normal(3, 8), normal(3, 5, 8)
    assert_close(run(OURS.as_row, x)[0], THEIRS.as_row(x))
    assert_close(run(OURS.last_row, rows)[0], THEIRS.last_row(rows))


# Sampling


class Chooser:
    """The graph of `choose`, compiled for a number of rows."""

    def __init__(self, rows: int, limit: int, vocab: int = VOCAB, codes: int = CODES) -> None:
        def build(logits: Node, noise: Node, heat: Node, top_k: Node) -> Node:
            return OURS.choose(logits, noise, heat, top_k, limit, codes)

        wide, narrow = torch.zeros(rows, vocab), torch.zeros(rows)
        self._graph = compile_graph(build, wide, wide, narrow, narrow.int())

    def __call__(self, logits: Tensor, noise: Tensor, heat: Tensor, top_k: Tensor) -> Tensor:
        arrays = [logits, noise, heat, top_k.int()]
        return torch.from_numpy(self._graph([a.numpy() for a in arrays])[0]).long()


def noise_of(seed: int, rows: int, vocab: int = VOCAB) -> Tensor:
    return torch.from_numpy(NoiseSource(seed, rows, vocab).next_frame())


def mixed(values: list[float], rows: int) -> Tensor:
    """`values` in turn, in a shuffled order."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(3))
    return torch.tensor(values).repeat(rows)[:rows][order]


def logits_with_ties(rows: int, vocab: int) -> Tensor:
    """Half of the rows are rounded, so that the best, and the k-th best, come several times over.

    The reserved codes are the best of all.
    """
    logits = normal(rows, vocab) * 3
    logits[::2] = (logits[::2] * 2).round() / 2
    logits[:, vocab - 3 :] += 30
    return logits


@pytest.mark.parametrize(
    ("limit", "vocab", "top_ks"),
    [
        (50, VOCAB, [1, 2, 50]),
        (64, VOCAB, [1, 2, 50, 63, 64, 65, 300]),  # above the limit: cut down to it
        (CODES, VOCAB, [1, 2, 50, 300, 2047, 2048, 2051]),
        (4096, VOCAB, [1, 2048, 4096]),
        (64, 35, [1, 2, 31, 32, 33, 50]),  # fewer codes than the limit
    ],
)
def test_choose_takes_the_code_that_the_reference_takes(
    limit: int, vocab: int, top_ks: list[float]
) -> None:
    rows = 2000
    logits, noise = logits_with_ties(rows, vocab), noise_of(limit, rows, vocab)
    heat, top_k = mixed([0.0, 0.3, 0.9, 1.5, 1.0, 0.0, 0.05], rows), mixed(top_ks, rows).long()
    ours = Chooser(rows, limit, vocab, vocab - 3)(logits, noise, heat, top_k)
    theirs = choose(logits, noise, heat, top_k, limit, vocab - 3)
    assert torch.equal(ours, theirs)
    assert ours.max() < vocab - 3
    assert len(ours[heat > 0].unique()) > 20


def test_choose_takes_the_first_of_equals_when_greedy() -> None:
    logits = torch.zeros(4, VOCAB)
    logits[1, [7, 9, 2000]] = 1
    logits[2, [2049, 100, 1500]] = 1
    logits[3, CODES:] = 5
    greedy, one = torch.zeros(4), torch.ones(4).long()
    ours = Chooser(4, 64)(logits, noise_of(1, 4), greedy, one)
    assert ours.tolist() == [0, 7, 100, 0]
    assert choose(logits, noise_of(1, 4), greedy, one, 64, CODES).tolist() == [0, 7, 100, 0]


def test_choose_keeps_all_that_tie_with_the_last_of_the_top_k() -> None:
    logits = torch.full((4000, VOCAB), -5.0)
    logits[:, [3, 500, 1000, 2047]] = 1
    every, heat = torch.full((4000,), 2), torch.full((4000,), 0.8)
    drawn = Chooser(4000, 64)(logits, noise_of(2, 4000), heat, every)
    counts = drawn.bincount(minlength=VOCAB)
    assert counts[[3, 500, 1000, 2047]].min() > 800
    assert counts.sum() == counts[[3, 500, 1000, 2047]].sum()


# What is drawn, against the softmax itself

NUM_DRAWS, ROWS = 20_000, 1000
SETTINGS = [(0.9, 50), (0.7, 64), (1.0, 5), (1.5, 300), (1.2, 2048)]
Choose = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def one_row_of_logits() -> Tensor:
    """What a trained model gives, roughly; the reserved codes would win by far."""
    row = normal(VOCAB) * 2
    row[[10, 400, 1200, 1700, 2000]] = torch.tensor([10.0, 9.0, 8.0, 7.0, 6.0])
    row[CODES:] = 40
    return row


def expected_of(row: Tensor, temperature: float, top_k: int) -> np.ndarray:
    """The softmax over the `top_k` best codes, (CODES,) float64."""
    kept = row[:CODES].double().numpy().copy()
    kept[np.argsort(kept)[: CODES - top_k]] = -np.inf
    weights = np.exp((kept - kept.max()) / temperature)
    return weights / weights.sum()


def drawn(chooser: Choose, row: Tensor, temperature: float, top_k: int, seed: int) -> np.ndarray:
    """How often each code was taken, (VOCAB,)."""
    logits = row.expand(ROWS, VOCAB).contiguous()
    heat, k = torch.full((ROWS,), temperature), torch.full((ROWS,), top_k)
    source = NoiseSource(seed, ROWS, VOCAB)
    counts = np.zeros(VOCAB, np.int64)
    for _ in range(NUM_DRAWS // ROWS):
        noise = torch.from_numpy(source.next_frame())
        counts += np.bincount(chooser(logits, noise, heat, k).numpy(), minlength=VOCAB)
    return counts


def merged(counts: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in bins of ten expected draws at least, the rare codes put together."""
    order = np.argsort(-expected)
    ends, room = [0], 0.0
    for place, count in enumerate(expected[order]):
        room += count
        if room >= 10:
            ends.append(place + 1)
            room = 0.0
    starts = ends[:-1]  # what is left over goes into the last bin
    return np.add.reduceat(counts[order], starts), np.add.reduceat(expected[order], starts)


def misfit(counts: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's chi-square over its bound; 1 is passed by chance once in 100,000 times."""
    seen, wanted = merged(counts[:CODES], expected * NUM_DRAWS)
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    spread = 2 / (9 * freedom)  # Wilson and Hilferty 1931: its cube root is nearly normal
    return statistic / (freedom * (1 - spread + 4.265 * spread**0.5) ** 3)


@pytest.fixture(scope="module", params=["torch", "openvino"])
def chooser_of(request: pytest.FixtureRequest) -> Callable[[int], Choose]:
    """Makes the chooser that the runner would take for a top-k."""

    def make(top_k: int) -> Choose:
        limit = 64 if top_k <= 64 else CODES
        if request.param == "openvino":
            return Chooser(ROWS, limit)
        return lambda *arrays: choose(*arrays, limit, CODES)

    return make


@pytest.mark.parametrize(("temperature", "top_k"), SETTINGS)
def test_codes_are_drawn_from_the_softmax_over_the_top_k(
    chooser_of: Callable[[int], Choose], temperature: float, top_k: int
) -> None:
    row = one_row_of_logits()
    expected = expected_of(row, temperature, top_k)
    counts = drawn(chooser_of(top_k), row, temperature, top_k, seed=top_k)
    assert counts.sum() == NUM_DRAWS
    assert counts[CODES:].sum() == 0
    assert counts[:CODES][expected == 0].sum() == 0
    assert misfit(counts, expected) < 1
    # the same draws are told from what is nearly right
    assert misfit(counts, expected_of(row, temperature * 1.1, top_k)) > 1
    assert misfit(counts, expected_of(row, temperature / 1.1, top_k)) > 1
