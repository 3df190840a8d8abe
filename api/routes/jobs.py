"""Jobs over HTTP: submit, look, list, fetch the audio, cancel, erase.

Translates between HTTP and the store; every rule about a job is the store's.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.audio_response import AudioResponse, gone
from api.errors import problems
from api.etag import etag_of, is_known
from api.examples import ENDED_EXAMPLE, QUEUED_EXAMPLE, RUNNING_EXAMPLE
from api.job_schema import SpeechJobList
from api.limits import refuse_too_long
from api.parts import Parts, PartsOf
from api.waiting import MAX_WAIT_S, preferred_wait_s, wait_until
from shared.errors import AudioNotReady, JobNotFound, NoAudio, SpeechError, UnsupportedMediaType
from shared.jobs import (
    JOB_ID_PATTERN,
    Job,
    JobStatus,
    Output,
    SpeechRequest,
    public_view,
)
from shared.store import Submission

JSON_TYPE = re.compile(r"application/([^/]+\+)?json")
BINARY = {"schema": {"type": "string", "format": "binary"}}
NOT_MODIFIED: dict[str, Any] = {"description": "The client has it already (If-None-Match)"}
AUDIO: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The whole file",
        "content": {"audio/wav": BINARY, "audio/flac": BINARY},
    },
    206: {
        "description": "The ranges asked for; several come as parts",
        "content": {"audio/wav": BINARY, "audio/flac": BINARY, "multipart/byteranges": BINARY},
    },
    304: NOT_MODIFIED,
}

router = APIRouter(prefix="/api", tags=["jobs"], responses=problems(422, 503))


def well_formed(
    id: Annotated[str, Path(json_schema_extra={"pattern": JOB_ID_PATTERN})],
) -> str:
    """What cannot be an id is not found, like an id that is not known."""
    if not re.fullmatch(JOB_ID_PATTERN.strip("^$"), id):
        raise JobNotFound("There is no such job; ids look like job_ and 32 hex digits.")
    return id


def sent_as_json(request: Request) -> None:
    """A body is not guessed at, so that a plain form on another page cannot submit one."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not JSON_TYPE.fullmatch(media_type):
        raise UnsupportedMediaType(
            "The body is not said to be JSON; send Content-Type: application/json."
        )


class JobQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wait: int = Field(0, ge=0, le=MAX_WAIT_S, description="seconds, until the job has ended")
    include: Literal["input"] | None = Field(None, description="`input` tells the request, too")


class JobsQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: JobStatus | None = None
    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, description="the `next` of the page before")


JobId = Annotated[str, Depends(well_formed)]
Etags = Annotated[str | None, Header(alias="If-None-Match")]


@router.post(
    "/generate",
    status_code=202,
    dependencies=[Depends(sent_as_json)],
    responses={202: QUEUED_EXAMPLE, 200: ENDED_EXAMPLE, **problems(413, 415)},
    summary="Accept a text to be spoken",
)
async def generate(
    body: SpeechRequest,
    request: Request,
    parts: PartsOf,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=128)] = None,
    prefer: Annotated[str | None, Header(description="`wait=n`: up to n seconds, at most 60")] = (
        None
    ),
) -> Response:
    """202 with the job once it is durable; 200 when it ended within `Prefer: wait=n`."""
    submission = await run_in_threadpool(_submit, body, idempotency_key, parts)
    wait_s = preferred_wait_s(prefer)
    job = await _outcome(submission.job, wait_s, parts, request) if wait_s else submission.job
    headers = {"Location": f"/api/jobs/{job.id}"}
    if not job.status.is_terminal:
        headers["Retry-After"] = str(_look_again_s(job))
    if wait_s:
        headers["Preference-Applied"] = f"wait={wait_s}"
    if submission.replayed:
        headers["Idempotency-Replayed"] = "true"
    return _told(job, 200 if job.status.is_terminal else 202, headers)


@router.get(
    "/jobs/{id}",
    responses={200: ENDED_EXAMPLE, 304: NOT_MODIFIED, **problems(404)},
    summary="A job as it is",
)
async def get_job(
    job_id: JobId,
    request: Request,
    parts: PartsOf,
    query: Annotated[JobQuery, Query()],
    if_none_match: Etags = None,
) -> Response:
    """With `wait`, answers once the job has ended; with If-None-Match too, once it has changed."""

    def told(job: Job) -> Response:
        return _told(job, include_text=query.include == "input")

    def is_enough(job: Job) -> bool:
        is_news = if_none_match is not None and not is_known(
            told(job).headers["ETag"], if_none_match
        )
        return job.status.is_terminal or is_news

    response = told(await wait_until(is_enough, job_id, query.wait, parts, request))
    if is_known(response.headers["ETag"], if_none_match):
        return _not_modified(response.headers["ETag"])
    return response


