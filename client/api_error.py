"""SpeechApiError: every way in which the API can let a caller down, in one shape.

Knows problem+json and Retry-After; sends nothing.
"""

from __future__ import annotations

from typing import Any

import httpx2

TRANSIENT_STATUSES = frozenset({429, 502, 503, 504})


class SpeechApiError(Exception):
    """`status` is the HTTP status, or 0 where there was no answer or the job itself failed."""

    def __init__(
        self, status: int, code: str, message: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def is_transient(self) -> bool:
        """True where asking again may help: the server was unreachable, busy or starting."""
        return self.code in {"unreachable", "connection_lost"} or self.status in TRANSIENT_STATUSES


def from_transport(error: httpx2.TransportError, base_url: str) -> SpeechApiError:
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return SpeechApiError(
            0,
            "unreachable",
            f"cannot reach {base_url}; start the server with `echoforge up`, or name it with --url",
        )
    if isinstance(error, httpx2.UnsupportedProtocol):
        return bad_url(base_url)
    return SpeechApiError(
        0, "connection_lost", f"the connection to {base_url} was lost ({type(error).__name__})"
    )


def bad_url(base_url: str) -> SpeechApiError:
    return SpeechApiError(
        0, "bad_url", f"{base_url!r} is no address; give one like http://host:8000"
    )


def from_response(response: httpx2.Response) -> SpeechApiError:
    """The response's body must have been read."""
    problem = _json_object(response)
    return SpeechApiError(
        response.status_code,
        str(problem.get("code") or f"http_{response.status_code}"),
        _message(problem) or f"HTTP {response.status_code} from {response.request.url}",
        _retry_after_s(response),
    )


def from_job(job: dict[str, Any]) -> SpeechApiError:
    """For a job that ended without audio."""
    error = job.get("error") or {}
    status = str(job.get("status"))
    message = error.get("message") or f"job {job.get('id')} ended as {status}"
    return SpeechApiError(0, str(error.get("code") or status), message)


def _json_object(response: httpx2.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:  # a proxy's page, or nothing
        return {}
    return body if isinstance(body, dict) else {}


def _message(problem: dict[str, Any]) -> str:
    fields = [e for e in problem.get("errors") or [] if isinstance(e, dict)]
    told = "; ".join(f"{_place(e)}: {e.get('detail', '')}" for e in fields)
    return told or str(problem.get("detail") or problem.get("title") or "")


def _place(error: dict[str, Any]) -> str:
    """In the body, in the query, or in a header: the API names one of the three."""
    return str(error.get("pointer") or error.get("parameter") or error.get("header") or "")


def _retry_after_s(response: httpx2.Response) -> float | None:
    """Only the form in seconds; a date (RFC 9110 allows one) counts as not said."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None
