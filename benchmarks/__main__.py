"""Measures the engine beside transformers, and the service beside the bare engine.

Random weights of CSM-1B's exact shape. Medians of interleaved runs; only ratios within one run mean
anything on a shared machine. The last line is JSON; `--readme` writes README's table from it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.engine import Plan, bench_engine
from benchmarks.machine import machine
from benchmarks.model import open_model
from benchmarks.service import bench_service
from benchmarks.startup import bench_startup
from benchmarks.table import write_table
from worker.engine.checkpoint import load_checkpoint

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"


def main() -> None:
    args = _arguments()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    print(f"machine: {machine()}; {args.threads} threads; shape {args.shape}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        told = _measure(args, work / args.shape, work / "packed")
    told |= {"machine": machine(), "shape": args.shape, "date": str(datetime.date.today())}
    if args.save:
        file = RESULTS / f"{told['date']}-{args.shape}.json"
        file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    if args.readme:
        write_table(README, told)
    print(json.dumps(told))


def _measure(args: argparse.Namespace, model: Path, pack_dir: Path) -> dict[str, Any]:
    told: dict[str, Any] = {}
    theirs = open_model(model, args.shape)
    if "engine" in args.parts:
        plan = Plan(tuple(args.slots), args.rounds, args.frames, pack_dir, args.threads)
        told["engine"] = bench_engine(theirs, load_checkpoint(model), plan)
    del theirs
    if "startup" in args.parts:
        told["startup"] = {p: bench_startup(model, pack_dir, p, 4) for p in ("int8", "int4")}
    if "service" in args.parts:
        told["service"] = bench_service(model, pack_dir, args.job_frames, args.rounds)
    return told


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--shape", default="csm-1b", choices=["csm-1b", "csm-tiny"])
    parser.add_argument(
        "--parts", nargs="+", default=["engine", "startup", "service"],
        choices=["engine", "startup", "service"],
    )  # fmt: skip
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=3, help="samples of each kind")
    parser.add_argument("--frames", type=int, default=5, help="frames timed per sample")
    parser.add_argument("--job-frames", type=int, default=40, help="frames of a service job")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, help="keep the checkpoint and packed weights here")
    parser.add_argument("--save", action="store_true", help="keep the JSON in benchmarks/results")
    parser.add_argument("--readme", action="store_true", help="write README's table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
