"""Audio over HTTP: whole, in ranges, not yet, no longer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.routing import Route
from starlette.testclient import TestClient

from api.audio_response import AudioResponse
from api.errors import add_error_handlers
from shared.audio_store import AudioStore
from shared.jobs import JobFailure
from shared.store import Claim, JobStore
from tests.api.conftest import AUDIO, LOOPBACK
from tests.samples import Clock, a_request

SHA256 = hashlib.sha256(AUDIO).hexdigest()


@pytest.fixture
def url(store: JobStore) -> str:
    return f"/api/jobs/{store.submit(a_request(expires_in_s=60)).job.id}/audio"


def test_the_audio_is_sent_whole(
    client: TestClient, url: str, complete: Callable[[], Claim]
) -> None:
    lease = complete()
    response = client.get(url)
    assert (response.status_code, response.content) == (200, AUDIO)
    assert response.headers["Content-Type"] == "audio/wav"
    assert response.headers["ETag"] == f'"{SHA256}"'
    assert response.headers["Content-Disposition"] == f'inline; filename="{lease.job_id}.wav"'
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_the_url_of_the_job_is_the_url_of_the_audio(
    client: TestClient, url: str, complete: Callable[[], Claim]
) -> None:
    lease = complete()
    assert client.get(f"/api/jobs/{lease.job_id}").json()["result_url"] == url


@pytest.mark.parametrize(
    ("asked", "sent", "told"),
    [
        ("bytes=0-3", AUDIO[:4], f"bytes 0-3/{len(AUDIO)}"),
        ("bytes=10-", AUDIO[10:], f"bytes 10-{len(AUDIO) - 1}/{len(AUDIO)}"),
        ("bytes=-5", AUDIO[-5:], f"bytes {len(AUDIO) - 5}-{len(AUDIO) - 1}/{len(AUDIO)}"),
    ],
)
def test_a_range_is_sent_alone(
    client: TestClient, url: str, complete: Callable[[], Claim], asked: str, sent: bytes, told: str
) -> None:
    complete()
    response = client.get(url, headers={"Range": asked})
    assert (response.status_code, response.content) == (206, sent)
    assert response.headers["Content-Range"] == told


def test_several_ranges_come_as_parts(
    client: TestClient, url: str, complete: Callable[[], Claim]
) -> None:
    complete()
    response = client.get(url, headers={"Range": "bytes=0-3,8-9"})
    assert response.status_code == 206
    assert response.headers["Content-Type"].startswith("multipart/byteranges")


@pytest.mark.parametrize("asked", ["bytes=999999-", f"bytes={len(AUDIO)}-", "bytes=-0"])
def test_a_range_past_the_end_is_a_problem(
    client: TestClient, url: str, complete: Callable[[], Claim], asked: str
) -> None:
    complete()
    response = client.get(url, headers={"Range": asked})
    assert (response.status_code, response.json()["code"]) == (416, "range_not_satisfiable")
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Content-Range"] == f"bytes */{len(AUDIO)}"


@pytest.mark.parametrize(
    "asked",
    ["bytes=x-y", "bytes=", "bytes=-", "bytes=5-4", "bytes=0-1,x", "bytes", "items=0-3", "frames"],
)
def test_a_range_that_is_no_byte_range_gets_the_whole(
    client: TestClient, url: str, complete: Callable[[], Claim], asked: str
) -> None:
    complete()
    response = client.get(url, headers={"Range": asked})
    assert (response.status_code, response.content) == (200, AUDIO)


def test_a_range_of_another_file_gets_the_whole(
    client: TestClient, url: str, complete: Callable[[], Claim]
) -> None:
    complete()
    response = client.get(url, headers={"Range": "bytes=0-3", "If-Range": '"other"'})
    assert (response.status_code, response.content) == (200, AUDIO)
    response = client.get(url, headers={"Range": "bytes=0-3", "If-Range": f'"{SHA256}"'})
    assert response.status_code == 206


def test_audio_that_is_known_is_not_sent_again(
    client: TestClient, url: str, complete: Callable[[], Claim]
) -> None:
    complete()
    assert client.get(url, headers={"If-None-Match": f'"{SHA256}"'}).status_code == 304


def test_audio_that_is_not_ready_is_409(
    client: TestClient, url: str, claim: Callable[[], Claim]
) -> None:
    queued = client.get(url)
    claim()
    running = client.get(url)
    for response in (queued, running):
        assert (response.status_code, response.json()["code"]) == (409, "audio_not_ready")
    assert "in_progress" in running.json()["detail"]


def test_a_failed_job_tells_why_it_has_no_audio(
    client: TestClient, store: JobStore, url: str, claim: Callable[[], Claim]
) -> None:
    store.finish(claim(), error=JobFailure(code="x", message="The text was too long."))
    response = client.get(url)
    assert (response.status_code, response.json()["code"]) == (409, "no_audio")
    assert "The text was too long." in response.json()["detail"]


def test_a_cancelled_job_has_no_audio(client: TestClient, store: JobStore, url: str) -> None:
    store.cancel(url.split("/")[3])
    response = client.get(url)
    assert (response.status_code, response.json()["code"]) == (409, "no_audio")
    assert "cancelled" in response.json()["detail"]


def test_a_job_that_expired_in_the_queue_has_no_audio(
    client: TestClient, store: JobStore, clock: Clock, url: str
) -> None:
    clock.advance(601)
    store.reap()
    response = client.get(url)
    assert (response.status_code, response.json()["code"]) == (409, "no_audio")
    assert "expired" in response.json()["detail"]


def test_expired_audio_is_410(
    client: TestClient, store: JobStore, audio: AudioStore, url: str, complete: Callable[[], Claim]
) -> None:
    lease = complete()
    output = store.get(lease.job_id).output
    assert output is not None
    audio.delete(output.name)  # the sweep deletes the file first ...
    assert client.get(url).status_code == 410
    store.forget_audio(lease.job_id)  # ... and then says so
    response = client.get(url)
    assert (response.status_code, response.json()["code"]) == (410, "audio_expired")
    assert client.get(f"/api/jobs/{lease.job_id}").json()["result_url"] is None


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-3"}, {"Range": "bytes=0-3,8-9"}])
def test_audio_deleted_before_it_is_opened_is_410(tmp_path: Path, headers: dict[str, str]) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(AUDIO)
    response = AudioResponse(path, stat_result=path.stat(), media_type="audio/wav")
    path.unlink()
    app = FastAPI(routes=[Route("/", lambda request: response)])
    add_error_handlers(app)
    told = TestClient(app, LOOPBACK).get("/", headers=headers)
    assert (told.status_code, told.json()["code"]) == (410, "audio_expired")


def test_head_tells_of_the_audio_without_reading_it(
    client: TestClient, url: str, complete: Callable[[], Claim]
) -> None:
    complete()
    asked, got = client.head(url), client.get(url)
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers == got.headers
    assert asked.headers["Content-Length"] == str(len(AUDIO))
    assert client.head(url, headers={"Range": "bytes=0-3"}).status_code == 206
