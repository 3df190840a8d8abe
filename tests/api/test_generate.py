"""POST /api/generate: what is accepted, what is refused, and what is true once answered."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fakeredis
import pytest
from starlette.testclient import TestClient

from shared.jobs import JobStatus
from shared.store import Claim, JobStore
from tests.samples import FakeDoorbell

SEED_EXAMPLE = {
    "text": "This is a test of the voice generation system.",
    "speaker_id": 1,
    "temperature": 0.7,
    "top_k": 50,
    "device": "auto",
    "style": "default",
}


def generate(client: TestClient, text: str = "Hello.", **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/api/generate", json={"text": text}, headers=named)


def test_the_documented_request_is_accepted_and_rung_for(
    client: TestClient, store: JobStore, doorbell: FakeDoorbell
) -> None:
    response = client.post("/api/generate", json=SEED_EXAMPLE)
    job = response.json()
    assert response.status_code == 202
    assert response.headers["Location"] == job["urls"]["self"] == f"/api/jobs/{job['id']}"
    assert int(response.headers["Retry-After"]) >= 1
    assert (job["status"], job["queue"]["position"]) == ("queued", 1)
    assert store.get(job["id"]).request.text == SEED_EXAMPLE["text"]
    assert doorbell.rings == [("echoforge.auto", 1)]


def test_a_job_for_one_device_rings_its_doorbell(
    client: TestClient, doorbell: FakeDoorbell
) -> None:
    client.post("/api/generate", json={"text": "Hi", "device": "cuda"})
    assert doorbell.rings == [("echoforge.cuda", 1)]


def test_the_answer_does_not_repeat_the_text(client: TestClient) -> None:
    assert "Secret" not in generate(client, "Secret words.").text


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/text"),
        ({"text": ""}, "/text"),
        ({"text": "a" * 5001}, "/text"),
        ({"text": "Hi", "temperature": 3}, "/temperature"),
        ({"text": "Hi", "metadata": {"k": 1}}, "/metadata/k"),
        ({"text": "Hi", "nonsense": 1}, "/nonsense"),
        ({"text": "Hi", "a/b~c": 1}, "/a~1b~0c"),
    ],
)
def test_what_is_wrong_is_named_by_pointer(
    client: TestClient, doorbell: FakeDoorbell, body: dict[str, Any], pointer: str
) -> None:
    response = client.post("/api/generate", json=body)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]
    assert doorbell.rings == []


@pytest.mark.parametrize(
    ("body", "pointer", "figures"),
    [
        ({"text": "a" * 1351}, "/text", ("about 90 s", "at most 90 s")),
        ({"text": "a" * 5000}, "/text", ("about 333 s", "at most 90 s")),
        ({"text": "Hi", "max_audio_seconds": 91}, "/max_audio_seconds", ("91 s", "90 s")),
    ],
)
def test_what_can_never_be_spoken_is_refused_before_it_waits(
    client: TestClient,
    store: JobStore,
    body: dict[str, Any],
    pointer: str,
    figures: tuple[str, ...],
) -> None:
    response = client.post("/api/generate", json=body)
    told = response.json()
    assert (response.status_code, told["code"]) == (422, "invalid_input")
    assert [error["pointer"] for error in told["errors"]] == [pointer]
    assert all(figure in told["detail"] for figure in figures)
    assert "over several jobs" in told["detail"]
    assert store.list()[0] == []


def test_the_beginning_of_a_long_text_is_accepted(client: TestClient) -> None:
    body = {"text": "a" * 5000, "max_audio_seconds": 90}
    assert client.post("/api/generate", json=body).status_code == 202


# Waiting


def test_prefer_wait_answers_200_when_the_job_ends_in_time(
    client: TestClient, store: JobStore, complete: Callable[[], Claim]
) -> None:
    def work() -> None:
        while not store.list()[0]:
            time.sleep(0.01)
        complete()

    worker = threading.Thread(target=work)
    worker.start()
    response = generate(client, Prefer="wait=20")
    worker.join()
    assert response.status_code == 200
    assert response.headers["Preference-Applied"] == "wait=20"
    assert "Retry-After" not in response.headers
    assert response.json()["result_url"]


def test_prefer_wait_answers_202_when_the_time_is_up(client: TestClient) -> None:
    begun = time.monotonic()
    assert generate(client, Prefer="respond-async, wait=1").status_code == 202
    assert time.monotonic() - begun > 0.9


def test_an_accepted_job_is_answered_even_when_redis_goes_away_in_the_wait(
    client: TestClient, store: JobStore, redis_server: fakeredis.FakeServer
) -> None:
    def pull_the_plug() -> None:
        while not store.list()[0]:
            time.sleep(0.01)
        redis_server.connected = False

    thread = threading.Thread(target=pull_the_plug)
    thread.start()
    response = generate(client, Prefer="wait=20")
    thread.join()
    assert response.status_code == 202
    redis_server.connected = True
    assert store.get(response.json()["id"]).status is JobStatus.QUEUED


# Idempotency


def test_the_same_key_and_body_get_the_first_job(
    client: TestClient, doorbell: FakeDoorbell
) -> None:
    first = generate(client, Idempotency_Key="k")
    second = generate(client, Idempotency_Key="k")
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert second.status_code == 202
    assert second.json()["id"] == first.json()["id"]
    assert len(doorbell.rings) == 1


def test_the_replay_of_a_finished_job_is_200(
    client: TestClient, complete: Callable[[], Claim]
) -> None:
    generate(client, Idempotency_Key="k")
    complete()
    response = generate(client, Idempotency_Key="k")
    assert (response.status_code, response.json()["status"]) == (200, "completed")


def test_the_same_key_with_another_body_is_a_conflict(client: TestClient) -> None:
    generate(client, "One.", Idempotency_Key="k")
    response = generate(client, "Two.", Idempotency_Key="k")
    assert (response.status_code, response.json()["code"]) == (422, "idempotency_conflict")


def test_a_key_of_more_than_128_characters_is_refused(client: TestClient) -> None:
    assert generate(client, Idempotency_Key="k" * 128).status_code == 202
    response = generate(client, Idempotency_Key="k" * 129)
    assert response.status_code == 422
    assert response.json()["errors"][0]["header"] == "idempotency-key"


# Refusing


def test_a_full_queue_is_503_and_says_when_to_come_back(client: TestClient) -> None:
    for _ in range(5):
        assert generate(client).status_code == 202
    response = generate(client)
    assert (response.status_code, response.json()["code"]) == (503, "queue_full")
    assert int(response.headers["Retry-After"]) >= 1


def test_without_redis_nothing_is_accepted(
    client: TestClient,
    store: JobStore,
    doorbell: FakeDoorbell,
    redis_server: fakeredis.FakeServer,
) -> None:
    redis_server.connected = False
    response = generate(client)
    assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")
    assert int(response.headers["Retry-After"]) >= 1
    redis_server.connected = True
    assert store.list()[0] == []
    assert doorbell.rings == []


def test_a_body_of_ten_megabytes_is_refused(client: TestClient, store: JobStore) -> None:
    response = generate(client, "a" * 10_000_000)
    assert (response.status_code, response.json()["code"]) == (413, "content_too_large")
    assert store.list()[0] == []


def test_a_body_is_counted_as_it_arrives(client: TestClient) -> None:
    def without_a_length() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1024

    response = client.post(
        "/api/generate", content=without_a_length(), headers={"Content-Type": "application/json"}
    )
    assert (response.status_code, response.json()["code"]) == (413, "content_too_large")


def test_ids_cannot_be_guessed_from_one_another(client: TestClient) -> None:
    ids = [generate(client).json()["id"] for _ in range(2)]
    assert all(re.fullmatch(r"job_[0-9a-f]{32}", id) for id in ids)
    assert ids[0][-12:] != ids[1][-12:]
