"""What the documentation shows: a real job through the real view, so that it cannot drift."""

from __future__ import annotations

from typing import Any

from api.job_schema import SpeechJob
from shared.jobs import Job, JobStatus, Output, Progress, SpeechRequest, public_view

_ID = "job_01997c1e8f5e7c0a9a3f2b6d1c0e4a77"
_QUEUED = Job(
    id=_ID,
    status=JobStatus.QUEUED,
    request=SpeechRequest(text="This is a test of the voice generation system."),
    created_at=1_795_374_000.12,
    queue_position=2,
    estimated_start_s=3.0,
)
_RUNNING = _QUEUED.model_copy(
    update={
        "status": JobStatus.IN_PROGRESS,
        "started_at": 1_795_374_003.22,
        "progress": Progress(frames=93, audio_seconds=7.4, percent=41, eta_s=6.5),
        "model": "csm-1b",
        "device": "cuda:0",
        "attempts": 1,
    }
)
_ENDED = _RUNNING.model_copy(
    update={
        "status": JobStatus.COMPLETED,
        "completed_at": 1_795_374_014.92,
        "expires_at": 1_795_460_414.92,
        "output": Output(
            name=f"{_ID}.0123456789ab.wav",
            format="wav",
            content_type="audio/wav",
            bytes=873_644,
            sample_rate=24_000,
            duration_s=18.2,
            sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            seed=7,
            finish_reason="eos",
        ),
        "generate_s": 11.7,
        "ttfa_s": 0.4,
    }
)


def _example(job: Job) -> dict[str, Any]:
    content = {"application/json": {"example": public_view(job)}}
    return {"description": f"The job, {job.status}", "content": content, "model": SpeechJob}


QUEUED_EXAMPLE, RUNNING_EXAMPLE, ENDED_EXAMPLE = map(_example, (_QUEUED, _RUNNING, _ENDED))
