"""FakeApi: the HTTP contract as a small real object, for a transport or a real server.

Jobs advance one step of `script` at each look. Knows shapes, ids and bytes; speaks nothing.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2

AUDIO = b"RIFF" + bytes(range(256)) * 600
NOTICE = "csm-tiny is untrained: it makes noise, not speech."


@dataclass
class Asked:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def answer(status: int, body: object, **headers: str) -> Answer:
    told = {
        "Content-Type": "application/json",
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }
    return Answer(status, json.dumps(body).encode(), told)


def problem(status: int, code: str, detail: str, **headers: str) -> Answer:
    return answer(status, {"code": code, "detail": detail, "status": status}, **headers)


def output(audio: bytes = AUDIO) -> dict[str, Any]:
    return {
        "url": "/audio",
        "format": "wav",
        "content_type": "audio/wav",
        "bytes": len(audio),
        "sample_rate": 24000,
        "duration_s": 3.2,
        "sha256": hashlib.sha256(audio).hexdigest(),
        "seed": 7,
        "finish_reason": "eos",
    }


class FakeApi:
    def __init__(self) -> None:
        self.script = ["queued", "in_progress", "completed"]
        self.jobs: dict[str, dict[str, Any]] = {}
        self.by_key: dict[str, str] = {}
        self.asked: list[Asked] = []
        self.audio = AUDIO
        self.is_ready = True
        self.workers = [{"id": "w1", "model": "csm-tiny", "device": "cpu", "model_notice": NOTICE}]
        self.extra: dict[str, Any] = {}  # laid over each job that completes
        self.faults: list[Exception | Answer | None] = []  # consumed one a request; None: no fault

    def handle(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            if asked.method == "POST":
                self._route(asked)  # the work is done, only the answer is lost
            raise fault
        return fault or self._route(asked)

    def _route(self, asked: Asked) -> Answer:
        routes: dict[tuple[str, int], Callable[[Asked, list[str]], Answer]] = {
            ("POST /api/generate", 2): self._generate,
            ("GET /api/jobs", 2): self._list,
            ("GET /api/jobs", 3): self._job,
            ("GET /api/jobs", 4): self._audio,
            ("POST /api/jobs", 4): self._cancel,
            ("DELETE /api/jobs", 3): self._delete,
            ("GET /api/status", 2): self._status,
            ("GET /readyz", 1): self._readyz,
        }
        parts = asked.path.strip("/").split("/")
        handler = routes.get((f"{asked.method} /{'/'.join(parts[:2])}", len(parts)))
        if handler is None:
            return problem(404, "not_found", f"nothing at {asked.path}")
        if len(parts) > 2 and parts[2] not in self.jobs:
            return problem(404, "job_not_found", f"there is no job {parts[2]}")
        return handler(asked, parts)

    def _generate(self, asked: Asked, parts: list[str]) -> Answer:
        if not asked.body["text"]:
            errors = [{"pointer": "/text", "detail": "String should have at least 1 character"}]
            return answer(422, {"code": "invalid_input", "detail": "invalid", "errors": errors})
        key = asked.headers.get("idempotency-key", str(len(self.jobs)))
        id = self.by_key.setdefault(key, f"job_{len(self.jobs):032x}")
        job = {"id": id, "status": "queued", "step": 0, "created_at": "2026-11-22T19:00:00.120Z"}
        return answer(202, self.jobs.setdefault(id, job))

    def _job(self, asked: Asked, parts: list[str]) -> Answer:
        job = self.jobs[parts[2]]
        job["status"] = self.script[min(job["step"], len(self.script) - 1)]
        job["step"] += 1
        job.update({"queue": None, "progress": None})
        if job["status"] == "queued":
            job["queue"] = {"position": 2, "estimated_start_s": 4.0 if self.workers else None}
        if job["status"] == "in_progress":
            job["progress"] = {"percent": 40, "audio_seconds": 1.3, "eta_s": 2.0, "frames": 16}
        if job["status"] == "completed":
            job.update(output=output(self.audio), model="csm-tiny", device="cpu")
            job.update(model_notice=NOTICE, device_fallback=None)
            job.update(result_url=f"/api/jobs/{job['id']}/audio", metrics={"rtf": 0.64})
            job.update(self.extra)
        if job["status"] == "failed":
            job["error"] = {"code": "out_of_memory", "message": "too long for this card"}
        shown = dict(job, **({"input": {"text": "x"}} if "include" in asked.query else {}))
        return answer(200, shown)

    def _list(self, asked: Asked, parts: list[str]) -> Answer:
        found = [j for j in self.jobs.values() if asked.query.get("status") in {None, j["status"]}]
        first = int(asked.query.get("after", 0))
        last = first + int(asked.query["limit"])
        return answer(200, {"data": found[first:last], "next": str(last) if found[last:] else None})

    def _audio(self, asked: Asked, parts: list[str]) -> Answer:
        return Answer(200, self.audio, {"Content-Type": "audio/wav"})

    def _cancel(self, asked: Asked, parts: list[str]) -> Answer:
        self.script = ["cancelled"]
        self.jobs[parts[2]]["status"] = "cancelled"
        return answer(200, self.jobs[parts[2]])

    def _delete(self, asked: Asked, parts: list[str]) -> Answer:
        del self.jobs[parts[2]]
        return Answer(204)

    def _status(self, asked: Asked, parts: list[str]) -> Answer:
        return answer(200, {"workers": self.workers, "queue": {"depth": 0}})

    def _readyz(self, asked: Asked, parts: list[str]) -> Answer:
        return answer(200, {}) if self.is_ready else problem(503, "not_ready", "no worker")

    def transport(self) -> httpx2.MockTransport:
        return httpx2.MockTransport(self._over_httpx2)

    def _over_httpx2(self, request: httpx2.Request) -> httpx2.Response:
        asked = _asked(
            request.method, str(request.url.raw_path, "ascii"), request.headers, request.content
        )
        told = self.handle(asked)
        return httpx2.Response(told.status, content=told.body, headers=told.headers)


@contextmanager
def served(api: FakeApi, port: int = 0) -> Iterator[str]:
    """The fake behind a real socket; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told = api.handle(_asked(self.command, self.path, self.headers, body))
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        do_GET = do_POST = do_DELETE = do

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _asked(method: str, target: str, headers: Any, body: bytes) -> Asked:
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    lowered = {name.lower(): value for name, value in headers.items()}
    return Asked(method, parts.path, query, lowered, json.loads(body) if body else None)
