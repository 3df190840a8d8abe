"""Audio over HTTP: whole, in ranges, not yet, no longer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from shared.audio_store import AudioStore
from shared.jobs import JobFailure
from shared.store import Claim, JobStore
from tests.api.conftest import AUDIO
from tests.samples import a_request

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


@pytest.mark.parametrize(("asked", "status"), [("bytes=999999-", 416), ("bytes=x-y", 400)])
def test_a_range_that_cannot_be_sent_is_a_problem(
    client: TestClient, url: str, complete: Callable[[], Claim], asked: str, status: int
) -> None:
    complete()
    response = client.get(url, headers={"Range": asked})
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    if status == 416:
        assert response.headers["Content-Range"] == f"bytes */{len(AUDIO)}"


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
    assert response.status_code == 409
    assert "The text was too long." in response.json()["detail"]


def test_a_cancelled_job_has_no_audio(client: TestClient, store: JobStore, url: str) -> None:
    store.cancel(url.split("/")[3])
    response = client.get(url)
    assert response.status_code == 409
    assert "cancelled" in response.json()["detail"]


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
