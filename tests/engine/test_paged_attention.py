"""OpenVINO's private paged attention, alone: what it computes, writes, and depends on.

In the shape of CSM-1B's backbone: 32 heads of 64 on 8 of keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from worker.engine.blocks import BLOCK_ROWS, blocks_for
from worker.engine.checkpoint import Checkpoint
from worker.engine.openvino_graphs import PAGING, _cache_inputs, _input, _paged_attention
from worker.engine.openvino_runner import OpenvinoRunner, _Sequence, openvino_model
from worker.engine.spec import RopeSpec, TransformerSpec

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 64
SPEC = TransformerSpec(1, 2048, HEADS, KV_HEADS, HEAD_DIM, 64, 2048, 1e-5, RopeSpec(10_000.0))
EDGES = [0, 1, 31, 32, 33, 63, 64, 1023, 1024, 2047]


@dataclass(eq=False)
class Story:
    """One sequence: `past` rows that are in the cache, and `new` ones, with random contents."""

    past: int
    new: int
    seed: int = 0
    q: np.ndarray = field(init=False)
    keys: np.ndarray = field(init=False)  # (past + new, KV heads, D)
    values: np.ndarray = field(init=False)
    blocks: list[int] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.past, self.new, self.seed])
        rows = self.past + self.new
        self.q, self.keys, self.values = (
            rng.standard_normal(shape).astype(np.float32)
            for shape in ((self.new, HEADS, HEAD_DIM), *[(rows, KV_HEADS, HEAD_DIM)] * 2)
        )

    def places(self, start: int, stop: int) -> tuple[list[int], list[int]]:
        """Block and row within it, for each of the rows `start` to `stop`."""
        rows = range(start, stop)
        return [self.blocks[row // BLOCK_ROWS] for row in rows], [row % BLOCK_ROWS for row in rows]

    def expected(self) -> np.ndarray:
        """Dense attention in float64, (new, H, D)."""
        group = HEADS // KV_HEADS
        keys, values = (
            x.astype(np.float64).repeat(group, axis=1) for x in (self.keys, self.values)
        )
        scores = np.einsum("qhd,khd->hqk", self.q.astype(np.float64), keys) * HEAD_DIM**-0.5
        seen = np.arange(self.past + self.new) <= self.past + np.arange(self.new)[:, None]
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", weights, values)


class Pages:
    """Keys and values in scattered blocks; whatever no sequence has written is NaN."""

    def __init__(self, stories: list[Story], seed: int = 0) -> None:
        counts = [blocks_for(story.past + story.new) for story in stories]
        order = np.random.default_rng(seed).permutation(sum(counts) + 3) + 1
        shape = (len(order) + 1, KV_HEADS, BLOCK_ROWS, HEAD_DIM)
        self.keys = np.full(shape, np.nan, np.float32)
        self.values = self.keys.copy()
        for story, stop, count in zip(stories, np.cumsum(counts), counts, strict=True):
            story.blocks = [int(block) for block in order[stop - count : stop]]
            self.write(story, 0, story.past)

    def write(self, story: Story, start: int, stop: int) -> None:
        blocks, rows = story.places(start, stop)
        self.keys[blocks, :, rows] = story.keys[start:stop]
        self.values[blocks, :, rows] = story.values[start:stop]


def compiled_attention() -> ov.InferRequest:
    heads = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
    rows = [_input(name, [-1, count, 1, HEAD_DIM]) for name, count in heads.items()]
    paging = [_input(name, [-1], ov.Type.i32) for name in PAGING[:-1]]
    paging.append(_input(PAGING[-1], [], ov.Type.i32))
    cache = _cache_inputs(SPEC, 0)
    node = _paged_attention(SPEC, *rows, cache, paging)
    graph = ov.Model([op.result(node)], [*rows, *paging, *cache], "attention")
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    return ov.Core().compile_model(graph, "CPU", options).create_infer_request()


@pytest.fixture(scope="module")
def paged() -> ov.InferRequest:
    return compiled_attention()


def attend(
    request: ov.InferRequest, stories: list[Story], pages: Pages | None = None
) -> list[np.ndarray]:
    """What each story's new rows see, (new, H, D) each."""
    pages = pages or Pages(stories)
    request.set_tensor("keys.0", ov.Tensor(pages.keys, shared_memory=True))
    request.set_tensor("values.0", ov.Tensor(pages.values, shared_memory=True))
    begins = sums([story.new for story in stories])
    rows = {
        "q": np.concatenate([s.q for s in stories]),
        "k": np.concatenate([s.keys[s.past :] for s in stories]),
        "v": np.concatenate([s.values[s.past :] for s in stories]),
    }
    paging = (
        np.array([s.past for s in stories], np.int32),
        begins,
        np.array([block for s in stories for block in s.blocks], np.int32),
        sums([len(s.blocks) for s in stories]),
        np.array(max(s.past + s.new for s in stories), np.int32),
    )
    inputs = {name: x[:, :, None] for name, x in rows.items()}
    inputs |= dict(zip(PAGING, paging, strict=True))
    result = request.infer(inputs)[0][:, :, 0].copy()
    return np.split(result, begins[1:-1])


def sums(counts: list[int]) -> np.ndarray:
    return np.cumsum([0, *counts]).astype(np.int32)


def assert_right(stories: list[Story], results: list[np.ndarray]) -> None:
    for story, result in zip(stories, results, strict=True):
        error = np.abs(result - story.expected()).max()
        assert error < 1e-5, (story.past, story.new, error)


def test_one_new_row_sees_all_that_came_before_at_every_edge_of_a_block(
    paged: ov.InferRequest,
) -> None:
    stories = [Story(past, 1) for past in EDGES]
    assert_right(stories, attend(paged, stories))


