"""What these figures were measured on, and what its memory can do."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


def read_gb_s(num_bytes: int) -> float:
    """What the cores read of a block of `num_bytes`, again and again: a matrix times a vector.

    The best of nine: a ceiling. Blocks that fit the last cache are read faster than larger ones.
    """
    width = 1024
    block = torch.ones(num_bytes // 4 // width, width)
    vector = torch.ones(width)
    return block.nbytes / min(_times(lambda: torch.mv(block, vector), 9)) / 1e9


def _times(run: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return times


def spread(samples: list[float]) -> str:
    return f"{statistics.median(samples):.3f} ({min(samples):.3f}-{max(samples):.3f})"
