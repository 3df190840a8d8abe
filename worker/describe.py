"""What a worker with these settings would serve, without loading it."""

from __future__ import annotations

from typing import Any

import torch

from shared.settings import Settings
from worker.engine.checkpoint import read_config, read_revision
from worker.engine.errors import EngineError
from worker.model import find_model, searched
from worker.precision import served_on


def describe(settings: Settings) -> dict[str, Any]:
    """`model` is null when there is none; `error` then says why, and the way out."""
    is_cuda = torch.cuda.is_available() and settings.device != "cpu"
    told: dict[str, Any] = {
        "model": None,
        "searched": searched(settings),
        "device": "cuda" if is_cuda else "cpu",
        "precision": None,
        "torch": torch.__version__,
        "error": None,
    }
    try:
        told["precision"] = served_on(str(told["device"]), settings.precision).precision
        found = find_model(settings)
        config = read_config(found.path)
    except EngineError as e:
        return told | {"error": str(e)}
    own = config.get("echoforge") or {}
    model = {
        "name": found.name or own.get("name") or found.path.name,
        "path": str(found.path),
        "why": found.why,
        "revision": read_revision(found.path),
        "is_trained": own.get("is_trained", True),
    }
    return told | {"model": model}
