"""What a worker says of itself with each heartbeat. Knows shapes only."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class WorkerInfo(BaseModel):
    """New fields need defaults, so that workers of two versions can live side by side."""

    id: str
    host: str
    pid: int
    device: str
    model: str
    model_notice: str | None = None
    slots: int
    active: int = 0
    started_at: float
    engine_tick_age_s: float = 0.0
    device_fallback: str | None = None
    precision: str | None = None
    prefix_hits: int = 0  # contexts whose keys and values were there already, since it started
    prefix_misses: int = 0
    prefix_bytes: int = 0
    state: Literal["ready", "draining"] = "ready"
