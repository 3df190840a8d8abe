"""Every error leaves as `application/problem+json` (RFC 9457), whatever raised it.

Knows the one shape and where each kind of error comes from. Never repeats what the client sent: it
may be secret, or no valid UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from shared.errors import InvalidInput, SpeechError, Unavailable

MAX_ERRORS = 20
MAX_POINTER_CHARS = 200
HTTP_CODES = {  # our own: the names in http.HTTPStatus change between versions of Python
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "content_too_large",
    416: "range_not_satisfiable",
}


class Problem(BaseModel):
    """`code` is stable; `detail` is for people. `errors` tells `pointer` and `detail` of fields."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    errors: list[dict[str, str]] | None = None


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the documentation: the refusals a route may answer with."""
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in statuses
    }


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(SpeechError, _on_speech_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: list[dict[str, str]] | None = None,
) -> JSONResponse:
    told = Problem(
        title=HTTPStatus(status).phrase, status=status, code=code, detail=detail, errors=errors
    )
    return JSONResponse(
        told.model_dump(exclude_none=True), status, headers, media_type="application/problem+json"
    )


def _on_speech_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SpeechError)
    headers = {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after_s)
    return problem(error.status, error.code, error.message, headers=headers)


def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    return problem(
        InvalidInput.status,
        InvalidInput.code,
        f"The request is not valid: {len(found)} error(s); see `errors`, and /docs for the limits.",
        errors=[_field_error(one) for one in found[:MAX_ERRORS]],
    )


def _field_error(error: Mapping[str, Any]) -> dict[str, str]:
    if error["type"] == "json_invalid":
        return {"pointer": "", "detail": f"not valid JSON: {error['ctx']['error']}"}
    return {"pointer": _pointer(error["loc"]), "detail": error["msg"]}


def _pointer(loc: Sequence[str | int]) -> str:
    """A JSON pointer (RFC 6901) into the body; `?name` for a query, `name:` for a header."""
    place, *path = (str(part).encode("utf-8", "replace").decode() for part in loc)
    if place == "query":
        return f"?{path[0]}"
    if place == "header":
        return f"{path[0]}:"
    steps = (step.replace("~", "~0").replace("/", "~1") for step in path)
    return "".join(f"/{step}" for step in steps)[:MAX_POINTER_CHARS]


def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    """The framework's own: unknown route, wrong method, unreadable body."""
    assert isinstance(error, HTTPException)
    code = HTTP_CODES.get(error.status_code, f"http_{error.status_code}")
    return problem(error.status_code, code, str(error.detail), headers=error.headers)


def _on_bug(request: Request, error: Exception) -> JSONResponse:
    """The traceback goes to the log, never to the client."""
    return problem(500, "internal", "Something went wrong here; the server's log says what.")
