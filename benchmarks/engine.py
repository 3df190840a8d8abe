"""The engine beside transformers, in one interleaved run: frames, sound, codec, memory ceilings."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CsmForConditionalGeneration

from benchmarks.machine import read_gb_s, spread
from worker.engine.audio_stream import AudioStream
from worker.engine.backends import Precision
from worker.engine.checkpoint import Checkpoint
from worker.engine.engine import Engine, EngineConfig
from worker.engine.prompt import Prompt
from worker.engine.sampling import Sampling
from worker.engine.scheduler import Scheduler, Turn
from worker.engine.utterance import Utterance
from worker.engine.weights import matrices

FRAME_S = 0.08
PROMPT_ROWS = 24
PRECISIONS: tuple[Precision, ...] = ("int8", "int4")
BYTES = {"int8": 1.0, "int4": 0.5 + 4 / 128}
TEXT = "A sentence of a usual length, as people say it."


@dataclass(frozen=True)
class Plan:
    slots: tuple[int, ...]
    rounds: int
    frames: int  # timed per sample
    pack_dir: Path
    threads: int


@dataclass
class Samples:
    """Seconds per frame by who made them and the number of slots."""

    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def add(self, who: str, slots: int, times: list[float]) -> None:
        self.seconds.setdefault((who, slots), []).extend(times)

    def median(self, who: str, slots: int) -> float:
        return statistics.median(self.seconds[who, slots])


def bench_engine(
    theirs: CsmForConditionalGeneration, mine: Checkpoint, plan: Plan
) -> dict[str, Any]:
    config = EngineConfig(
        num_slots=max(plan.slots), max_positions=512, backend="openvino",
        pack_dir=plan.pack_dir, num_threads=plan.threads,
    )  # fmt: skip
    engines = {p: Engine(mine, replace(config, precision=p)) for p in PRECISIONS}
    samples = Samples()
    for number in range(plan.rounds):
        for slots in plan.slots:
            samples.add("transformers", slots, their_frames(theirs, slots, plan.frames))
            for precision, engine in engines.items():
                samples.add(precision, slots, our_frames(engine, slots, plan.frames))
        print(f"round {number + 1} of {plan.rounds} done", flush=True)
    figures = _frame_figures(samples, plan.slots)
    figures |= _ceiling(mine, samples)
    figures |= _sound(engines["int8"], plan.rounds)
    figures["codec_ms_per_frame"] = _codec_ms(engines["int8"])
    return figures


def our_frames(engine: Engine, slots: int, frames: int) -> list[float]:
    """Seconds of each frame of a full batch, after one that warms up; no codec."""
    runner, scheduler = engine.runner, Scheduler(slots, prefill_rows=64, clock=time.monotonic)
    num_codebooks = engine.checkpoint.spec.num_codebooks
    prompt = Prompt(np.arange(PROMPT_ROWS), np.zeros((PROMPT_ROWS, num_codebooks), np.int64), 0)
    for _ in range(slots):
        scheduler.add(Turn(PROMPT_ROWS, frames + 2 * slots + 2))
    times: list[float] = []
    while len(times) <= frames:
        batch = scheduler.schedule()
        for turn in batch.admitted:
            runner.start(turn, prompt, Sampling(seed=turn.arrival))
        began = time.perf_counter()
        codes = runner.run(batch)
        if len(batch.speaking) == slots and not batch.prefills:
            times.append(time.perf_counter() - began)
        scheduler.commit(batch, dict.fromkeys(codes, False))
    for turn in scheduler.clear():
        runner.stop(turn)
    return times[1:]


@torch.inference_mode()
def their_frames(model: CsmForConditionalGeneration, slots: int, frames: int) -> list[float]:
    ids = torch.arange(PROMPT_ROWS).repeat(slots, 1)
    stamps: list[float] = []

    def stamp(_: Any, scores: torch.Tensor) -> torch.Tensor:
        stamps.append(time.perf_counter())
        return scores

    model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, depth_decoder_do_sample=False,
        max_new_tokens=frames + 2, logits_processor=[stamp],
    )  # fmt: skip
    return [b - a for a, b in pairwise(stamps[1:])]


def _frame_figures(samples: Samples, slots: tuple[int, ...]) -> dict[str, Any]:
    print("\nseconds per 80 ms frame, language model alone, median (min-max)")
    print(
        "slots  transformers bf16      int8                   ratio  int4                   ratio"
    )
    ratios: dict[str, dict[str, float]] = {p: {} for p in PRECISIONS}
    seconds: dict[str, dict[str, float]] = {}
    for b in slots:
        theirs = samples.median("transformers", b)
        cells = [f"{b:5d}  {spread(samples.seconds['transformers', b])}"]
        for p in PRECISIONS:
            ratios[p][str(b)] = round(theirs / samples.median(p, b), 2)
            cells.append(f"{spread(samples.seconds[p, b])}  {ratios[p][str(b)]:5.2f}")
        print("   ".join(cells))
        for who in ("transformers", *PRECISIONS):
            seconds.setdefault(who, {})[str(b)] = round(samples.median(who, b), 4)
    return {
        "s_per_frame": seconds,
        "ratio_vs_transformers": ratios,
        "rtf": {p: {b: _rtf(s) for b, s in seconds[p].items()} for p in PRECISIONS},
        "aggregate_rtf": {
            p: {b: _rtf(s / int(b)) for b, s in seconds[p].items()} for p in PRECISIONS
        },
    }


def _rtf(seconds: float) -> float:
    return round(seconds / FRAME_S, 3)


def _ceiling(checkpoint: Checkpoint, samples: Samples) -> dict[str, Any]:
    """How much of what reading the weights alone would take is reached at one slot."""
    backbone, depth, once = weights_read(checkpoint)
    passes = checkpoint.spec.num_codebooks - 1
    shares, reads = {}, {}
    for precision in PRECISIONS:
        part = BYTES[precision]
        large, small = read_gb_s(int(backbone * part)), read_gb_s(int(depth * part))
        floor = backbone * part / large + (depth * passes + once) * part / small
        shares[precision] = round(floor / 1e9 / samples.median(precision, 1), 3)
        reads[precision] = round((backbone + depth * passes + once) * part / 1e9, 2)
        print(
            f"{precision}: a frame reads {reads[precision]} GB of weights; the cores read the"
            f" backbone's size at {large:.0f} GB/s, the depth decoder's at {small:.0f};"
            f" {shares[precision]:.0%} of that is reached at one slot"
        )
    return {"bandwidth_share": shares, "gb_per_frame": reads}


def weights_read(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """Weights read for a frame: the backbone's, one depth pass's, and those read once."""
    counts = {"backbone": 0, "depth": 0, "once": 0}
    for name, matrix in matrices(checkpoint.spec, checkpoint.weights):
        stack = name.split(".")[0]
        counts[stack if stack in counts else "once"] += matrix.numel()
    return counts["backbone"], counts["depth"], counts["once"]


def _sound(engine: Engine, rounds: int) -> dict[str, Any]:
    """Whole utterances, codec included: one after another, eight together, and the first sound."""
    alone, together = [], []
    for _ in range(rounds):
        alone.append(sum(_speak_all(engine, 1) for _ in range(8)))
        together.append(_speak_all(engine, 8))
    serial, batch = statistics.median(alone), statistics.median(together)
    frame, first = zip(*(_first_sound(engine) for _ in range(2 * rounds)), strict=True)
    figures = {
        "together_vs_serial_8": round(serial / batch, 2),
        "rtf_with_codec": {"1": _rtf(serial / 8 / UTTERANCE_FRAMES)},
        "aggregate_rtf_with_codec": {"8": _rtf(batch / 8 / UTTERANCE_FRAMES)},
        "first_sound_frames": round(statistics.median(first) / statistics.median(frame), 2),
        "first_sound_s_after_prefill": round(statistics.median(first), 3),
    }
    print(f"eight utterances of {UTTERANCE_FRAMES} frames, int8, prompts and codec included:")
    print(f"  one after another {spread(alone)} s, together {spread(together)} s")
    print(f"  first sound after prefill: {spread(list(first))} s; a frame: {spread(list(frame))} s")
    return figures


UTTERANCE_FRAMES = 25


def _speak_all(engine: Engine, count: int) -> float:
    """Seconds from the first submission until the last utterance has ended."""
    began = time.perf_counter()
    handles = [
        engine.submit(Utterance(TEXT, sampling=Sampling(seed=i), max_frames=UTTERANCE_FRAMES))
        for i in range(count)
    ]
    _step_until(engine, lambda: all(handle.is_done for handle in handles))
    return time.perf_counter() - began


def _first_sound(engine: Engine) -> tuple[float, float]:
    """Seconds of a frame, and from the end of the prefill to the first audio, of one utterance."""
    handle = engine.submit(Utterance(TEXT, max_frames=4))
    _step_until(engine, lambda: any(turn.is_prefilled for turn in engine.scheduler.turns))
    began = time.perf_counter()
    _step_until(engine, lambda: handle.has_sound)
    first = time.perf_counter() - began
    began = time.perf_counter()
    engine.step()
    frame = time.perf_counter() - began
    _step_until(engine, lambda: handle.is_done)
    return frame, first


def _step_until(engine: Engine, is_so: Callable[[], bool]) -> None:
    """Drives an engine that was not started."""
    while not is_so():
        engine.take_in()
        engine.step()


def _codec_ms(engine: Engine) -> dict[str, float]:
    """Milliseconds per frame and stream, streaming through the chunk schedule of a real stream."""
    figures = {}
    for slots in (1, 8):
        times = []
        for _ in range(3):
            stream = AudioStream(engine.codec, slots)
            for slot in range(slots):
                stream.start(slot)
            began = time.perf_counter()
            for _ in range(31):  # 1 + 2 + 4 + 8 + 8 + 8
                for slot in range(slots):
                    stream.add(slot, np.zeros(engine.checkpoint.spec.num_codebooks, np.int64))
                stream.decode_due(set())
            times.append((time.perf_counter() - began) / 31 / slots * 1e3)
        figures[str(slots)] = round(statistics.median(times), 2)
    print(f"codec, streaming, ms per frame and stream: {figures}")
    return figures
