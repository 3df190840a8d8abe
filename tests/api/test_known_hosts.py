"""On loopback the API answers to loopback's names only, so that no web page can become its own."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.known_hosts import is_loopback
from shared.settings import Settings
from shared.store import JobStore
from tests.samples import FakeDoorbell


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:1", "[::1]", "[::1]:8000", "127.1.2.3"],
)
def test_loopback_by_any_name_and_port_is_answered(client: TestClient, host: str) -> None:
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost@evil.example",
        "192.168.1.2",
        "0.0.0.0",
        "[::1].evil.example",
        "[::1",
        "127.0.0.1:80:80",
        "",
    ],
)
def test_a_page_that_points_its_name_at_us_is_refused(client: TestClient, host: str) -> None:
    response = client.get("/api/jobs", headers={"Host": host})
    assert (response.status_code, response.json()["code"]) == (400, "unknown_host")
    assert response.headers["Content-Type"] == "application/problem+json"


def test_beyond_loopback_every_name_is_answered(
    settings: Settings, store: JobStore, doorbell: FakeDoorbell
) -> None:
    remote = settings.model_copy(update={"host": "0.0.0.0"})
    client = TestClient(create_app(remote, store, doorbell), "http://tts.example")
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "tts.example"])
def test_an_address_that_others_can_reach_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)
