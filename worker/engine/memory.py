"""Whether a model and its slots fit into this machine's memory, told before they are tried.

Estimates, from shapes alone; they are compared with what is free, and with what a container may
use. Knows shapes and the kernel's files; knows no tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from worker.engine.errors import MemoryTooSmall

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


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
