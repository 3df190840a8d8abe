"""Every error is problem+json, and none repeats what was sent or tells what is inside."""

from __future__ import annotations

from typing import Any

import fakeredis
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from shared.settings import Settings
from shared.store import JobStore
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


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 50_000, b'{"seed": ' + b"9" * 9000 + b"}"])
def test_a_body_that_cannot_be_read_is_a_problem(client: TestClient, content: bytes) -> None:
    response = client.post("/api/generate", content=content, headers=JSON)
    assert response.status_code in {400, 422}
    assert response.headers["Content-Type"] == "application/problem+json"


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
    client = TestClient(app, raise_server_exceptions=False)
    response = client.get("/api/jobs/job_" + "0" * 32)
    assert_is_problem(response, 500, "internal")
    assert "secret" not in response.text
