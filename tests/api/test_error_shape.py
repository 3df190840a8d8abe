"""Every error is problem+json, and none repeats what was sent or tells what is inside."""

from __future__ import annotations

from typing import Any

import fakeredis
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from shared.settings import Settings
from shared.store import JobStore
from tests.api.conftest import LOOPBACK
from tests.samples import FakeDoorbell

JSON = {"Content-Type": "application/json"}


def assert_is_problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert response.status_code == body["status"] == status
    assert body["code"] == code
    assert {"type", "title", "status", "code", "detail"} <= set(body)
    assert body["detail"]
    return body


@pytest.mark.parametrize("path", ["/nowhere", "/api", "/api/jobs/", "/api/tasks/1", "/static/no"])
def test_an_unknown_route_is_a_problem(client: TestClient, path: str) -> None:
    assert_is_problem(client.get(path), 404, "not_found")


def test_a_wrong_method_is_a_problem_that_names_the_right_one(client: TestClient) -> None:
    response = client.put("/api/generate")
    assert_is_problem(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/jobs/1", "GET, HEAD, DELETE"),
        ("/api/jobs/1/audio", "GET, HEAD"),
        ("/api/jobs/1/cancel", "POST"),
        ("/openapi.json", "GET, HEAD"),
        ("/static/docs.js", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_every_right_one(
    client: TestClient, path: str, allowed: str
) -> None:
    response = client.patch(path)
    assert_is_problem(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == allowed


def test_head_of_a_path_without_get_is_405_without_a_body(client: TestClient) -> None:
    response = client.head("/api/generate")
    assert (response.status_code, response.content) == (405, b"")
    assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    "content",
    [
        b'{"text": "secret"',
        b"",
        b"null",
        b"[]",
        b'"secret"',
        b'{"text": "\\ud800 secret"}',
        b'{"text": "Hi", "secret\\udfff": 1}',
        b'{"text": "Hi", "metadata": {"secret\\ud800": "\\ud800"}}',
        b'{"text": "Hi", "temperature": NaN}',
        b'{"text": "Hi", "temperature": Infinity}',
        b'{"text": "Hi", "seed": 1e400}',
        b'{"text": {"secret": []}}',
        b'{"text": "secret\\u0000"}',
    ],
)
def test_a_bad_body_is_a_problem_that_repeats_none_of_it(
    client: TestClient, content: bytes
) -> None:
    response = client.post("/api/generate", content=content, headers=JSON)
    body = assert_is_problem(response, 422, "invalid_input")
    assert body["errors"]
    details = [body["detail"], *(error["detail"] for error in body["errors"])]
    assert not any("secret" in detail for detail in details)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"text": "\xff\xfe"}', "UTF-8"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"text": ', "not valid JSON"),
    ],
)
def test_a_body_that_cannot_be_read_is_told_why(
    client: TestClient, content: bytes, why: str
) -> None:
    response = client.post("/api/generate", content=content, headers=JSON)
    body = assert_is_problem(response, 422, "invalid_input")
    assert body["errors"][0]["pointer"] == ""
    assert why in body["errors"][0]["detail"]


@pytest.mark.parametrize(
    "media_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json"],
)
def test_a_body_that_is_not_said_to_be_json_is_415(
    client: TestClient, media_type: str | None
) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    response = client.post("/api/generate", content=b'{"text": "hi"}', headers=headers)
    body = assert_is_problem(response, 415, "unsupported_media_type")
    assert "send Content-Type: application/json" in body["detail"]


@pytest.mark.parametrize(
    "media_type", ["application/json; charset=utf-8", "Application/JSON", "application/ld+json"]
)
def test_every_spelling_of_json_is_taken(client: TestClient, media_type: str) -> None:
    headers = {"Content-Type": media_type}
    response = client.post("/api/generate", content=b'{"text": "hi"}', headers=headers)
    assert response.status_code == 202


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"nonsense": 1}, "unknown field"),
        ({"voice": "alice"}, "not supported yet; leave it out, or send null"),
        ({"style": "angry"}, "supported: 'default'"),
        ({"device": "tpu"}, "supported: 'auto', 'cuda' or 'cpu'"),
        ({"text": "..."}, "text holds nothing to speak; send at least one letter or digit"),
    ],
)
def test_a_refusal_says_what_would_be_taken(
    client: TestClient, body: dict[str, Any], detail: str
) -> None:
    response = client.post("/api/generate", json={"text": "Hi", **body})
    (error,) = assert_is_problem(response, 422, "invalid_input")["errors"]
    assert error["detail"] == detail


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"~" * 99: 1}, "/" + "~0" * 99),
        ({"~" * 300: 1}, ""),
        ({"metadata": {"k" * 65: "v"}}, "/metadata/" + "k" * 65),
        ({"metadata": {"": "v"}}, "/metadata/"),
    ],
)
def test_a_pointer_is_never_cut_in_two(
    client: TestClient, body: dict[str, Any], pointer: str
) -> None:
    response = client.post("/api/generate", json={"text": "Hi", **body})
    (error,) = assert_is_problem(response, 422, "invalid_input")["errors"]
    assert error["pointer"] == pointer


def test_a_thousand_mistakes_make_a_short_answer(client: TestClient) -> None:
    body = {"text": "Hi"} | {f"field{n}": n for n in range(1000)}
    response = client.post("/api/generate", json=body)
    assert_is_problem(response, 422, "invalid_input")
    assert len(response.json()["errors"]) == 20


def test_a_body_too_large_is_a_problem(client: TestClient) -> None:
    response = client.post("/api/generate", content=b" " * 100_000, headers=JSON)
    assert_is_problem(response, 413, "content_too_large")


class Broken(JobStore):
    def get(self, job_id: str) -> Any:
        raise RuntimeError("the secret cause")


def test_our_own_mistake_is_a_problem_without_its_cause(settings: Settings) -> None:
    store = Broken(fakeredis.FakeRedis(decode_responses=True))
    app = create_app(settings, store, FakeDoorbell())
    client = TestClient(app, LOOPBACK, raise_server_exceptions=False)
    response = client.get("/api/jobs/job_" + "0" * 32)
    assert_is_problem(response, 500, "internal")
    assert "secret" not in response.text
