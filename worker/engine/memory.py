"""Whether a model and its slots fit into this machine's memory, told before they are tried.

Estimates, from shapes alone; they are compared with what is free, and with what a container may
use. Knows shapes and the kernel's files; knows no tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path

from worker.engine.errors import MemoryTooSmall
from worker.engine.runner import buckets
from worker.engine.spec import CsmSpec
from worker.engine.weights import BACKBONE, csm_shapes

# a weight in bytes, with its share of the scales
BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.54}
PASS_BYTES = 2_400_000  # what a compiled graph keeps for one layer of one depth pass, measured
PROCESS_BYTES = 1_100_000_000  # libraries, the codec and its buffers, measured
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def check_memory(need: Callable[[int], int], num_slots: int, free: int | None) -> None:
    """`need` tells the bytes for a number of slots. Raises `MemoryTooSmall`; None is not known."""
    if free is None or need(num_slots) <= free:
        return
    fitting = max((n for n in range(1, num_slots) if need(n) <= free), default=0)
    asked = f"{num_slots} slots need about {_gb(need(num_slots))}, and {_gb(free)} are free"
    if fitting:
        raise MemoryTooSmall(
            f"{asked}; {fitting} would fit: set ECHOFORGE_SLOTS={fitting},"
            " or lower ECHOFORGE_MAX_POSITIONS"
        )
    raise MemoryTooSmall(
        f"{asked}; not even one fits ({_gb(need(1))}): close other programs, lower"
        " ECHOFORGE_MAX_POSITIONS, or set ECHOFORGE_PRECISION=int8 (int4 is smaller still)"
    )


def free_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Bytes that may be had; None where the kernel does not say (macOS, Windows)."""
    if not meminfo.is_file():
        return None
    told = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    machine = int(told["MemAvailable"].split()[0]) * 1024
    container = _free_in_container(cgroup)
    return machine if container is None else min(machine, container)


def _free_in_container(cgroup: Path) -> int | None:
    """What a memory limit leaves; the pages of files can be given back, so they count as free."""
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return None
    stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    return int(limit.read_text()) - int(used.read_text()) + int(stat.get("inactive_file", 0))


def torch_bytes(spec: CsmSpec, precision: str, num_slots: int, max_positions: int) -> int:
    """An estimate of what PyTorch needs on the CPU: weights, and slots with every position kept."""
    weights = sum(_weights(spec)) * BYTES[precision]
    return int(PROCESS_BYTES + weights + _slots(spec, num_slots, max_positions, BYTES[precision]))


def openvino_bytes(spec: CsmSpec, precision: str, num_slots: int, max_positions: int) -> int:
    """The same of OpenVINO, whose embeddings stay in the mapped file, as the checkpoint's do."""
    backbone, frame, _ = _weights(spec)
    passes = spec.depth.num_layers * (spec.num_codebooks - 1)
    graphs = len(buckets(num_slots)) * (frame * BYTES[precision] + passes * PASS_BYTES)
    weights = backbone * BYTES[precision] + graphs
    return int(PROCESS_BYTES + weights + _slots(spec, num_slots, max_positions, BYTES["fp32"]))


def _weights(spec: CsmSpec) -> tuple[int, int, int]:
    """How many the backbone has, a frame's depth decoder and heads, and the embeddings."""
    sizes = {name: prod(shape) for name, shape in csm_shapes(spec).items()}
    backbone = sum(n for name, n in sizes.items() if name.startswith(f"{BACKBONE}layers"))
    tables = sum(n for name, n in sizes.items() if "embed_" in name)
    return backbone, sum(sizes.values()) - backbone - tables, tables


def _slots(spec: CsmSpec, num_slots: int, max_positions: int, value_bytes: float) -> float:
    stack = spec.backbone
    row = 2 * stack.num_layers * stack.num_kv_heads * stack.head_dim * value_bytes
    return num_slots * min(max_positions, stack.max_positions) * row


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
