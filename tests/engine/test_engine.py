"""The engine as a whole, on csm-tiny: batching, endings, prefixes, budgets, failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from worker.engine.checkpoint import Checkpoint
from worker.engine.engine import Engine, EngineConfig
from worker.engine.errors import (
    DeadlinePassed,
    EngineStopped,
    PromptTooLong,
    UtteranceCancelled,
)
from worker.engine.kv import PrefixCache
from worker.engine.sampling import Sampling
from worker.engine.utterance import Segment, Speech, Utterance

StartEngine = Callable[..., Engine]
WAIT_S = 120.0


def speak(engine: Engine, utterance: Utterance) -> Speech:
    return engine.submit(utterance).result(WAIT_S)


def test_the_same_seed_says_the_same_and_another_seed_does_not(start_engine: StartEngine) -> None:
    engine = start_engine()
    first, again, other = (
        speak(engine, Utterance("hello", sampling=Sampling(seed=seed), max_frames=6))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first.codes, again.codes)
    assert not np.array_equal(first.codes, other.codes)


def test_audio_is_one_frame_of_samples_per_frame_of_codes(start_engine: StartEngine) -> None:
    speech = speak(start_engine(), Utterance("hello", max_frames=11))
    assert speech.sample_rate == 24_000
    assert len(speech.audio) == 11 * 1920 == len(speech.codes) * 1920
    assert speech.finish_reason == "length"
    assert 0.001 < np.abs(speech.audio).max() <= 1
    assert speech.ttfa_s is not None
    assert speech.ttfa_s < speech.generate_s


def test_streamed_chunks_are_the_whole_audio_and_the_first_comes_early(
    start_engine: StartEngine,
) -> None:
    handle = start_engine().submit(Utterance("hello", max_frames=20))
    chunks = list(handle.chunks())
    assert [len(chunk) // 1920 for chunk in chunks] == [1, 2, 4, 8, 5]
    assert np.array_equal(np.concatenate(chunks), handle.result().audio)


def test_streamed_audio_is_the_whole_decode_of_its_codes(start_engine: StartEngine) -> None:
    engine = start_engine()
    speech = speak(engine, Utterance("hello", max_frames=20))
    with torch.inference_mode():
        whole = engine.codec.decode(torch.from_numpy(speech.codes).T[None])[0].clamp(-1, 1)
    assert np.abs(speech.audio - whole.numpy()).max() < 1e-5


class SilentRunner:
    """Stands in for the runner: every turn says `script` frames, then ends."""

    def __init__(self, engine: Engine, frames: int) -> None:
        self._runner, self._frames = engine.runner, frames
        self.max_positions = engine.runner.max_positions

    def prepare(self, *args: object) -> None: ...

    def start(self, *args: object) -> None: ...

    def stop(self, *args: object) -> None: ...

    def run(self, batch):  # type: ignore[no-untyped-def]
        codes = np.ones(16, np.int64)
        return {t: codes * (t.frames_done < self._frames) for t in batch.speaking}


@pytest.mark.parametrize("frames", [0, 1, 5])
def test_an_all_zero_frame_ends_the_utterance_and_is_not_kept(
    tiny: Checkpoint, frames: int
) -> None:
    engine = Engine(tiny, EngineConfig(num_slots=2, max_positions=256))
    engine.runner = SilentRunner(engine, frames)  # type: ignore[assignment]
    engine.start()
    speech = speak(engine, Utterance("hello", max_frames=50))
    engine.stop()
    assert speech.finish_reason == "eos"
    assert speech.codes.shape == (frames, 16)
    assert len(speech.audio) == frames * 1920


def test_a_cancelled_utterance_frees_its_slot_within_a_frame(start_engine: StartEngine) -> None:
    engine = start_engine(num_slots=1)
    handle = engine.submit(Utterance("for ever " * 20, max_frames=300))
    while handle.frames_done < 3:
        time.sleep(0.005)
    handle.cancel()
    frames_then = handle.frames_done
    waiting = engine.submit(Utterance("next", max_frames=3))
    assert len(waiting.result(WAIT_S).codes) == 3
    assert handle.frames_done <= frames_then + 1  # the frame that was under way
    with pytest.raises(UtteranceCancelled):
        handle.result(WAIT_S)


def test_a_waiting_utterance_can_be_cancelled(start_engine: StartEngine) -> None:
    engine = start_engine(num_slots=1)
    first = engine.submit(Utterance("first", max_frames=30))
    second = engine.submit(Utterance("second", max_frames=30))
    second.cancel()
    with pytest.raises(UtteranceCancelled):
        list(second.chunks())
    assert len(first.result(WAIT_S).codes) == 30


def test_an_utterance_past_its_deadline_ends(start_engine: StartEngine) -> None:
    handle = start_engine().submit(Utterance("late", max_frames=400, timeout_s=0.2))
    with pytest.raises(DeadlinePassed, match="time limit"):
        handle.result(WAIT_S)


def test_context_given_as_audio_is_encoded(start_engine: StartEngine) -> None:
    engine = start_engine()
    audio = np.random.default_rng(2).normal(0, 0.2, 24_000).astype(np.float32)
    with torch.inference_mode():
        codes = engine.codec.encode(torch.from_numpy(audio)[None])[0].T.numpy()
    as_audio, as_codes = (
        speak(engine, Utterance("so", context=(Segment(1, "ref", **given),), max_frames=5)).codes
        for given in ({"audio": audio}, {"codes": codes})
    )
    assert np.array_equal(as_audio, as_codes)


def test_a_prompt_without_room_is_refused_with_the_budget(start_engine: StartEngine) -> None:
    engine = start_engine(max_positions=128)
    with pytest.raises(
        PromptTooLong, match=r"takes 106 of 128 rows.*1\.8 s.*2\.4 s were asked for"
    ):
        engine.submit(Utterance("x" * 101, max_frames=30))
    with pytest.raises(PromptTooLong, match="would be needed"):
        engine.submit(Utterance("x" * 120))


def test_without_a_limit_the_texts_length_sets_one(start_engine: StartEngine) -> None:
    handle = start_engine().submit(Utterance("x" * 12))
    assert handle.max_frames == int((3 + 12 / 6) * 12.5)
    handle.cancel()


class BrokenRunner(SilentRunner):
    def run(self, batch):  # type: ignore[no-untyped-def]
        raise RuntimeError("the device fell off")


def test_a_failing_device_fails_every_waiting_utterance_and_refuses_new_ones(
    tiny: Checkpoint,
) -> None:
    engine = Engine(tiny, EngineConfig(num_slots=1, max_positions=256))
    engine.runner = BrokenRunner(engine, 0)  # type: ignore[assignment]
    handles = [engine.submit(Utterance("hello", max_frames=5)) for _ in range(3)]
    engine.start()
    for handle in handles:
        with pytest.raises(EngineStopped, match="the device fell off"):
            handle.result(WAIT_S)
    with pytest.raises(EngineStopped):
        engine.submit(Utterance("hello"))
    assert isinstance(engine.failure, RuntimeError)
    engine.stop()


def test_stopping_the_engine_ends_what_was_being_spoken(start_engine: StartEngine) -> None:
    engine = start_engine()
    handle = engine.submit(Utterance("for ever", max_frames=400))
    threading.Timer(0.1, engine.stop).start()
    with pytest.raises(EngineStopped):
        handle.result(WAIT_S)


def test_an_idle_engine_keeps_ticking(start_engine: StartEngine) -> None:
    engine = start_engine()
    first = engine.last_tick
    deadline = time.monotonic() + WAIT_S
    while engine.last_tick == first and time.monotonic() < deadline:
        time.sleep(0.05)
    assert engine.last_tick > first


def test_an_utterance_cancelled_while_its_prompt_is_read_leaves_the_slot_usable(
    start_engine: StartEngine,
) -> None:
    engine = start_engine(num_slots=1, prefill_rows=4)
    expected = speak(engine, Utterance("short", sampling=Sampling(seed=1), max_frames=5)).codes
    handle = engine.submit(Utterance("long " * 60, max_frames=5))
    handle.cancel()
    again = speak(engine, Utterance("short", sampling=Sampling(seed=1), max_frames=5)).codes
    assert np.array_equal(expected, again)
    with pytest.raises(UtteranceCancelled):
        handle.result(WAIT_S)


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((3, 15), np.int64),
        np.zeros((3, 16), np.int32),
        np.full((3, 16), 256, np.int64),
        np.full((3, 16), -1, np.int64),
    ],
)
def test_context_codes_that_make_no_sense_are_refused_before_they_reach_the_engine(
    start_engine: StartEngine, codes: np.ndarray
) -> None:
    engine = start_engine()
    with pytest.raises(ValueError, match="context codes"):
        engine.submit(Utterance("x", context=(Segment(1, "ref", codes=codes),)))
    assert len(speak(engine, Utterance("alive", max_frames=2)).codes) == 2


def test_an_utterance_of_no_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="max_frames"):
        Utterance("x", max_frames=0)


def test_the_prefix_cache_lets_the_oldest_go_when_its_bytes_are_spent() -> None:
    cache = PrefixCache(max_bytes=2 * 40)
    entries = {name: torch.zeros(10) for name in "abc"}
    cache.put("a", entries["a"])
    cache.put("b", entries["b"])
    assert cache.get("a") is entries["a"]
    cache.put("c", entries["c"])
    assert cache.get("b") is None
    assert cache.get("a") is entries["a"]
    assert cache.num_bytes == 80
    cache.put("huge", torch.zeros(100))
    assert cache.get("huge") is None
