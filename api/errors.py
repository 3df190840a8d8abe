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

from api.methods import methods_of
from shared.errors import InvalidInput, SpeechError, Unavailable

MAX_ERRORS = 20
MAX_POINTER_CHARS = 200
KEY_ITSELF = "[key]"  # Pydantic's last step where the name of a field is at fault
HTTP_CODES = {  # our own: the names in http.HTTPStatus change between versions of Python
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "content_too_large",
    416: "range_not_satisfiable",
}


class Problem(BaseModel):
    """`code` is stable; `detail` is for people.

    Each of `errors` has a `detail`, and says where: `pointer` is a JSON pointer (RFC 6901) into the
    body, `parameter` a name in the query, `header` one among the headers.
    """

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
    pointer = error.pointer if isinstance(error, InvalidInput) else None
    errors = None if pointer is None else [{"pointer": pointer, "detail": error.message}]
    return problem(error.status, error.code, error.message, headers=headers, errors=errors)


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
    return {**_place(error["loc"]), "detail": _detail(error)}


def _detail(error: Mapping[str, Any]) -> str:
    match error["type"]:
        case "extra_forbidden" if error["loc"][0] == "query":
            return "unknown parameter"
        case "extra_forbidden":
            return "unknown field"
        case "literal_error" | "enum":
            return f"supported: {error['ctx']['expected']}"
        case "none_required":
            return "not supported yet; leave it out, or send null"
    return str(error["msg"]).removeprefix("Value error, ")


def _place(loc: Sequence[str | int]) -> dict[str, str]:
    place, *path = (str(part).encode("utf-8", "replace").decode() for part in loc)
    if place == "query":
        return {"parameter": path[0][:MAX_POINTER_CHARS]}
    if place == "header":
        return {"header": path[0]}
    return {"pointer": _pointer(path)}


def _pointer(path: Sequence[str]) -> str:
    """RFC 6901. A name too long to repeat is left out: then it points at what holds it."""
    pointer = ""
    for step in path:
        escaped = step.replace("~", "~0").replace("/", "~1")
        if step == KEY_ITSELF or len(pointer) + len(escaped) >= MAX_POINTER_CHARS:
            break
        pointer += f"/{escaped}"
    return pointer


def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    """The framework's own: unknown route, wrong method, unreadable body."""
    assert isinstance(error, HTTPException)
    if error.status_code == 400 and error.__cause__ is not None:
        return _unreadable_body(error.__cause__)
    if error.status_code == 405:
        return _wrong_method(", ".join(methods_of(request.app, request.scope["path"])))
    code = HTTP_CODES.get(error.status_code, f"http_{error.status_code}")
    return problem(error.status_code, code, str(error.detail), headers=error.headers)


def _wrong_method(allowed: str) -> JSONResponse:
    return problem(405, HTTP_CODES[405], f"Use {allowed} here.", headers={"Allow": allowed})


def _unreadable_body(cause: BaseException) -> JSONResponse:
    """What Python's JSON reader gave up on; FastAPI calls all of it 400."""
    if isinstance(cause, UnicodeDecodeError):
        why = "The body is not valid UTF-8; encode it as UTF-8."
    elif isinstance(cause, RecursionError):
        why = "The body is nested too deeply; send one flat object."
    elif isinstance(cause, ValueError):
        why = "The body holds a number of too many digits; /docs tells the limits."
    else:
        return problem(400, HTTP_CODES[400], "The body could not be read; send it again.")
    errors = [{"pointer": "", "detail": why}]
    return problem(InvalidInput.status, InvalidInput.code, why, errors=errors)


def _on_bug(request: Request, error: Exception) -> JSONResponse:
    """The traceback goes to the log, never to the client."""
    return problem(500, "internal", "Something went wrong here; the server's log says what.")
