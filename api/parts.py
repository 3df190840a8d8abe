"""What a route works with. Knows how a route gets at the parts; knows none of them closely."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import Request

from shared.audio_store import AudioStore
from shared.doorbell import Doorbell
from shared.store import JobStore


@dataclass(frozen=True)
class Parts:
    store: JobStore
    doorbell: Doorbell
    audio: AudioStore
    max_audio_s: float
    closing: threading.Event = field(default_factory=threading.Event)  # ends long polls


def parts_of(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


PartsOf = Annotated[Parts, Depends(parts_of)]
