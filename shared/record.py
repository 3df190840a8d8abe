"""A job's record on its way out of Redis: a flat hash of strings becomes a `Job`.

Knows the names of the hash's fields; knows nothing about Redis commands.
"""

from __future__ import annotations

from collections.abc import Sequence

from shared.jobs import Job, JobFailure, JobStatus, Output, Progress, SpeechRequest

View = Sequence[object]  # what a script tells of a job: id, flat hash[, position, seconds to wait]


def job_of(view: View) -> Job:
    job_id, flat, *outlook = view
    assert isinstance(job_id, str)
    assert isinstance(flat, list)
    fields: dict[str, str] = dict(zip(flat[::2], flat[1::2], strict=True))
    return Job(
        id=job_id,
        status=JobStatus(fields["status"]),
        request=stored_request(fields["request"]),
        created_at=float(fields["created_at"]),
        started_at=_seconds(fields, "started_at"),
        completed_at=_seconds(fields, "completed_at"),
        expires_at=_seconds(fields, "expires_at"),
        cancel_requested_at=_seconds(fields, "cancel_requested_at"),
        queue_position=int(str(outlook[0])) if outlook else None,
        estimated_start_s=_estimate(outlook),
        progress=_progress(fields),
        output=Output.model_validate_json(fields["output"]) if "output" in fields else None,
        audio_expired="audio_expired" in fields,
        error=JobFailure.model_validate_json(fields["error"]) if "error" in fields else None,
        model=fields.get("model"),
        model_notice=fields.get("model_notice") or None,
        device=fields.get("device"),
        device_fallback=fields.get("device_fallback") or None,
        attempts=int(fields.get("attempts", 0)),
        crashes=int(fields.get("crashes", 0)),
        generate_s=_seconds(fields, "generate_s"),
        ttfa_s=_seconds(fields, "ttfa_s"),
    )


def stored_request(body: str) -> SpeechRequest:
    """A newer process may have stored fields that this one does not know: they are ignored."""
    return SpeechRequest.model_validate_json(body, extra="ignore")


def _seconds(fields: dict[str, str], name: str) -> float | None:
    return float(fields[name]) if name in fields else None


def _estimate(outlook: list[object]) -> float | None:
    """The script answers with an empty string while it cannot tell."""
    return round(float(str(outlook[1])), 1) if outlook and outlook[1] != "" else None


def _progress(fields: dict[str, str]) -> Progress | None:
    return Progress.model_validate_json(fields["progress"]) if "progress" in fields else None
