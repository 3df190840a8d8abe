"""Looking at jobs, cancelling and erasing them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import fakeredis
import pytest
from starlette.testclient import TestClient

from shared.audio_store import AudioStore
from shared.jobs import JobStatus, new_job_id
from shared.store import Claim, JobStore
from tests.api.conftest import LOOPBACK
from tests.samples import a_request, a_worker

MALFORMED = [
    "1",
    "job_",
    "job_" + "g" * 32,
    "job_" + "0" * 33,
    "%F0%9F%98%80",
    "..%2f..",
    "job_%00",
]


def submit(store: JobStore, text: str = "Secret words.") -> str:
    return store.submit(a_request(text)).job.id


def test_a_job_is_told_without_its_text(client: TestClient, store: JobStore) -> None:
    response = client.get(f"/api/jobs/{submit(store)}")
    assert (response.status_code, response.json()["status"]) == (200, "queued")
    assert "Secret" not in response.text


def test_the_text_is_told_when_asked_for(client: TestClient, store: JobStore) -> None:
    response = client.get(f"/api/jobs/{submit(store)}?include=input")
    assert response.json()["input"]["text"] == "Secret words."


@pytest.mark.parametrize("path", ["", "/audio", "/cancel"])
@pytest.mark.parametrize("id", [new_job_id(), *MALFORMED])
def test_unknown_and_malformed_ids_are_not_found(client: TestClient, id: str, path: str) -> None:
    method = "POST" if path == "/cancel" else "GET"
    response = client.request(method, f"/api/jobs/{id}{path}")
    assert response.status_code == 404
    assert response.headers["Content-Type"] == "application/problem+json"


def test_erasing_an_unknown_job_is_not_found(client: TestClient) -> None:
    assert client.delete(f"/api/jobs/{new_job_id()}").status_code == 404


def test_without_redis_looking_is_503(
    client: TestClient, store: JobStore, redis_server: fakeredis.FakeServer
) -> None:
    job_id = submit(store)
    redis_server.connected = False
    response = client.get(f"/api/jobs/{job_id}")
    assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")
    assert "Retry-After" in response.headers


# Waiting and entity tags


def test_a_wait_ends_with_the_job(
    client: TestClient, store: JobStore, complete: Callable[[], Claim]
) -> None:
    job_id = submit(store)
    timer = threading.Timer(0.3, complete)
    timer.start()
    response = client.get(f"/api/jobs/{job_id}?wait=30")
    timer.join()
    assert response.json()["status"] == "completed"


def test_a_wait_ends_when_its_time_is_up(client: TestClient, store: JobStore) -> None:
    response = client.get(f"/api/jobs/{submit(store)}?wait=1")
    assert (response.status_code, response.json()["status"]) == (200, "queued")


@pytest.mark.timeout(45)  # the wait asked for is longer
def test_a_wait_ends_when_the_server_closes(client: TestClient, store: JobStore) -> None:
    client.app.state.parts.closing.set()
    assert client.get(f"/api/jobs/{submit(store)}?wait=60").status_code == 200


@pytest.mark.parametrize("wait", ["-1", "61", "x"])
def test_a_wait_is_0_to_60_seconds(client: TestClient, store: JobStore, wait: str) -> None:
    response = client.get(f"/api/jobs/{submit(store)}?wait={wait}")
    assert response.status_code == 422
    assert response.json()["errors"][0]["parameter"] == "wait"


def test_what_is_known_is_not_sent_again(client: TestClient, store: JobStore) -> None:
    url = f"/api/jobs/{submit(store)}"
    etag = client.get(url).headers["ETag"]
    response = client.get(url, headers={"If-None-Match": etag})
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["ETag"] == etag


def test_a_change_makes_a_new_entity_tag(
    client: TestClient, store: JobStore, claim: Callable[[], Claim]
) -> None:
    url = f"/api/jobs/{submit(store)}"
    etag = client.get(url).headers["ETag"]
    claim()
    response = client.get(url, headers={"If-None-Match": etag})
    assert (response.status_code, response.json()["status"]) == (200, "in_progress")


def test_a_wait_for_news_ends_with_the_first_change(
    client: TestClient, store: JobStore, claim: Callable[[], Claim]
) -> None:
    url = f"/api/jobs/{submit(store)}"
    etag = client.get(url).headers["ETag"]
    timer = threading.Timer(0.3, claim)
    timer.start()
    response = client.get(f"{url}?wait=30", headers={"If-None-Match": etag})
    timer.join()
    assert response.json()["status"] == "in_progress"


# Listing


def test_jobs_are_listed_newest_first_in_pages(client: TestClient, store: JobStore) -> None:
    ids = [submit(store) for _ in range(3)]
    page = client.get("/api/jobs?limit=2").json()
    assert [job["id"] for job in page["data"]] == [ids[2], ids[1]]
    rest = client.get("/api/jobs", params={"limit": 2, "after": page["next"]}).json()
    assert [job["id"] for job in rest["data"]] == [ids[0]]
    assert rest["next"] is None


def test_jobs_are_listed_by_status(
    client: TestClient, store: JobStore, claim: Callable[[], Claim]
) -> None:
    for _ in range(2):
        submit(store)
    lease = claim()
    (job,) = client.get("/api/jobs?status=in_progress").json()["data"]
    assert job["id"] == lease.job_id


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "status=lost", "after=x", "after=%00", "after=-inf"]
)
def test_a_wrong_listing_is_refused(client: TestClient, query: str) -> None:
    assert client.get(f"/api/jobs?{query}").status_code == 422


@pytest.mark.parametrize("path", ["/api/jobs", "/api/jobs/{id}"])
def test_a_misspelt_parameter_is_refused_and_not_ignored(
    client: TestClient, store: JobStore, path: str
) -> None:
    response = client.get(path.format(id=submit(store)) + "?statsu=queued")
    assert response.status_code == 422
    assert response.json()["errors"] == [{"parameter": "statsu", "detail": "unknown parameter"}]


# Cancelling and erasing


def test_a_queued_job_is_cancelled_now_and_stays_so(client: TestClient, store: JobStore) -> None:
    url = f"/api/jobs/{submit(store)}/cancel"
    first, second = client.post(url), client.post(url)
    assert (first.status_code, first.json()["status"]) == (200, "cancelled")
    assert (second.status_code, second.json()) == (200, first.json())


def test_a_running_job_is_asked_to_stop(
    client: TestClient, store: JobStore, claim: Callable[[], Claim]
) -> None:
    url = f"/api/jobs/{submit(store)}/cancel"
    claim()
    first, second = client.post(url), client.post(url)
    assert (first.status_code, first.json()["status"]) == (202, "in_progress")
    assert first.json()["cancel_requested_at"]
    assert (second.status_code, second.json()) == (202, first.json())


def test_cancelling_a_completed_job_changes_nothing(
    client: TestClient, store: JobStore, complete: Callable[[], Claim]
) -> None:
    url = f"/api/jobs/{submit(store)}"
    complete()
    before = client.get(url).json()
    response = client.post(f"{url}/cancel")
    assert (response.status_code, response.json()) == (200, before)


def test_an_erased_job_is_gone_with_its_audio(
    client: TestClient, store: JobStore, audio: AudioStore, complete: Callable[[], Claim]
) -> None:
    url = f"/api/jobs/{submit(store)}"
    lease = complete()
    name = store.get(lease.job_id).output.name
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404
    assert client.get(f"{url}/audio").status_code == 404
    with pytest.raises(FileNotFoundError):
        audio.path(name)


def test_an_erased_running_job_cannot_be_finished(
    client: TestClient, store: JobStore, claim: Callable[[], Claim]
) -> None:
    job_id = submit(store)
    lease = claim()
    assert client.delete(f"/api/jobs/{job_id}").status_code == 204
    assert not store.finish(lease, cancelled=True)


# The service as a whole


def test_healthz_needs_nothing(client: TestClient, redis_server: fakeredis.FakeServer) -> None:
    redis_server.connected = False
    assert client.get("/healthz").json() == {"status": "ok"}


def test_readyz_wants_redis_and_a_ready_worker(
    client: TestClient, store: JobStore, redis_server: fakeredis.FakeServer
) -> None:
    assert client.get("/readyz").json()["code"] == "no_ready_worker"
    store.heartbeat(a_worker("w1", state="draining"))
    assert client.get("/readyz").status_code == 503
    store.heartbeat(a_worker("w2"))
    assert client.get("/readyz").json() == {"status": "ready", "workers": 1}
    redis_server.connected = False
    assert client.get("/readyz").json()["code"] == "store_unavailable"


def test_the_status_tells_workers_and_queue(
    client: TestClient, store: JobStore, claim: Callable[[], Claim]
) -> None:
    assert client.get("/api/status").json()["queue"]["wait_s"] is None
    store.heartbeat(a_worker("w1", "cuda:0", model_notice="untrained"))
    for _ in range(2):
        submit(store)
    claim()
    told = client.get("/api/status").json()
    assert told["queue"] == {"queued": 1, "in_progress": 1, "wait_s": 0.0}
    (worker,) = told["workers"]
    assert (worker["device"], worker["model_notice"]) == ("cuda:0", "untrained")


def test_the_metrics_tell_the_same_to_prometheus(
    client: TestClient, store: JobStore, redis_server: fakeredis.FakeServer
) -> None:
    submit(store)
    store.heartbeat(a_worker("w1", prefix_hits=7, prefix_misses=2, prefix_bytes=4096))
    text = client.get("/metrics").text
    assert 'echoforge_jobs{status="queued"} 1.0' in text
    assert 'echoforge_worker_slots{device="cpu",model="csm-tiny",state="ready",worker="w1"}' in text
    of_worker = 'device="cpu",model="csm-tiny"'
    for result, count in (("hit", 7), ("miss", 2)):
        labels = f'{of_worker},result="{result}",state="ready",worker="w1"'
        assert f"echoforge_prefix_lookups_total{{{labels}}} {count}.0" in text
    assert f'echoforge_prefix_cache_bytes{{{of_worker},state="ready",worker="w1"}} 4096.0' in text
    redis_server.connected = False
    assert client.get("/metrics").status_code == 503


def test_the_api_reaps_the_jobs_of_dead_workers(
    settings, store: JobStore, doorbell, clock, claim: Callable[[], Claim]
) -> None:
    from api.app import create_app

    job_id = submit(store)
    claim()
    clock.advance(16)
    quick = settings.model_copy(update={"tick_s": 0.02})
    with TestClient(create_app(quick, store, doorbell), LOOPBACK):
        deadline = time.monotonic() + 10
        while not doorbell.rings and time.monotonic() < deadline:
            time.sleep(0.02)
    assert store.get(job_id).status is JobStatus.QUEUED
    assert doorbell.rings[0] == ("echoforge.auto", 1)
