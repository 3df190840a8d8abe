"""The documented shape of a job is the shape that is told."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from api.examples import ENDED_EXAMPLE, QUEUED_EXAMPLE, RUNNING_EXAMPLE
from api.job_schema import SpeechJob
from shared.jobs import Job, JobFailure, JobStatus, new_job_id, public_view
from tests.samples import a_request

EXAMPLES = [QUEUED_EXAMPLE, RUNNING_EXAMPLE, ENDED_EXAMPLE]


def a_failed_job() -> Job:
    error = JobFailure(code="x", message="why")
    request = a_request(metadata={"k": "v"})
    return Job(
        id=new_job_id(), status=JobStatus.FAILED, request=request, created_at=1.0, error=error
    )


@pytest.mark.parametrize(
    "view",
    [
        *(one["content"]["application/json"]["example"] for one in EXAMPLES),
        public_view(a_failed_job()),
        public_view(a_failed_job(), include_text=True),
    ],
)
def test_a_job_that_is_told_has_the_documented_fields_and_no_other(view: dict[str, Any]) -> None:
    told = SpeechJob.model_validate(view).model_dump(exclude_unset=True)
    assert told.keys() == view.keys()


def test_the_schema_documents_jobs_lists_and_audio(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    job, jobs = "#/components/schemas/SpeechJob", "#/components/schemas/SpeechJobList"
    for path, method, status, ref in (
        ("/api/generate", "post", "202", job),
        ("/api/jobs/{id}", "get", "200", job),
        ("/api/jobs/{id}/cancel", "post", "202", job),
        ("/api/jobs", "get", "200", jobs),
    ):
        content = paths[path][method]["responses"][status]["content"]
        assert content["application/json"]["schema"]["$ref"] == ref
    audio = paths["/api/jobs/{id}/audio"]["get"]["responses"]
    assert {"audio/wav", "audio/flac"} == audio["200"]["content"].keys()
    assert {"206", "304", "409", "410", "416"} <= audio.keys()
    assert "multipart/byteranges" in audio["206"]["content"]


def test_the_schema_documents_bodies_that_cannot_be_read(client: TestClient) -> None:
    responses = client.get("/openapi.json").json()["paths"]["/api/generate"]["post"]["responses"]
    for status in ("413", "415", "422"):
        assert responses[status]["content"].keys() == {"application/problem+json"}
