"""Seconds per 80 ms frame of the language model, ours beside transformers, in one interleaved run.

Random weights of CSM-1B's exact shape (or csm-tiny's), a fixed number of frames, greedy, no codec;
then the codec by itself. Only ratios within one run mean anything. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import transformers
from transformers import CsmConfig, CsmForConditionalGeneration

from worker.engine.checkpoint import CODEC, TIED
from worker.engine.csm import Csm
from worker.engine.mimi import Mimi
from worker.engine.mimi_spec import MimiSpec
from worker.engine.ops.torch_ops import TorchOps
from worker.engine.prompt import Prompt
from worker.engine.runner import Runner
from worker.engine.sampling import Sampling
from worker.engine.scheduler import Scheduler, Turn
from worker.engine.spec import CsmSpec
from worker.engine.tiny import tiny_config

FRAME_S = 0.08
PROMPT_ROWS = 24
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 0.125,
    "high_freq_factor": 0.5, "original_max_position_embeddings": 1024,
}  # fmt: skip


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    print(f"machine: {_machine(args.threads)}")
    print(f"shape {args.shape}, {args.dtype}, {args.frames} frames a sample, {args.rounds} rounds")
    began = time.monotonic()
    theirs = _transformers(args.shape, DTYPES[args.dtype])
    ours = _ours(theirs)
    print(f"both models built in {time.monotonic() - began:.0f} s; weights are shared values")
    seconds = _interleaved(
        {"echoforge": lambda b: _our_frames(ours, theirs, b, args.frames),
         "transformers": lambda b: _their_frames(theirs, b, args.frames)},
        args.slots, args.rounds,
    )  # fmt: skip
    bandwidth = _read_bandwidth()
    figures = _report(seconds, args.slots, ours, bandwidth)
    figures["codec_ms_per_frame"] = _codec(theirs, args.slots)
    figures |= {"shape": args.shape, "dtype": args.dtype, "threads": args.threads}
    figures["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1)
    print(f"peak memory, both models: {figures['peak_gb']} GB")
    print(json.dumps({"engine": figures, "machine": _machine(args.threads)}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="csm-1b", choices=["csm-1b", "csm-tiny"])
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--frames", type=int, default=3, help="frames timed per sample")
    parser.add_argument("--rounds", type=int, default=3, help="samples per engine and slot count")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def _transformers(shape: str, dtype: torch.dtype) -> CsmForConditionalGeneration:
    if shape == "csm-tiny":
        config = CsmConfig(**tiny_config(260))
    else:
        config = CsmConfig(rope_parameters=LLAMA3, depth_decoder_config={"rope_parameters": LLAMA3})
    model = CsmForConditionalGeneration(config).to(dtype).eval()
    model.generation_config.cache_implementation = "static"
    reserved = list(range(model.codec_model.config.codebook_size, config.vocab_size))
    model.generation_config.suppress_tokens = reserved
    model.depth_decoder.generation_config.suppress_tokens = reserved
    return model


def _ours(theirs: CsmForConditionalGeneration) -> Csm:
    weights = {n: t for n, t in theirs.state_dict().items() if not n.startswith(CODEC)}
    weights[TIED[0]] = weights[TIED[1]]
    spec = CsmSpec.from_config(theirs.config.to_dict())
    return Csm(spec, weights, TorchOps())


def _our_frames(
    model: Csm, theirs: CsmForConditionalGeneration, batch_size: int, frames: int
) -> list[float]:
    """Seconds of each frame after the first, which warms up."""
    num_codes = theirs.codec_model.config.codebook_size
    runner = Runner(model, num_slots=batch_size, max_positions=256, num_codes=num_codes)
    scheduler = Scheduler(batch_size, prefill_rows=64, clock=time.monotonic)
    num_codebooks = model.spec.num_codebooks
    prompt = Prompt(np.arange(PROMPT_ROWS), np.zeros((PROMPT_ROWS, num_codebooks), np.int64), 0)
    for _ in range(batch_size):
        scheduler.add(Turn(PROMPT_ROWS, frames + 2 * batch_size + 2))
    times: list[float] = []
    while len(times) <= frames:
        batch = scheduler.schedule()
        for turn in batch.admitted:
            runner.start(turn, prompt, Sampling(temperature=0))
        began = time.perf_counter()
        codes = runner.run(batch)
        if len(batch.speaking) == batch_size and not batch.prefills:
            times.append(time.perf_counter() - began)
        scheduler.commit(batch, dict.fromkeys(codes, False))
    for turn in scheduler.clear():
        runner.stop(turn)
    return times[1:]


@torch.inference_mode()
def _their_frames(model: CsmForConditionalGeneration, batch_size: int, frames: int) -> list[float]:
    ids = torch.arange(PROMPT_ROWS).repeat(batch_size, 1)
    stamps: list[float] = []

    def stamp(_: Any, scores: torch.Tensor) -> torch.Tensor:
        stamps.append(time.perf_counter())
        return scores

    model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, depth_decoder_do_sample=False,
        max_new_tokens=frames + 2, logits_processor=[stamp],
    )  # fmt: skip
    return [b - a for a, b in pairwise(stamps[1:])]


def _interleaved(
    engines: dict[str, Callable[[int], list[float]]], slots: list[int], rounds: int
) -> dict[str, dict[int, list[float]]]:
    seconds: dict[str, dict[int, list[float]]] = {name: {b: [] for b in slots} for name in engines}
    for index in range(rounds):
        for batch_size in slots:
            for name, run in engines.items():
                seconds[name][batch_size] += run(batch_size)
        print(f"round {index + 1} of {rounds} done", flush=True)
    return seconds


def _report(
    seconds: dict[str, dict[int, list[float]]], slots: list[int], model: Csm, bandwidth: float
) -> dict[str, Any]:
    gigabytes = _bytes_per_frame(model) / 1e9
    print(f"\nread bandwidth {bandwidth:.1f} GB/s; a frame reads {gigabytes:.2f} GB of weights,")
    print(f"so {gigabytes / bandwidth:.3f} s is the floor at one slot\n")
    print("slots  echoforge s/frame (min-max)   RTF  together  transformers s/frame  ratio  floor")
    figures: dict[str, Any] = {"s_per_frame": {}, "ratio_vs_transformers": {}, "rtf": {}}
    for batch_size in slots:
        samples = seconds["echoforge"][batch_size]
        ours, theirs = (statistics.median(seconds[n][batch_size]) for n in seconds)
        share = gigabytes / bandwidth / ours
        print(
            f"{batch_size:5d}  {ours:.3f} ({min(samples):.3f}-{max(samples):.3f})"
            f"{ours / FRAME_S:16.2f}  {ours / FRAME_S / batch_size:8.2f}  {theirs:20.3f}"
            f"  {theirs / ours:4.2f}x  {share:.0%}"
        )
        figures["s_per_frame"][str(batch_size)] = round(ours, 4)
        figures["rtf"][str(batch_size)] = round(ours / FRAME_S, 3)
        figures["ratio_vs_transformers"][str(batch_size)] = round(theirs / ours, 3)
    figures["bandwidth_gb_s"] = round(bandwidth, 1)
    return figures


def _bytes_per_frame(model: Csm) -> float:
    """Weights read for one frame: the backbone once, the depth decoder once a codebook."""

    def of(stack: Any) -> int:
        return sum(t.nbytes for layer in stack.layers for t in vars(layer).values())

    passes = model.spec.num_codebooks - 1
    heads = model.heads.nbytes + model.first_head.nbytes + model.projection.nbytes * passes
    return float(of(model.backbone) + of(model.depth) * passes + heads)


def _codec(theirs: CsmForConditionalGeneration, slots: list[int]) -> dict[str, float]:
    """Milliseconds per frame and stream, streaming, eight frames a call."""
    spec = MimiSpec.from_config(theirs.config.codec_config.to_dict())
    weights = {n: t.float() for n, t in theirs.codec_model.state_dict().items()}
    codec = Mimi(spec, {_flat(n): t for n, t in weights.items()})
    figures = {}
    for batch_size in slots:
        state = codec.new_state(batch_size)
        codes = torch.zeros(batch_size, spec.num_quantizers, 8, dtype=torch.int64)
        rows = torch.arange(batch_size)
        times = []
        with torch.inference_mode():
            for _ in range(5):
                began = time.perf_counter()
                codec.decode_step(codes, state, rows)
                times.append((time.perf_counter() - began) / 8 / batch_size * 1e3)
        figures[str(batch_size)] = round(statistics.median(times[1:]), 2)
    print(f"codec, ms per frame and stream, 8 frames a call: {figures}")
    return figures


LIVE_NAMES = {
    "encoder.encoder_seanet.": "encoder.",
    "encoder.encoder_transformer.": "encoder_transformer.",
    "encoder.downsample.": "downsample.",
    "decoder.decoder_seanet.": "decoder.",
    "decoder.decoder_transformer.": "decoder_transformer.",
    "decoder.upsample.": "upsample.",
}


def _flat(name: str) -> str:
    """A live MimiModel nests what its checkpoints keep flat."""
    for nested, flat in LIVE_NAMES.items():
        if name.startswith(nested):
            return flat + name.removeprefix(nested)
    return name


def _read_bandwidth() -> float:
    """GB/s of summing 1 GiB, the best of five: what these cores stream."""
    block = torch.ones(2**28, dtype=torch.float32)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        block.sum()
        best = min(best, time.perf_counter() - began)
    return block.nbytes / best / 1e9


def _machine(threads: int) -> str:
    model = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return f"{names[0] if names else model}, {threads} threads, torch {torch.__version__}"


if __name__ == "__main__":
    main()
