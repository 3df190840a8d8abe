"""Where a CSM is looked for, in order: the model directory, CSM-1B's entry in the Hugging Face
cache, then the rest of that cache.

Knows directories; opens no weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.engine.checkpoint import is_csm_config
from worker.engine.errors import ModelNotFound

CSM_1B = "csm-1b"
CSM_1B_ENTRY = "models--sesame--csm-1b"
WEIGHTS = ("*.safetensors", "ckpt.pt")
WAY_OUT = (
    "Get it with `echoforge download` (accept the licence at https://huggingface.co/sesame/csm-1b"
    " first), give a directory as --model, or try --model csm-tiny (untrained: it makes noise)."
)


@dataclass(frozen=True)
class Found:
    """A directory that says it is a CSM, and why it was taken."""

    path: Path
    why: str
    name: str | None = None  # None: the checkpoint's own


def find_checkpoint(model_dir: Path, hub_cache: Path) -> Found:
    """Takes the first of the three. Raises `ModelNotFound` naming each place."""
    if is_csm(model_dir):
        return Found(model_dir, "the model directory", CSM_1B)
    snapshot = _main_snapshot(hub_cache / CSM_1B_ENTRY)
    if snapshot is not None and is_csm(snapshot):
        return Found(snapshot, f"the Hugging Face cache, {CSM_1B_ENTRY}", CSM_1B)
    for candidate in _other_snapshots(hub_cache):
        if is_csm(candidate):
            name = candidate.parent.parent.name.removeprefix("models--").replace("--", "/")
            return Found(candidate, f"the Hugging Face cache, {name} is a CSM", name)
    places = ", ".join(places_searched(model_dir, hub_cache))
    raise ModelNotFound(f"no CSM checkpoint found in {places}. {WAY_OUT}")


def places_searched(model_dir: Path, hub_cache: Path) -> list[str]:
    return [str(model_dir), str(hub_cache / CSM_1B_ENTRY), f"{hub_cache} (any CSM in it)"]


def is_csm(path: Path) -> bool:
    """Whether its config.json says so and it holds weights of some kind."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return is_csm_config(config) and any(any(path.glob(pattern)) for pattern in WEIGHTS)


def _main_snapshot(entry: Path) -> Path | None:
    """The snapshot that `refs/main` names: neither the newest nor the last one sorted."""
    try:
        commit = (entry / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return entry / "snapshots" / commit


def _other_snapshots(hub_cache: Path) -> Iterator[Path]:
    for entry in sorted(hub_cache.glob("models--*")):
        main = _main_snapshot(entry)
        if main is not None:
            yield main
        yield from sorted(p for p in (entry / "snapshots").glob("*") if p != main)
