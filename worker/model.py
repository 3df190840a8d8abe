"""Which checkpoint a worker serves, from its settings, and what must be said about it.

csm-tiny only ever by its own name. Knows settings and places; knows nothing of jobs or devices.
"""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE

from shared.settings import Settings
from worker.engine.checkpoint import Checkpoint, load_checkpoint
from worker.engine.errors import ModelNotFound
from worker.engine.search import CSM_1B, Found, find_checkpoint, places_searched
from worker.engine.tiny import TINY, write_tiny

log = logging.getLogger(__name__)
MIMI_ENTRY = "models--kyutai--mimi"
UNTRAINED = (
    "{name} is untrained: what it says is noise, not speech."
    " For speech get CSM-1B with `echoforge download` and use --model csm-1b."
)


def find_model(settings: Settings) -> Found:
    """Raises `ModelNotFound`, which names where it looked and the way out."""
    if settings.model == TINY:
        path = settings.data_dir.expanduser() / "models" / TINY
        write_tiny(path)
        return Found(path, "csm-tiny was asked for; made from a fixed seed")
    if settings.model != CSM_1B:
        return Found(_directory(settings.model), "the directory that was asked for")
    return find_checkpoint(settings.model_dir.expanduser(), Path(HF_HUB_CACHE))


def load_model(settings: Settings) -> Checkpoint:
    found = find_model(settings)
    log.info("taking %s: %s", found.path, found.why)
    return load_checkpoint(found.path, name=found.name, mimi=_mimi_beside(found.path))


def model_notice(checkpoint: Checkpoint) -> str | None:
    """What every user of this model must be told, in plain words."""
    return None if checkpoint.is_trained else UNTRAINED.format(name=checkpoint.name)


def searched(settings: Settings) -> list[str]:
    if settings.model not in (CSM_1B, TINY):
        return [settings.model]
    return places_searched(settings.model_dir.expanduser(), Path(HF_HUB_CACHE))


def _directory(model: str) -> Path:
    path = Path(model).expanduser()
    if not path.is_dir():
        raise ModelNotFound(f"{model!r} is no directory, and no model: known are {CSM_1B}, {TINY}")
    return path


def _mimi_beside(path: Path) -> Path | None:
    """For the original layout: kyutai/mimi from the cache, when there is no copy in `path`."""
    refs = Path(HF_HUB_CACHE) / MIMI_ENTRY / "refs" / "main"
    if (path / "mimi").is_dir() or not refs.is_file():
        return None
    return refs.parent.parent / "snapshots" / refs.read_text(encoding="utf-8").strip()
