"""Who holds which block: the pool by itself, and under the OpenVINO runner, on csm-tiny."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from worker.engine.blocks import BLOCK_ROWS, BlockPool, blocks_for
from worker.engine.checkpoint import Checkpoint
from worker.engine.openvino_runner import OpenvinoModel, OpenvinoRunner, openvino_model
from worker.engine.prompt import Prompt, build_prompt
from worker.engine.sampling import Sampling
from worker.engine.scheduler import Batch, Scheduler, Turn

NUM_BLOCKS = 12
NUM_CODEBOOKS = 2


@pytest.mark.parametrize(
    ("rows", "blocks"), [(0, 0), (1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (2047, 64), (2048, 64)]
)
def test_blocks_hold_32_rows(rows: int, blocks: int) -> None:
    assert blocks_for(rows) == blocks


class PoolMachine(RuleBasedStateMachine):
    """Holders come, share with each other, and go, in any order."""

    holders = Bundle("holders")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.held: dict[int, list[int]] = {}
        self.num_holders = 0

    def hold(self, blocks: Iterable[int]) -> int:
        self.num_holders += 1
        self.held[self.num_holders] = list(blocks)
        return self.num_holders

    def in_use(self) -> set[int]:
        return {block for blocks in self.held.values() for block in blocks}

    @rule(target=holders, count=st.integers(0, 4))
    def take(self, count: int) -> int:
        before = self.in_use()
        taken = [self.pool.take() for _ in range(min(count, self.pool.num_free))]
        assert len(set(taken)) == len(taken)
        assert not before & set(taken)
        assert set(taken) <= set(range(1, NUM_BLOCKS + 1))
        return self.hold(taken)

    @rule(target=holders, other=holders, count=st.integers(0, 4))
    def share(self, other: int, count: int) -> int:
        blocks = self.held[other][:count]
        self.pool.share(blocks)
        return self.hold(blocks)

    @rule(holder=consumes(holders))
    def drop(self, holder: int) -> None:
        self.pool.drop(self.held.pop(holder))

    @invariant()
    def what_nobody_holds_is_free(self) -> None:
        assert self.pool.num_free == NUM_BLOCKS - len(self.in_use())

    def teardown(self) -> None:
        for blocks in self.held.values():
            self.pool.drop(blocks)
        assert self.pool.num_free == NUM_BLOCKS
        assert {self.pool.take() for _ in range(NUM_BLOCKS)} == set(range(1, NUM_BLOCKS + 1))


TestPool = PoolMachine.TestCase
TestPool.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)


# Under the runner


class WatchedPool(BlockPool):
    """Remembers how few blocks were ever left."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        self.fewest_free = num_blocks

    def take(self) -> int:
        block = super().take()
        self.fewest_free = min(self.fewest_free, self.num_free)
        return block


