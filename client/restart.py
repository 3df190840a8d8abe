"""Whether a part that died is started again. Knows exit codes and times, no processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EX_CONFIG = 78  # sysexits.h: the part cannot work as it is configured, so trying again is no use


@dataclass(frozen=True)
class Restart:
    after_s: float


@dataclass(frozen=True)
class GiveUp:
    reason: str


@dataclass(frozen=True)
class RestartPolicy:
    max_deaths: int = 5
    window_s: float = 60.0
    first_backoff_s: float = 0.5
    max_backoff_s: float = 8.0

    def decide(self, exit_code: int, deaths: Sequence[float]) -> Restart | GiveUp:
        """`deaths`: when this part died, oldest first, the death just seen included."""
        if exit_code == EX_CONFIG:
            return GiveUp("it cannot work as configured (exit code 78)")
        recent = sum(1 for at in deaths if deaths[-1] - at <= self.window_s)
        if recent > self.max_deaths:
            return GiveUp(f"it died {recent} times within {self.window_s:g} s")
        return Restart(min(self.first_backoff_s * 2 ** (recent - 1), self.max_backoff_s))


def describe_exit(exit_code: int) -> str:
    return f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with code {exit_code}"