@router.get("/jobs", response_model=SpeechJobList, summary="Jobs, newest first")
def list_jobs(parts: PartsOf, query: Annotated[JobsQuery, Query()]) -> Response:
    jobs, cursor = parts.store.list(status=query.status, limit=query.limit, after=query.after)
    return JSONResponse({"data": [public_view(job) for job in jobs], "next": cursor})


@router.get(
    "/jobs/{id}/audio",
    response_class=AudioResponse,
    responses={**AUDIO, **problems(404, 409, 410, 416)},
    summary="The audio, whole or in ranges",
)
def get_audio(job_id: JobId, parts: PartsOf, if_none_match: Etags = None) -> Response:
    output = _published(parts.store.get(job_id))
    etag = etag_of(output.sha256)
    if is_known(etag, if_none_match):
        return _not_modified(etag)
    try:
        path = parts.audio.path(output.name)
        stat_result = path.stat()
    except FileNotFoundError as error:
        raise gone() from error
    return AudioResponse(
        path,
        stat_result=stat_result,
        media_type=output.content_type,
        filename=f"{job_id}.{output.format}",
        content_disposition_type="inline",
        headers={"ETag": etag, "Cache-Control": "private", "X-Content-Type-Options": "nosniff"},
    )


@router.post(
    "/jobs/{id}/cancel",
    responses={200: ENDED_EXAMPLE, 202: RUNNING_EXAMPLE, **problems(404)},
    summary="Cancel a job",
)
def cancel_job(job_id: JobId, parts: PartsOf) -> Response:
    """200 when it is cancelled now, or had ended before; 202 when its worker is being told."""
    job = parts.store.cancel(job_id)
    return _told(job, 200 if job.status.is_terminal else 202)


@router.delete(
    "/jobs/{id}", status_code=204, responses=problems(404), summary="Cancel and erase a job"
)
def erase_job(job_id: JobId, parts: PartsOf) -> Response:
    """Record, text and audio go, and cannot be brought back."""
    name = parts.store.erase(job_id)
    if name is not None:
        parts.audio.delete(name)
    return Response(status_code=204)


def _submit(body: SpeechRequest, idempotency_key: str | None, parts: Parts) -> Submission:
    """Raises InvalidInput for what can never be spoken here.

    The store's answer is the commit point; a doorbell that cannot be rung loses nothing.
    """
    refuse_too_long(body, parts.max_audio_s)
    submission = parts.store.submit(body, idempotency_key=idempotency_key)
    if not submission.replayed:
        parts.doorbell.ring(submission.doorbell)
    return submission


async def _outcome(job: Job, wait_s: float, parts: Parts, request: Request) -> Job:
    """The accepted job after a wait. It stays accepted, even if it can no longer be looked at."""
    try:
        return await wait_until(_has_ended, job.id, wait_s, parts, request)
    except SpeechError:
        return job


def _has_ended(job: Job) -> bool:
    return job.status.is_terminal


def _look_again_s(job: Job) -> int:
    return min(30, max(1, math.ceil(job.estimated_start_s or 1)))


def _told(
    job: Job,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    *,
    include_text: bool = False,
) -> Response:
    response = JSONResponse(public_view(job, include_text=include_text), status, headers)
    response.headers["ETag"] = etag_of(hashlib.sha256(response.body).hexdigest()[:32])
    response.headers["Cache-Control"] = "private, no-cache"
    return response


def _not_modified(etag: str) -> Response:
    return Response(status_code=304, headers={"ETag": etag})


def _published(job: Job) -> Output:
    if job.audio_expired:
        raise gone()
    if job.output is not None:
        return job.output
    if job.status.is_terminal:
        raise NoAudio(_why_no_audio(job))
    raise AudioNotReady(f"The job is {job.status}; ask again when it is completed.")


def _why_no_audio(job: Job) -> str:
    if job.error is not None:
        return f"There is no audio: the job failed. {job.error.message}"
    return f"There is no audio: the job is {job.status}; submit the text again."