def test_a_lone_sequence_sees_what_it_should(paged: ov.InferRequest) -> None:
    for past in (0, 32, 1023):
        stories = [Story(past, 1)]
        assert_right(stories, attend(paged, stories))


@pytest.mark.parametrize("new", [2, 31, 32, 33, 64, 100])
def test_a_prompt_is_causal_and_sees_the_pieces_before_it(paged: ov.InferRequest, new: int) -> None:
    stories = [Story(past, new) for past in (0, 1, 31, 32, 33, 64)]
    assert_right(stories, attend(paged, stories))


def test_prompts_and_single_rows_go_together_in_one_call(paged: ov.InferRequest) -> None:
    shapes = [(1023, 1), (0, 40), (32, 1), (17, 64), (0, 1), (2047, 1), (960, 64), (31, 2), (63, 1)]
    stories = [Story(*shape) for shape in shapes]
    assert_right(stories, attend(paged, stories))


def test_a_story_told_in_pieces_is_the_same_story(paged: ov.InferRequest) -> None:
    whole = Story(0, 70)
    pages, seen, expected = Pages([whole]), [], whole.expected()
    for start, stop in ((0, 32), (32, 50), (50, 51), (51, 70)):
        piece = Story(start, stop - start)
        piece.q, piece.blocks = whole.q[start:stop], whole.blocks[: blocks_for(stop)]
        piece.keys, piece.values = whole.keys[:stop], whole.values[:stop]
        seen += attend(paged, [piece], pages)
    assert np.abs(np.concatenate(seen) - expected).max() < 1e-5


# What it writes


@pytest.mark.parametrize(
    "shapes",
    [[(past, 1) for past in EDGES], [(0, 40), (17, 64), (31, 1), (0, 32), (64, 2)]],
    ids=["frames", "prompts"],
)
def test_new_rows_are_written_where_the_block_table_says_and_nowhere_else(
    paged: ov.InferRequest, shapes: list[tuple[int, int]]
) -> None:
    stories = [Story(*shape) for shape in shapes]
    pages, wanted = Pages(stories), Pages(stories)
    attend(paged, stories, pages)
    for story in stories:
        wanted.write(story, story.past, story.past + story.new)
        if story.new > 1:
            allow_rest_of_block(wanted, pages, story)
    assert np.array_equal(pages.keys, wanted.keys, equal_nan=True)
    assert np.array_equal(pages.values, wanted.values, equal_nan=True)
    assert np.isnan(pages.keys).any()


def allow_rest_of_block(wanted: Pages, pages: Pages, story: Story) -> None:
    """A prompt's piece may clear what is left of its last block, which is nobody else's."""
    blocks, rows = story.places(story.past + story.new, len(story.blocks) * BLOCK_ROWS)
    for ours, theirs in ((wanted.keys, pages.keys), (wanted.values, pages.values)):
        ours[blocks, :, rows] = theirs[blocks, :, rows]


# What it depends on


def nobody() -> Story:
    """Two rows at once make a prompt: with one in the call, all of it takes the loop that rounds
    alike however many sequences and threads there are."""
    return Story(0, 2, seed=9)


COMPANIES = {
    "one": [Story(40, 1)],
    "seven": [Story(past, 1) for past in (0, 31, 64, 500, 1023, 2047, 300)],
    "a prompt": [Story(17, 64)],
    "seven and a prompt": [*(Story(past, 1) for past in (0, 31, 64, 500, 9, 40, 300)), Story(0, 9)],
    "its likes": [Story(1023, 1, seed) for seed in range(1, 8)],
}


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("shape", [(0, 1), (31, 1), (1023, 1), (2047, 1), (0, 40), (33, 64)])
def test_a_sequence_sees_the_same_to_the_bit_in_any_company(
    paged: ov.InferRequest, shape: tuple[int, int], place: str
) -> None:
    story = Story(*shape, seed=5)
    [alone, _] = attend(paged, [story, nobody()])
    for name, company in COMPANIES.items():
        everyone = [*company, nobody()]
        everyone.insert(0 if place == "first" else len(everyone), story)
        together = attend(paged, everyone, Pages(everyone, seed=1))
        assert np.array_equal(together[everyone.index(story)], alone), name


def test_the_same_call_gives_the_same_bits_again(paged: ov.InferRequest) -> None:
    stories = [Story(1023, 1), Story(700, 1), Story(0, 40), Story(2047, 1)]
    first = attend(paged, stories)
    for seed in range(10):
        again = attend(paged, stories, Pages(stories, seed))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_runner_reads_a_row_alike_alone_among_others_and_beside_a_prompt(
    tiny: Checkpoint,
) -> None:
    """Calls of fewer sequences than threads, of more, and with prompts take different loops."""
    runner = OpenvinoRunner(openvino_model(tiny, "int8"), num_slots=2, max_positions=2048)
    rng = np.random.default_rng(0)

    def rows(count: int) -> np.ndarray:
        return rng.standard_normal((count, tiny.spec.backbone.width)).astype(np.float32)

    blocks = [runner.pool.take() for _ in range(8)]
    runner._read([_Sequence(rows(200), 0, blocks)])
    row = _Sequence(rows(1), 200, blocks)
    [alone] = runner._read([row])
    prompt = _Sequence(rows(40), 0, [runner.pool.take(), runner.pool.take()])
    others = [_Sequence(rows(1), 0, [runner.pool.take()]) for _ in range(20)]
    for company in (others[:1], others[:3], others[:7], others, [prompt], [*others[:3], prompt]):
        assert np.array_equal(runner._read([row, *company])[0], alone), len(company)
