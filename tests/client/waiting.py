"""Waiting in tests: for a condition, as everywhere, and for a process to be gone."""

from __future__ import annotations

from pathlib import Path

from tests.waiting import until

__all__ = ["is_gone", "until"]


def is_gone(pid: int) -> bool:
    """Ended, even if nobody has collected its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
