"""HEAD: what a GET would say, without its body."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from shared.store import JobStore
from tests.samples import a_request


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/api/status",
        "/api/jobs",
        "/api/jobs/{id}",
        "/api/jobs/{id}/audio",
        "/docs",
        "/static/docs.js",
        "/openapi.json",
        "/nowhere",
    ],
)
def test_head_has_the_status_and_headers_of_get_and_no_body(
    client: TestClient, store: JobStore, path: str
) -> None:
    url = path.format(id=store.submit(a_request()).job.id)
    asked, got = client.head(url), client.get(url)
    assert (asked.status_code, asked.headers) == (got.status_code, got.headers)
    assert asked.content == b""
