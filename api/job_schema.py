"""The shapes that the documentation promises.

Knows fields and their meaning; builds nothing: `shared.jobs.public_view` does, and a test compares.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.jobs import AudioFormat, JobFailure, JobStatus, Priority, SpeechRequest


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class QueuePlace(Shape):
    """Approximate; null where nobody can tell."""

    position: int | None
    estimated_start_s: float | None


class JobProgress(Shape):
    frames: int | None = Field(description="80 ms each")
    audio_seconds: float
    percent: int = Field(ge=0, le=100, description="of the estimate; 100 only at the end")
    eta_s: float | None = Field(description="null where nobody can tell, and once it has ended")


class JobOutput(Shape):
    url: str
    format: AudioFormat
    content_type: str
    bytes: int
    sample_rate: int
    duration_s: float
    frames: int | None
    sha256: str
    seed: int
    finish_reason: Literal["eos", "length"]
    watermark: None


class JobMetrics(Shape):
    queue_s: float | None
    generate_s: float | None
    audio_s: float | None
    rtf: float | None = Field(description="generate_s / audio_s")
    ttfa_s: float | None = Field(description="time to first audio")
    attempts: int


class JobUrls(Shape):
    self: str
    audio: str
    cancel: str


class SpeechJob(Shape):
    id: str
    object: Literal["speech.job"]
    status: JobStatus
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: datetime | None = Field(description="when the audio will be deleted")
    cancel_requested_at: datetime | None
    priority: Priority
    queue: QueuePlace | None = Field(description="while it is queued")
    progress: JobProgress | None
    result_url: str | None = Field(description="where the audio is, once there is any")
    output: JobOutput | None
    error: JobFailure | None
    model: str | None
    model_notice: str | None = Field(description="what a listener must know: it is untrained")
    device: str | None
    device_fallback: str | None = Field(description="why another device than the one asked for")
    metrics: JobMetrics
    metadata: dict[str, str]
    urls: JobUrls
    input: SpeechRequest | None = Field(None, description="only with `?include=input`")


class SpeechJobList(Shape):
    data: list[SpeechJob]
    next: str | None = Field(description="send it as `after` for the next page; null on the last")
