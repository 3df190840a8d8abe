"""What may be asked of a job, and what is told about one."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from pydantic import ValidationError

from shared.jobs import (
    JOB_ID_PATTERN,
    TRANSITIONS,
    Job,
    JobFailure,
    JobStatus,
    Output,
    Progress,
    SpeechRequest,
    iso,
    new_job_id,
    public_view,
)
from shared.record import job_of, stored_request

SEED_EXAMPLE = {
    "text": "This is a test of the voice generation system.",
    "speaker_id": 1,
    "temperature": 0.7,
    "top_k": 50,
    "device": "auto",
    "style": "default",
}


def a_job(status: JobStatus = JobStatus.QUEUED, **fields: Any) -> Job:
    return Job(
        id=new_job_id(),
        status=status,
        request=SpeechRequest(text="Secret words."),
        created_at=1_800_000_000.12,
        **fields,
    )


def an_output() -> Output:
    return Output(
        name="private.wav",
        format="wav",
        content_type="audio/wav",
        bytes=10,
        sample_rate=24_000,
        duration_s=2.0,
        sha256="00",
        seed=7,
        finish_reason="eos",
    )


def test_the_documented_example_is_accepted() -> None:
    assert SpeechRequest.model_validate(SEED_EXAMPLE).model_dump(include=set(SEED_EXAMPLE)) == (
        SEED_EXAMPLE
    )


def test_text_alone_is_enough() -> None:
    assert SpeechRequest(text="Hi").device == "auto"


@pytest.mark.parametrize("text", ["a", "ß" * 5000, "日本語", "Line\nline\ttab", "7", "😀", "é"])
def test_text_that_can_be_spoken_is_accepted(text: str) -> None:
    assert SpeechRequest(text=text).text == text


@pytest.mark.parametrize(
    "text",
    ["", " ", "\n\n", "...", "?!", "a" * 5001, "a\x00b", "a\x1bb", "a\x7fb", "\u0085a", "\ud800"],
)
def test_text_that_cannot_be_spoken_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        SpeechRequest(text=text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", -math.inf),
        ("temperature", -0.1),
        ("temperature", 1.51),
        ("temperature", 1e308),
        ("temperature", "hot"),
        ("top_k", 0),
        ("top_k", -1),
        ("top_k", 2049),
        ("top_k", 10**30),
        ("top_k", 1.5),
        ("speaker_id", -1),
        ("speaker_id", 100),
        ("speaker_id", 10**400),
        ("seed", -1),
        ("seed", 2**53),
        ("seed", "7"),
        ("top_k", True),
        ("top_k", "40"),
        ("top_k", 40.0),
        ("speaker_id", False),
        ("temperature", "0.7"),
        ("temperature", True),
        ("timeout_s", "60"),
        ("max_audio_seconds", True),
        ("max_audio_seconds", 0),
        ("max_audio_seconds", math.nan),
        ("max_audio_seconds", 601),
        ("device", "tpu"),
        ("style", "angry"),
        ("voice", "alice"),
        ("format", "mp3"),
        ("priority", "urgent"),
        ("start_timeout_s", 0),
        ("timeout_s", 86_401),
        ("expires_in_s", -5),
        ("metadata", {"": "x"}),
        ("metadata", {"k": "x" * 513}),
        ("metadata", {"k": "\udfff"}),
        ("metadata", {str(n): "x" for n in range(17)}),
        ("metadata", {"k": 1}),
        ("metadata", None),
        ("unknown_field", 1),
    ],
)
def test_what_is_out_of_bounds_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        SpeechRequest.model_validate({"text": "Hi", field: value})
    assert {error["loc"][0] for error in refused.value.errors()} == {field}


def test_greedy_and_the_upper_bounds_are_allowed() -> None:
    request = SpeechRequest(text="Hi", temperature=0, top_k=2048, seed=2**53 - 1)
    assert request == SpeechRequest.model_validate_json(request.model_dump_json())


def test_a_whole_number_passes_for_a_number_with_a_point() -> None:
    request = SpeechRequest.model_validate({"text": "Hi", "temperature": 1, "max_audio_seconds": 2})
    assert (request.temperature, request.max_audio_seconds) == (1.0, 2.0)


def test_a_stored_request_is_read_again_even_with_fields_of_a_newer_process() -> None:
    request = SpeechRequest(text="Hi", temperature=1, seed=7, max_audio_seconds=2)
    stored = json.loads(request.model_dump_json()) | {"newer": 1}
    assert stored_request(json.dumps(stored)) == request


def test_ids_are_sortable_by_time_and_valid() -> None:
    ids = [new_job_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert all(re.fullmatch(JOB_ID_PATTERN, id) for id in ids)
    assert all(id[16] == "7" and id[20] in "89ab" for id in ids)


def test_a_final_status_leads_nowhere() -> None:
    final = {status for status in JobStatus if status.is_terminal}
    assert final == {
        JobStatus.COMPLETED,
        JobStatus.FAILED,
        JobStatus.CANCELLED,
        JobStatus.EXPIRED,
    }
    assert set(TRANSITIONS) == set(JobStatus)


def test_the_text_is_told_only_when_asked_for() -> None:
    job = a_job()
    assert "Secret" not in json.dumps(public_view(job))
    assert public_view(job, include_text=True)["input"]["text"] == "Secret words."


def test_a_completed_job_tells_its_url_and_not_its_file() -> None:
    view = public_view(
        a_job(JobStatus.COMPLETED, output=an_output(), started_at=1_800_000_001.12, generate_s=1.0)
    )
    assert view["result_url"] == view["output"]["url"] == view["urls"]["audio"]
    assert "private.wav" not in json.dumps(view)
    assert view["metrics"]["rtf"] == 0.5
    assert view["metrics"]["queue_s"] == 1.0


def test_expired_audio_has_no_url() -> None:
    view = public_view(a_job(JobStatus.COMPLETED, output=an_output(), audio_expired=True))
    assert view["result_url"] is None
    assert view["output"] is None


@pytest.mark.parametrize("status", list(JobStatus))
def test_a_job_that_has_ended_expects_nothing_more(status: JobStatus) -> None:
    progress = Progress(frames=5, audio_seconds=0.4, percent=10, eta_s=3.0)
    output = an_output() if status is JobStatus.COMPLETED else None
    view = public_view(a_job(status, progress=progress, output=output))
    assert view["progress"]["eta_s"] == (None if status.is_terminal else 3.0)


def test_an_untrained_model_is_told_of_in_the_job() -> None:
    assert public_view(a_job())["model_notice"] is None
    assert public_view(a_job(model_notice="untrained"))["model_notice"] == "untrained"


def test_the_record_keeps_the_notice_of_the_model() -> None:
    fields = {"status": "queued", "request": '{"text": "Hi"}', "created_at": "1"}
    for stored, told in (({}, None), ({"model_notice": ""}, None), ({"model_notice": "n"}, "n")):
        flat = [part for pair in (fields | stored).items() for part in pair]
        assert job_of([new_job_id(), flat]).model_notice == told


def test_a_failure_is_told_with_its_code() -> None:
    view = public_view(a_job(JobStatus.FAILED, error=JobFailure(code="c", message="m")))
    assert view["error"] == {"code": "c", "message": "m", "retryable": False}


def test_times_are_rfc_3339_in_utc() -> None:
    assert iso(1_800_000_000.12) == "2027-01-15T08:00:00.120Z"
    assert iso(None) is None
