"""How long a fresh process takes until it speaks, and what it holds; run by `benchmarks` itself."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from worker.engine.backends import Precision


def bench_startup(model: Path, pack_dir: Path, precision: Precision, slots: int) -> dict[str, Any]:
    """Packs anew, then starts from the packed weights; each in a process of its own."""
    for pack in pack_dir.glob(f"*-{precision}-*.safetensors"):
        pack.unlink()
    arguments = [str(model), str(pack_dir), precision, str(slots)]
    first, again = (_started(arguments) for _ in range(2))
    figures = {
        "pack_s": first["ready_s"],
        "pack_peak_gb": first["peak_gb"],
        "ready_s": again["ready_s"],
        "held_gb": again["anonymous_gb"],
        "peak_gb": again["peak_gb"],
    }
    print(f"start-up, {precision}, {slots} slots: {figures}", flush=True)
    return figures


def _started(arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.startup", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("pack_dir", type=Path)
    parser.add_argument("precision", choices=["fp32", "bf16", "int8", "int4"])
    parser.add_argument("slots", type=int)
    args = parser.parse_args()

    from worker.engine.checkpoint import load_checkpoint
    from worker.engine.engine import Engine, EngineConfig
    from worker.engine.utterance import Utterance

    config = EngineConfig(
        num_slots=args.slots, backend="openvino" if args.precision in ("int8", "int4") else "torch",
        precision=args.precision, pack_dir=args.pack_dir,
    )  # fmt: skip
    engine = Engine(load_checkpoint(args.model), config).start()
    ready = time.monotonic() - began
    handles = [engine.submit(Utterance("Ready.", max_frames=8)) for _ in range(args.slots)]
    for handle in handles:
        handle.result()
    engine.stop()
    print(json.dumps({"ready_s": round(ready, 1), **_memory()}))


def _memory() -> dict[str, float]:
    """GB. The peak counts mapped files (checkpoint, packed weights), which can be given back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    told = dict(line.split(":", 1) for line in lines)
    names = {"anonymous_gb": "RssAnon", "peak_gb": "VmHWM"}
    return {name: round(int(told[key].split()[0]) / 1e6, 2) for name, key in names.items()}


if __name__ == "__main__":
    main()
