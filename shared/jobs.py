"""A job from POST to GET: what may be asked, the states it passes, what is told about it.

Knows limits and shapes; knows nothing about Redis, HTTP or tensors.
"""

from __future__ import annotations

import secrets
import time
import unicodedata
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StringConstraints,
    field_validator,
)

MAX_TEXT_CHARS = 5000
JOB_ID_PATTERN = r"^job_[0-9a-f]{32}$"


class JobStatus(StrEnum):
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        return not TRANSITIONS[self]


TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset(
        {JobStatus.IN_PROGRESS, JobStatus.CANCELLED, JobStatus.EXPIRED, JobStatus.FAILED}
    ),
    JobStatus.IN_PROGRESS: frozenset(
        {JobStatus.QUEUED, JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
    JobStatus.EXPIRED: frozenset(),
}

Device = Literal["auto", "cuda", "cpu"]
AudioFormat = Literal["wav", "flac"]
Priority = Literal["high", "normal", "low"]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class SpeechRequest(BaseModel):
    """The body of `POST /api/generate`. Only `text` is required; an unknown field is refused.

    Numbers are numbers: neither `true` nor `"40"` is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    text: str = Field(min_length=1, max_length=MAX_TEXT_CHARS, description="What is spoken.")
    speaker_id: StrictInt = Field(1, ge=0, le=99, description="The number in the prompt's `[n]`.")
    temperature: StrictFloat = Field(
        0.9, ge=0, le=1.5, description="0 is greedy; 0.5 to 1.0 is recommended."
    )
    top_k: StrictInt = Field(50, ge=1, le=2048, description="30 to 50 is recommended.")
    device: Device = Field("auto", description="Which workers may speak it.")
    style: Literal["default"] = Field("default", description="Styles come with voices.")
    voice: None = Field(None, description="Stored voices are not supported yet.")
    format: AudioFormat = "wav"
    seed: StrictInt | None = Field(
        None,
        ge=0,
        lt=2**53,
        description="Same seed, same speech. Below 2^53: above it JSON clients round.",
    )
    max_audio_seconds: StrictFloat | None = Field(
        None, ge=0.08, le=600, description="None: a generous limit from the text's length."
    )
    priority: Priority = "normal"
    start_timeout_s: StrictInt = Field(
        600, ge=1, le=86_400, description="Expires if not begun by then."
    )
    timeout_s: StrictInt = Field(900, ge=1, le=86_400, description="Fails if not ended by then.")
    expires_in_s: StrictInt = Field(
        86_400, ge=1, le=2_592_000, description="Audio is kept so long."
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=16)

    @field_validator("text")
    @classmethod
    def _speakable(cls, text: str) -> str:
        controls = {
            c for c in text if unicodedata.category(c) in {"Cc", "Cs"} and c not in "\n\t\r"
        }
        if controls:
            names = ", ".join(sorted(f"U+{ord(c):04X}" for c in controls))
            raise ValueError(f"text holds control characters ({names}); remove them")
        if not any(unicodedata.category(c)[0] in "LNS" for c in text):
            raise ValueError("text holds nothing to speak; send at least one letter or digit")
        return text


class Progress(BaseModel):
    """How far an utterance is. `percent` is of the estimate, and stays below 100 until the end."""

    frames: int = 0
    audio_seconds: float = 0.0
    percent: int = 0
    eta_s: float | None = None


class Output(BaseModel):
    """A published file. `name` is the file in the audio store; clients are told a URL instead."""

    name: str
    format: AudioFormat
    content_type: str
    bytes: int
    sample_rate: int
    duration_s: float
    frames: int | None = None  # 80 ms each
    sha256: str
    seed: int
    finish_reason: Literal["eos", "length"]


class JobFailure(BaseModel):
    code: str
    message: str
    retryable: bool = False


class Job(BaseModel):
    """The record of a job as the store keeps it. Times are Unix seconds by the store's clock."""

    id: str
    status: JobStatus
    request: SpeechRequest
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    cancel_requested_at: float | None = None
    queue_position: int | None = None
    estimated_start_s: float | None = None
    progress: Progress | None = None
    output: Output | None = None
    audio_expired: bool = False
    error: JobFailure | None = None
    model: str | None = None
    model_notice: str | None = None  # what a listener must know of the model: it is untrained
    device: str | None = None
    device_fallback: str | None = None
    attempts: int = 0
    crashes: int = 0
    generate_s: float | None = None
    ttfa_s: float | None = None


def new_job_id() -> str:
    """A UUIDv7 (RFC 9562) in hex behind `job_`: unguessable, and sortable by time."""
    millis = time.time_ns() // 1_000_000
    rand = secrets.randbits(74)
    value = (millis & (2**48 - 1)) << 80 | 0x7 << 76 | (rand >> 62) << 64 | 0b10 << 62
    return f"job_{value | (rand & (2**62 - 1)):032x}"


def iso(seconds: float | None) -> str | None:
    """RFC 3339 with milliseconds, UTC."""
    if seconds is None:
        return None
    return (
        datetime.fromtimestamp(seconds, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def public_view(job: Job, *, include_text: bool = False) -> dict[str, Any]:
    """The JSON told to clients: the envelope of every endpoint that answers with a job."""
    base = f"/api/jobs/{job.id}"
    ready = job.output is not None and not job.audio_expired
    view: dict[str, Any] = {
        "id": job.id,
        "object": "speech.job",
        "status": job.status.value,
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at),
        "completed_at": iso(job.completed_at),
        "expires_at": iso(job.expires_at),
        "cancel_requested_at": iso(job.cancel_requested_at),
        "priority": job.request.priority,
        "queue": _queue_view(job),
        "progress": _progress_view(job),
        "result_url": f"{base}/audio" if ready else None,
        "output": _output_view(job.output, f"{base}/audio") if job.output and ready else None,
        "error": job.error.model_dump() if job.error else None,
        "model": job.model,
        "model_notice": job.model_notice,
        "device": job.device,
        "device_fallback": job.device_fallback,
        "metrics": _metrics_view(job),
        "metadata": job.request.metadata,
        "urls": {"self": base, "audio": f"{base}/audio", "cancel": f"{base}/cancel"},
    }
    if include_text:
        view["input"] = job.request.model_dump(mode="json")
    return view


def _queue_view(job: Job) -> dict[str, Any] | None:
    if job.status is not JobStatus.QUEUED:
        return None
    return {"position": job.queue_position, "estimated_start_s": job.estimated_start_s}


def _progress_view(job: Job) -> dict[str, Any] | None:
    if job.output is not None:
        seconds, frames = job.output.duration_s, job.output.frames
        return {"frames": frames, "audio_seconds": seconds, "percent": 100, "eta_s": None}
    if job.progress is None:
        return None
    return job.progress.model_dump() | ({"eta_s": None} if job.status.is_terminal else {})


def _output_view(output: Output, url: str) -> dict[str, Any]:
    return {"url": url, **output.model_dump(exclude={"name"}), "watermark": None}


def _metrics_view(job: Job) -> dict[str, Any]:
    audio_s = job.output.duration_s if job.output else None
    rtf = job.generate_s / audio_s if job.generate_s and audio_s else None
    return {
        "queue_s": round(job.started_at - job.created_at, 3) if job.started_at else None,
        "generate_s": job.generate_s,
        "audio_s": audio_s,
        "rtf": round(rtf, 3) if rtf else None,
        "ttfa_s": job.ttfa_s,
        "attempts": job.attempts,
    }