class Stage:
    """A runner driven by hand, whose blocks are counted after every step."""

    def __init__(
        self, checkpoint: Checkpoint, model: OpenvinoModel, *, num_slots: int, kept_blocks: int
    ) -> None:
        spec = model.source.spec.backbone
        block_bytes = 2 * spec.num_layers * 4 * spec.num_kv_heads * BLOCK_ROWS * spec.head_dim
        self.tokenizer = checkpoint.tokenizer
        self.runner = OpenvinoRunner(
            model, num_slots=num_slots, max_positions=96,
            prefix_cache_bytes=kept_blocks * block_bytes,
        )  # fmt: skip
        assert self.runner.caches.block_bytes == block_bytes
        self.pool = WatchedPool(self.runner.pool.num_blocks)
        self.runner.pool = self.pool
        self.scheduler = Scheduler(num_slots, 32, lambda: 0.0)
        self.prompts: dict[Turn, Prompt] = {}
        self.cancelled: set[Turn] = set()

    def prompt(self, voice: int, context_rows: int, text: str = "so") -> Prompt:
        """`voice` tells contexts of one length apart; no rows at all is no context."""
        num_frames = context_rows - 1 - len(self.tokenizer.encode("a", 1))
        codes = np.full((max(0, num_frames), NUM_CODEBOOKS), voice)
        context = [(1, "a", codes)] if context_rows else []
        return build_prompt(self.tokenizer, context, 2, text, NUM_CODEBOOKS)

    def say(self, prompt: Prompt, max_frames: int) -> Turn:
        turn = Turn(len(prompt), max_frames, prompt.prefix_rows)
        turn.is_cancelled = lambda: turn in self.cancelled
        self.prompts[turn] = prompt
        self.scheduler.add(turn)
        return turn

    def step(self) -> None:
        batch = self.scheduler.schedule()
        for turn, _ in batch.ended:
            self.runner.stop(turn)
        for turn in batch.admitted:
            self.runner.start(turn, self.prompts[turn], Sampling(seed=1))
        self.book(batch, self.runner.run(batch))
        self.count()

    def book(self, batch: Batch, codes: dict[Turn, np.ndarray]) -> None:
        for turn, _ in self.scheduler.commit(batch, dict.fromkeys(codes, False)):
            self.runner.stop(turn)

    def finish(self) -> None:
        while not self.scheduler.is_idle:
            self.step()

    def kept(self) -> list[list[int]]:
        return [prefix.blocks for prefix in self.runner.prefixes._entries.values()]

    def count(self) -> None:
        """Every block is free, or as often held as there are holders that know of it."""
        held = [block for blocks in self.runner._blocks.values() for block in blocks]
        held += [block for blocks in self.kept() for block in blocks]
        assert 0 not in held
        assert self.pool.num_free + len(set(held)) == self.pool.num_blocks
        assert all(self.pool._holders[block] == held.count(block) for block in set(held))
        self.no_two_write_into_one()

    def no_two_write_into_one(self) -> None:
        """The block that a turn's next row goes to has no other holder."""
        for turn, blocks in self.runner._blocks.items():
            written = self.written(turn)
            if written % BLOCK_ROWS and len(blocks) > written // BLOCK_ROWS:
                assert self.pool._holders[blocks[written // BLOCK_ROWS]] == 1

    def written(self, turn: Turn) -> int:
        return turn.rows_done + turn.frames_done


@pytest.fixture(scope="module")
def model(tiny: Checkpoint) -> OpenvinoModel:
    """csm-tiny cut down to a layer and two codebooks, which compiles fast: blocks are blocks."""
    whole = openvino_model(tiny, "int8")
    backbone = replace(tiny.spec.backbone, num_layers=1)
    spec = replace(tiny.spec, backbone=backbone, num_codebooks=NUM_CODEBOOKS)
    return replace(whole, source=replace(whole.source, spec=spec))


def test_a_prefix_shares_its_full_blocks_and_copies_the_last(
    tiny: Checkpoint, model: OpenvinoModel
) -> None:
    stage = Stage(tiny, model, num_slots=1, kept_blocks=4)
    turn = stage.say(stage.prompt(1, 40), 20)
    while not turn.is_prefilled:
        stage.step()
    [kept], own = stage.kept(), stage.runner._blocks[turn]
    assert kept[0] == own[0]
    assert kept[1] != own[1]
    for arrays in stage.runner.caches.arrays:
        for cache in arrays:
            assert np.array_equal(cache[kept[1], :, :8], cache[own[1], :, :8])
            assert cache[kept[1], :, :8].any()
    stage.finish()


def test_a_prefix_that_fills_its_blocks_is_shared_without_a_copy(
    tiny: Checkpoint, model: OpenvinoModel
) -> None:
    stage = Stage(tiny, model, num_slots=1, kept_blocks=4)
    stage.say(stage.prompt(1, 64), 20)
    stage.finish()
    assert stage.pool.num_free == stage.pool.num_blocks - 2
    again = stage.say(stage.prompt(1, 64), 20)
    stage.step()
    assert stage.runner._blocks[again] == stage.kept()[0]
    stage.finish()


def test_a_prefix_dropped_from_the_cache_lives_on_under_those_who_speak_from_it(
    tiny: Checkpoint, model: OpenvinoModel
) -> None:
    stage = Stage(tiny, model, num_slots=2, kept_blocks=2)
    first = stage.say(stage.prompt(1, 64), 25)
    while not first.is_prefilled:
        stage.step()
    shared = stage.kept()[0]
    while stage.kept() in ([], [shared]):
        if stage.scheduler.num_waiting == 0 and len(stage.scheduler.turns) == 1:
            stage.say(stage.prompt(2, 64), 2)
        stage.step()
    assert stage.runner._blocks[first][:2] == shared
    assert not set(shared) & set(stage.kept()[0])
    stage.finish()
    assert stage.pool.num_free == stage.pool.num_blocks - 2


def test_every_block_comes_back_after_hits_cancels_and_evictions(
    tiny: Checkpoint, model: OpenvinoModel
) -> None:
    stage = Stage(tiny, model, num_slots=3, kept_blocks=5)
    rng = np.random.default_rng(0)
    turns: list[Turn] = []
    for _ in range(60):
        rows = int(rng.choice([0, 20, 32, 40, 64, 70]))
        turns.append(stage.say(stage.prompt(int(rng.integers(3)), rows), int(rng.integers(1, 12))))
        for _ in range(int(rng.integers(0, 6))):
            stage.step()
            if rng.random() < 0.1:
                stage.cancelled.add(turns[int(rng.integers(len(turns)))])
    stage.finish()
    prefixes = stage.runner.prefixes
    assert prefixes.num_hits > 5
    assert prefixes.num_misses > 10
    assert any(0 < turn.rows_done < turn.prompt_rows for turn in stage.cancelled)
    assert not stage.runner._blocks
    kept = {block for blocks in stage.kept() for block in blocks}
    assert stage.pool.num_free + len(kept) == stage.pool.num_blocks


def test_the_pool_lasts_when_all_slots_are_full_while_the_kept_prefixes_change(
    tiny: Checkpoint, model: OpenvinoModel
) -> None:
    num_slots, kept_blocks = 3, 3
    stage = Stage(tiny, model, num_slots=num_slots, kept_blocks=kept_blocks)
    stage.say(stage.prompt(1, 65), 1)  # fills the cache, and goes
    stage.finish()
    assert [len(blocks) for blocks in stage.kept()] == [kept_blocks]
    plain = stage.prompt(0, 0)
    full = [stage.say(plain, 96 - len(plain)) for _ in range(num_slots - 1)]
    while any(len(stage.runner._blocks.get(turn, [])) < blocks_for(96) for turn in full):
        stage.step()
    last = stage.say(stage.prompt(2, 65), 96 - len(stage.prompt(2, 65)))
    while not last.is_prefilled:
        stage.step()
    assert all(len(stage.runner._blocks[turn]) == blocks_for(96) for turn in [*full, last])
    # all slots full and unlike what is kept, the old prefix, and the copied end of the new one
    most = num_slots * blocks_for(96) + kept_blocks + 1
    assert stage.pool.num_blocks - stage.pool.fewest_free == most
    stage.finish()


@given(
    said=st.lists(
        st.tuples(
            st.integers(0, 2),  # voice
            st.sampled_from([0, 20, 32, 33, 64, 65, 80]),  # rows of context
            st.booleans(),  # whether it goes on to the last position
            st.integers(0, 20),  # steps until the next one comes
            st.none() | st.integers(0, 5),  # whose cancellation comes with it
        ),
        min_size=1,
        max_size=6,
    ),
    kept_blocks=st.integers(0, 4),
)
@settings(deadline=None, max_examples=20)
def test_the_pool_never_runs_dry_whatever_comes(
    tiny: Checkpoint,
    model: OpenvinoModel,
    said: list[tuple[int, int, bool, int, int | None]],
    kept_blocks: int,
) -> None:
    stage = Stage(tiny, model, num_slots=2, kept_blocks=kept_blocks)
    turns: list[Turn] = []
    for voice, rows, is_long, num_steps, cancelled in said:
        prompt = stage.prompt(voice, rows)
        turns.append(stage.say(prompt, 96 - len(prompt) if is_long else 1))
        for _ in range(num_steps):
            stage.step()
        if cancelled is not None:
            stage.cancelled |= set(turns[cancelled : cancelled + 1])
    stage.finish()
    kept = {block for blocks in stage.kept() for block in blocks}
    assert stage.pool.num_free + len(kept) == stage.pool.num_blocks
    assert stage.pool.num_blocks - stage.pool.fewest_free <= 2 * blocks_for(96) + kept_blocks + 1
