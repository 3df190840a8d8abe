"""500 utterances of random lengths, some cancelled, through eight slots; then each by itself."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from worker.engine.checkpoint import Checkpoint
from worker.engine.engine import Engine, EngineConfig
from worker.engine.errors import UtteranceCancelled
from worker.engine.openvino_runner import OpenvinoRunner
from worker.engine.sampling import Sampling
from worker.engine.utterance import Handle, Segment, Utterance

NUM_UTTERANCES = 500
WAIT_S = 120.0
GROWTH_BYTES = (
    80_000_000  # what allocators and caches of shapes keep: 30 MB were seen, levelling off
)


@pytest.fixture
def engine(tiny: Checkpoint) -> Iterator[Engine]:
    config = EngineConfig(
        num_slots=8, max_positions=256, backend="openvino", precision="int8",
        prefix_cache_bytes=3_000_000,
    )  # fmt: skip
    engine = Engine(tiny, config).start()
    yield engine
    engine.stop()


def random_utterance(index: int) -> Utterance:
    dice = random.Random(index)
    context: tuple[Segment, ...] = ()
    if dice.random() < 0.3:  # one of nine voices, more than the prefix cache holds
        voice = np.random.default_rng(dice.randrange(9))
        codes = voice.integers(0, 256, (int(voice.integers(3, 70)), 16))
        context = (Segment(1, "a voice", codes=codes),)
    return Utterance(
        "x" * dice.randint(1, 60),
        dice.randrange(4),
        Sampling(dice.choice([0.0, 0.8, 1.1]), dice.choice([1, 20, 50]), index),
        context,
        max_frames=dice.randint(1, 14),
    )


def cancel_some(handles: dict[int, Handle]) -> set[int]:
    """Every seventh, at whatever frame it has come to; the numbers of those."""
    chosen = {index for index in handles if index % 7 == 0}
    for index in chosen:
        if index % 2:
            deadline = time.monotonic() + WAIT_S
            while not handles[index].frames_done and not handles[index].is_done:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        handles[index].cancel()
    return chosen


def anonymous_bytes() -> int:
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) * 1024


def heard(handle: Handle) -> np.ndarray | None:
    try:
        return handle.result(WAIT_S).codes
    except UtteranceCancelled:
        return None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_a_soak_leaks_nothing_and_says_what_each_utterance_says_alone(engine: Engine) -> None:
    together: dict[int, np.ndarray | None] = {}
    sizes: list[int] = []
    for first in range(0, NUM_UTTERANCES, 50):
        numbers = range(first, first + 50)
        handles = {i: engine.submit(random_utterance(i)) for i in numbers}
        cancelled = cancel_some(handles)
        together |= {i: heard(handle) for i, handle in handles.items()}
        assert all(together[i] is not None for i in numbers if i not in cancelled)
        sizes.append(anonymous_bytes())
    assert sizes[-1] - sizes[2] < GROWTH_BYTES, sizes

    spoken = {i: codes for i, codes in together.items() if codes is not None}
    assert NUM_UTTERANCES * 0.8 < len(spoken) < NUM_UTTERANCES
    for index, codes in spoken.items():
        assert np.array_equal(heard(engine.submit(random_utterance(index))), codes), index
    assert_nothing_is_held(engine)


def assert_nothing_is_held(engine: Engine) -> None:
    runner = engine.runner
    assert isinstance(runner, OpenvinoRunner)
    assert engine.scheduler.is_idle
    assert not runner._speakers
    assert not runner._blocks
    assert not runner._hidden
    kept = runner.prefixes.num_bytes // runner.caches.block_bytes
    assert runner.pool.num_free == runner.pool.num_blocks - kept
    assert runner.prefixes.num_hits > 50
