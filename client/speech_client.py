"""SpeechClient: the HTTP contract as Python calls.

Knows paths, waiting and retrying; knows nothing about Redis, models or how the server is run.
Jobs are the API's JSON objects, unchanged.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias
from urllib.parse import quote

import httpx2

from client.api_error import SpeechApiError, bad_url, from_job, from_response, from_transport
from shared.jobs import JobStatus

Job: TypeAlias = dict[str, Any]
OnProgress: TypeAlias = Callable[[Job], None]

DEFAULT_URL = "http://127.0.0.1:8000"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_POLL_S = 30  # the API allows 60; many proxies cut a silent connection at 60
MAX_PAGE = 100
CHUNK_BYTES = 65_536
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.25, 5.0


class SpeechClient:
    """Sync; one connection pool; a context manager.

    `patience_s`: how long in a row the server may be away while a job is awaited, audio is
    fetched or a lost answer is asked for again. A server that is not there at the first call of
    any other method raises at once. Every failure is a SpeechApiError.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        transport: httpx2.BaseTransport | None = None,
        *,
        patience_s: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.patience_s = patience_s
        self._sleep = sleep
        is_local = _host(self.base_url) in LOOPBACK
        self._http = httpx2.Client(
            base_url=self.base_url,
            transport=transport,
            timeout=httpx2.Timeout(30.0, connect=5.0),
            follow_redirects=True,  # audio may live behind a presigned URL
            trust_env=not is_local,  # a proxy for the internet cannot reach this machine's loopback
        )

    def __enter__(self) -> SpeechClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def generate(self, text: str, **options: Any) -> Job:
        """Submit; returns the job as accepted. `options` are the request's other fields.

        The Idempotency-Key makes the retry after a lost answer safe: it finds the first job.
        """
        headers = {"Idempotency-Key": uuid.uuid4().hex, "Content-Type": "application/json"}
        body = _encoded({"text": text, **options})
        trouble = _Trouble(self.patience_s, self._sleep)
        while True:
            try:
                return self._json("POST", "/api/generate", content=body, headers=headers)
            except SpeechApiError as error:
                if error.code != "connection_lost" and not trouble.has_begun:
                    raise
                trouble.endure(error)

    def job(self, id: str, wait: int = 0, include_input: bool = False) -> Job:
        """The job as it is, or as it is once ended or `wait` seconds (at most 60) have passed."""
        params: dict[str, str | int] = {"wait": wait} if wait else {}
        if include_input:
            params["include"] = "input"
        return self._json("GET", _path(id), params=params, timeout=30.0 + wait)

    def jobs(self, status: str | None = None, limit: int = 20) -> list[Job]:
        """The newest jobs, `limit` at most, however many pages they fill."""
        found: list[Job] = []
        params: dict[str, str | int] = {"status": status} if status else {}
        while len(found) < limit:
            params["limit"] = min(limit - len(found), MAX_PAGE)
            page = self._json("GET", "/api/jobs", params=params)
            found += page["data"]
            if not page["data"] or not page.get("next"):
                break
            params["after"] = page["next"]
        return found[:limit]

    def wait(
        self, id: str, on_progress: OnProgress | None = None, timeout_s: float | None = None
    ) -> Job:
        """The job once it has ended, in whatever way; TimeoutError after `timeout_s`.

        `on_progress` hears the job after each poll, about once a second, and once at its end.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        trouble = _Trouble(self.patience_s, self._sleep)
        while True:
            begun = time.monotonic()
            job = self._poll(id, _poll_s(deadline, on_progress is not None), trouble)
            if job is not None and on_progress is not None:
                on_progress(job)
            if job is not None and JobStatus(job["status"]).is_terminal:
                return job
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {id} has not ended within {timeout_s:g} s")
            if job is not None and time.monotonic() - begun < 0.05:
                self._sleep(0.25)  # a server that does not hold long polls is not hammered

    def cancel(self, id: str) -> Job:
        return self._json("POST", _path(id) + "/cancel")

    def delete(self, id: str) -> None:
        self._send("DELETE", _path(id))

    def download(self, id: str, path: str | Path) -> Path:
        """Fetch the audio; `path` appears only when its size and SHA-256 are right."""
        target = Path(path)
        job = self.job(id)
        if not job.get("output"):
            raise _no_audio(job)
        trouble = _Trouble(self.patience_s, self._sleep)
        while True:
            try:
                return self._fetch(job, target)
            except SpeechApiError as error:
                if not error.is_transient:
                    raise
                trouble.endure(error)

    def is_ready(self) -> bool:
        """True when the server is there, has its Redis, and a worker has loaded its model."""
        try:
            self._send("GET", "/readyz", timeout=2.0)
        except SpeechApiError as error:
            if not error.is_transient:
                raise
            return False
        return True

    def status(self) -> dict[str, Any]:
        """Workers, models, devices and queue, as `GET /api/status` tells them."""
        return self._json("GET", "/api/status")

    def say(
        self,
        text: str,
        path: str | Path,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Job:
        """generate, wait, download; returns the completed job, raises where it did not complete."""
        accepted = self.generate(text, **options)
        job = self.wait(accepted["id"], on_progress, timeout_s)
        if job["status"] != JobStatus.COMPLETED:
            raise from_job(job)
        self.download(job["id"], path)
        return job

    def _poll(self, id: str, wait: int, trouble: _Trouble) -> Job | None:
        """None: the server was away, and the caller may ask again."""
        try:
            job = self.job(id, wait=wait)
        except SpeechApiError as error:
            if not error.is_transient:
                raise
            trouble.endure(error)
            return None
        trouble.end()
        return job

    def _fetch(self, job: Job, target: Path) -> Path:
        part = target.with_name(target.name + ".part")
        try:
            size, sha256 = self._stream(_path(job["id"]) + "/audio", part)
            output = job["output"]
            if (size, sha256) != (output["bytes"], output["sha256"]):
                raise SpeechApiError(
                    0, "damaged_audio", f"the audio of {job['id']} arrived damaged; download again"
                )
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def _stream(self, path: str, part: Path) -> tuple[int, str]:
        """(bytes, sha256) of what was written to `part`."""
        digest, size = hashlib.sha256(), 0
        try:
            with self._http.stream("GET", path) as response, part.open("wb") as file:
                if not response.is_success:
                    response.read()
                    raise from_response(response)
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
        except httpx2.TransportError as error:
            raise from_transport(error, self.base_url) from error
        return size, digest.hexdigest()

    def _json(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        response = self._send(method, path, **sent)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            return answer
        raise SpeechApiError(
            response.status_code, "not_echoforge", f"{self.base_url} is no EchoForge API; check it"
        )

    def _send(self, method: str, path: str, **sent: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **sent)
        except httpx2.TransportError as error:
            raise from_transport(error, self.base_url) from error
        if response.is_success:
            return response
        raise from_response(response)


class _Trouble:
    """One stretch in which the server is away: backs off, and gives up after `patience_s`."""

    def __init__(self, patience_s: float, sleep: Callable[[float], None]) -> None:
        self._patience_s = patience_s
        self._sleep = sleep
        self.end()

    def end(self) -> None:
        self._deadline: float | None = None
        self._next_s = FIRST_BACKOFF_S

    @property
    def has_begun(self) -> bool:
        return self._deadline is not None

    def endure(self, error: SpeechApiError) -> None:
        """Sleep before the next try, or raise `error` when patience or hope is at an end."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._patience_s
        pause_s = error.retry_after_s or self._next_s
        if not error.is_transient or time.monotonic() + pause_s > self._deadline:
            raise error
        self._sleep(pause_s)
        self._next_s = min(self._next_s * 2, MAX_BACKOFF_S)


