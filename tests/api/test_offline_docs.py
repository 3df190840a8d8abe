"""The documentation page needs nothing but this server."""

from __future__ import annotations

import re

from starlette.testclient import TestClient


def test_the_page_and_its_files_come_from_this_server(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert "/static/docs.js" in linked
    for path in linked:
        assert path.startswith("/"), path
        assert client.get(path).status_code == 200


def test_no_file_names_another_host(client: TestClient) -> None:
    for path in ("/docs", "/static/docs.js", "/static/docs.css"):
        assert not re.search(r"https?:|//[a-z]+\.|@import", client.get(path).text), path


def test_the_browser_is_told_to_load_nothing_else(client: TestClient) -> None:
    assert "default-src 'self'" in client.get("/docs").headers["Content-Security-Policy"]


def test_the_page_is_where_a_visitor_lands(client: TestClient) -> None:
    assert client.get("/").headers["Location"] == "/docs"


def test_the_schema_names_every_endpoint_and_its_limits(client: TestClient) -> None:
    spec = client.get("/openapi.json").json()
    assert set(spec["paths"]) == {
        "/api/generate",
        "/api/jobs",
        "/api/jobs/{id}",
        "/api/jobs/{id}/audio",
        "/api/jobs/{id}/cancel",
        "/api/status",
        "/healthz",
        "/readyz",
    }
    text = spec["components"]["schemas"]["SpeechRequest"]["properties"]["text"]
    assert text["maxLength"] == 5000


def test_every_reference_in_the_schema_resolves(client: TestClient) -> None:
    response = client.get("/openapi.json")
    spec = response.json()
    for reference in set(re.findall(r'"\$ref":\s*"#/([^"]+)"', response.text)):
        at = spec
        for step in reference.split("/"):
            at = at[step]
        assert at
