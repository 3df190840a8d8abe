"""What every runner must keep, each in the precisions it serves: one suite, on csm-tiny."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from worker.engine.checkpoint import Checkpoint
from worker.engine.engine import Engine, EngineConfig
from worker.engine.errors import PromptTooLong
from worker.engine.sampling import Sampling
from worker.engine.scheduler import Scheduler, Turn
from worker.engine.utterance import Segment, Speech, Utterance

StartEngine = Callable[..., Engine]
WAIT_S = 120.0
SERVED = [("torch", "fp32"), ("torch", "bf16"), ("openvino", "int8"), ("openvino", "int4")]


@pytest.fixture(scope="module", params=SERVED, ids="-".join)
def start_engine(request: pytest.FixtureRequest, tiny: Checkpoint) -> Iterator[StartEngine]:
    """Starts engines over the runner in question; equal ones are started once."""
    backend, precision = request.param

    @cache
    def start(**config: Any) -> Engine:
        settings = {"num_slots": 5, "max_positions": 512} | config
        engine = Engine(tiny, EngineConfig(backend=backend, precision=precision, **settings))
        started.append(engine.start())
        return engine

    started: list[Engine] = []
    yield start
    for engine in started:
        engine.stop()


def an_utterance(index: int, num_frames: int = 12) -> Utterance:
    """Eight that differ in text, length, seed, temperature, top-k and context."""
    rng = np.random.default_rng(index)
    context = ()
    if index % 3 == 2:
        context = (Segment(1, "before", codes=rng.integers(0, 256, (5 + index, 16))),)
    return Utterance(
        text="word " * (1 + 7 * index),
        speaker_id=index,
        sampling=Sampling(
            [0.0, 0.7, 0.9, 1.3][index % 4], top_k=[5, 50, 300][index % 3], seed=index
        ),
        context=context,
        max_frames=num_frames + 3 * index,
    )


def speak(engine: Engine, utterance: Utterance) -> Speech:
    return engine.submit(utterance).result(WAIT_S)


def test_eight_utterances_together_say_exactly_what_each_says_alone(
    start_engine: StartEngine,
) -> None:
    engine = start_engine(prefill_rows=32, prefix_cache_bytes=0)
    expected = [speak(engine, an_utterance(i, num_frames=20)) for i in range(8)]
    handles = []
    for index in range(8):
        handles.append(engine.submit(an_utterance(index, num_frames=20)))
        while handles[0].frames_done < 2 * index and not handles[0].is_done:
            time.sleep(0.005)  # arrive at different frames
    for handle, speech in zip(handles, expected, strict=True):
        heard = handle.result(WAIT_S)
        assert np.array_equal(heard.codes, speech.codes)
        assert np.abs(heard.audio - speech.audio).max() < 1e-5


def run_turns(engine: Engine, *utterances: Utterance) -> list[list[np.ndarray]]:
    """Drives the runner by hand; the hidden state of each utterance after each of its frames."""
    scheduler = Scheduler(engine.config.num_slots, 16, time.monotonic)
    said = {a_turn(engine, utterance): utterance for utterance in utterances}
    states: dict[Turn, list[np.ndarray]] = {turn: [] for turn in said}
    for turn in said:
        scheduler.add(turn)
    while not scheduler.is_idle:
        batch = scheduler.schedule()
        for turn in batch.admitted:
            engine.runner.start(turn, engine._prompt(said[turn]), said[turn].sampling)
        codes = engine.runner.run(batch)
        for turn in codes:
            states[turn].append(hidden_state(engine, turn))
        for turn, _ in scheduler.commit(batch, dict.fromkeys(codes, False)):
            engine.runner.stop(turn)
    return list(states.values())


def hidden_state(engine: Engine, turn: Turn) -> np.ndarray:
    kept = engine.runner._hidden  # type: ignore[attr-defined]
    state = kept[turn] if isinstance(kept, dict) else kept[turn.slot]
    return torch.as_tensor(state).float().numpy().copy()


def a_turn(engine: Engine, utterance: Utterance) -> Turn:
    prompt = engine._prompt(utterance)
    assert utterance.max_frames
    return Turn(len(prompt), utterance.max_frames, prompt.prefix_rows)


def same_bits(these: list[np.ndarray], those: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(these, those, strict=True))


def test_an_utterance_of_some_warmth_says_another_frame_each_time(
    start_engine: StartEngine,
) -> None:
    speech = speak(start_engine(), Utterance("so", sampling=Sampling(0.9, 50, 1), max_frames=10))
    assert len(np.unique(speech.codes, axis=0)) == 10


def test_neighbours_do_not_change_one_bit_of_an_utterances_hidden_state(
    start_engine: StartEngine,
) -> None:
    engine = start_engine()
    utterances = [an_utterance(i) for i in (4, 1, 2, 3)]
    beside = run_turns(engine, *utterances)
    for utterance, states in zip(utterances, beside, strict=True):
        [alone] = run_turns(engine, utterance)
        assert same_bits(alone, states)


def test_what_an_earlier_utterance_left_behind_does_no_harm(start_engine: StartEngine) -> None:
    engine = start_engine(num_slots=1)
    said = an_utterance(1)
    [clean] = run_turns(engine, said)
    poison(engine)
    [again] = run_turns(engine, said)
    assert same_bits(clean, again)


def poison(engine: Engine) -> None:
    """Fills everything that is kept between utterances."""
    runner: Any = engine.runner
    if engine.config.backend == "torch":
        runner.kv.keys.fill_(float("nan"))
        runner.kv.values.fill_(float("inf"))
        return
    for keys, values in runner.caches.arrays:
        keys.fill(np.nan)
        values.fill(np.inf)


def test_a_cached_prefix_changes_nothing_but_the_work(start_engine: StartEngine) -> None:
    engine = start_engine(num_slots=3, prefill_rows=8)
    plain = start_engine(num_slots=3, prefill_rows=8, prefix_cache_bytes=0)
    codes = np.random.default_rng(1).integers(0, 256, (30, 16))
    context = (Segment(2, "a reference clip", codes=codes),)
    said = [Utterance(t, 2, Sampling(seed=5), context, max_frames=8) for t in ("one", "another")]
    heard = [speak(engine, utterance).codes for utterance in (*said, said[0])]
    assert engine.runner.prefixes.num_hits == 2
    assert engine.runner.prefixes.num_misses == 1
    expected = [speak(plain, utterance).codes for utterance in (*said, said[0])]
    assert plain.runner.prefixes.num_hits == 0
    assert all(np.array_equal(a, b) for a, b in zip(heard, expected, strict=True))


def test_utterances_that_share_a_prefix_at_once_do_not_write_into_it(
    start_engine: StartEngine,
) -> None:
    engine = start_engine(num_slots=3, prefill_rows=8)
    plain = start_engine(num_slots=3, prefill_rows=8, prefix_cache_bytes=0)
    codes = np.random.default_rng(4).integers(0, 256, (37, 16))
    context = (Segment(2, "a shared voice", codes=codes),)
    said = [Utterance(f"text {i}", 2, Sampling(seed=i), context, max_frames=40) for i in range(3)]
    speak(engine, said[0])
    handles = [engine.submit(utterance) for utterance in said]
    for handle, utterance in zip(handles, said, strict=True):
        assert np.array_equal(handle.result(WAIT_S).codes, speak(plain, utterance).codes)


def test_a_context_that_begins_alike_but_goes_on_differently_is_another_prefix(
    start_engine: StartEngine,
) -> None:
    engine = start_engine(num_slots=3, prefill_rows=16)
    plain = start_engine(num_slots=3, prefill_rows=16, prefix_cache_bytes=0)
    rng = np.random.default_rng(3)
    first, second, third = (Segment(1, t, codes=rng.integers(0, 256, (9, 16))) for t in "abc")
    hits = engine.runner.prefixes.num_hits
    for context in ((first, second), (first, third), (first,), (first, second)):
        said = Utterance("so", 1, Sampling(seed=2), context, max_frames=4)
        assert np.array_equal(speak(engine, said).codes, speak(plain, said).codes)
    assert engine.runner.prefixes.num_hits == hits + 1


def test_an_utterance_may_fill_the_last_position(start_engine: StartEngine) -> None:
    engine = start_engine(max_positions=64, num_slots=1)
    rows = len(engine._prompt(Utterance("brim")))
    speech = speak(engine, Utterance("brim", max_frames=64 - rows))
    assert len(speech.codes) == 64 - rows
    with pytest.raises(PromptTooLong):
        engine.submit(Utterance("brim", max_frames=65 - rows))