def _encoded(fields: Mapping[str, Any]) -> bytes:
    """As JSON; SpeechApiError names the field that cannot be written so."""
    for name, value in fields.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:
            reason = f"/{name}: holds half a character; is it UTF-8?"
            raise SpeechApiError(0, "invalid_input", reason) from error
        except ValueError as error:
            reason = f"/{name}: {value!r} cannot be written as JSON"
            raise SpeechApiError(0, "invalid_input", reason) from error
    return json.dumps(fields).encode()


def _host(base_url: str) -> str:
    try:
        return httpx2.URL(base_url).host
    except httpx2.InvalidURL as error:
        raise bad_url(base_url) from error


def _path(id: str) -> str:
    return f"/api/jobs/{quote(id, safe='')}"


def _poll_s(deadline: float | None, tells_progress: bool) -> int:
    longest = 1 if tells_progress else MAX_POLL_S
    if deadline is None:
        return longest
    return min(longest, max(0, math.ceil(deadline - time.monotonic())))


def _no_audio(job: Job) -> SpeechApiError:
    if not JobStatus(job["status"]).is_terminal:
        return SpeechApiError(
            0, "audio_not_ready", f"job {job['id']} is {job['status']}; wait for it to complete"
        )
    if job["status"] == JobStatus.COMPLETED:
        return SpeechApiError(0, "audio_expired", f"the audio of job {job['id']} has expired")
    return from_job(job)
