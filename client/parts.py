"""The processes EchoForge is made of: how each is started, and what must be installed for it.

Knows module names, extras and environment variables; starts nothing.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from client.setup_error import SetupError
from client.supervisor import Part
from shared.settings import Settings

HOME = Path(__file__).resolve().parents[1]  # a checkout that is not installed is found, too
NEEDS = {"api": ("fastapi", "uvicorn"), "worker": ("torch", "av")}
DRAIN_MARGIN_S = 10.0  # on top of drain_s: giving the rest back, letting go of the model
REDIS_STAGE, API_STAGE, WORKER_STAGE = 0, 1, 2


class MissingExtra(SetupError):
    """A part's packages are not installed."""


def require(module: str) -> None:
    """`module` is api or worker, which is also the name of its extra."""
    missing = [name for name in NEEDS[module] if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"the {module} needs {' and '.join(missing)}: pip install 'echoforge[{module}]'"
        )


def part_argv(module: str) -> list[str]:
    """-P: the user's own folder may hold a package called api, and that one is not meant."""
    return [sys.executable, "-P", "-m", module]


def part_environment(overrides: Mapping[str, object]) -> dict[str, str]:
    """Settings' names and values as the variables that Settings reads, and where our code lies."""
    return {
        "PYTHONPATH": os.pathsep.join([*_python_path(), str(HOME)]),
        **{f"ECHOFORGE_{name.upper()}": str(value) for name, value in overrides.items()},
    }


def api_part(env: Mapping[str, str]) -> Part:
    return Part("api", part_argv("api"), env, stage=API_STAGE)


def worker_parts(settings: Settings, num_workers: int, env: Mapping[str, str]) -> list[Part]:
    """Workers of one machine share its cores evenly, unless `threads` says how many each takes."""
    if num_workers > 1 and settings.threads == 0:
        env = {**env, "ECHOFORGE_THREADS": str(_share_of_cores(num_workers))}
    grace_s = settings.drain_s + DRAIN_MARGIN_S
    return [
        Part(f"worker{n}", part_argv("worker"), env, stage=WORKER_STAGE, grace_s=grace_s)
        for n in range(1, num_workers + 1)
    ]


def _python_path() -> list[str]:
    return [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]


def _share_of_cores(num_workers: int) -> int:
    return max(1, (os.cpu_count() or 1) // num_workers)
