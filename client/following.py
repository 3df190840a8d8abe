"""Follows one job on a terminal: its progress, the audio it ends in, and what a Ctrl-C means.

Knows terminals and what to say; how jobs are asked for is the client's business.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console

from client.api_error import SpeechApiError, from_job
from client.exits import INTERRUPTED, complain
from client.job_display import NO_WORKER, JobDisplay, notices, summary
from client.speech_client import SpeechClient
from shared.jobs import JobStatus


def follow(client: SpeechClient, job_id: str) -> dict[str, Any]:
    """The job once it has ended; until then its progress is shown."""
    console = Console(stderr=True, force_terminal=None if sys.stdout.isatty() else False)
    with JobDisplay(console) as display:
        return client.wait(job_id, _Onlooker(client, display).show)


def deliver(client: SpeechClient, job: dict[str, Any], output: Path | None) -> None:
    """The file and what to know about it, or the reason why there is none."""
    if job["status"] != JobStatus.COMPLETED:
        raise from_job(job)
    if output is not None:
        client.download(job["id"], output)
    print(summary(job, str(output or job["id"])))
    for notice in notices(job):
        print(notice)


def cancel_and_exit(client: SpeechClient, job_id: str) -> NoReturn:
    try:
        client.cancel(job_id)
        complain(f"cancelled {job_id}")
    except SpeechApiError as error:
        complain(f"{job_id} may still be running: {error}")
    raise typer.Exit(INTERRUPTED)


def leave_and_exit(job_id: str) -> NoReturn:
    complain(f"{job_id} goes on; `echoforge cancel {job_id}` ends it")
    raise typer.Exit(INTERRUPTED)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Only for the main thread."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Onlooker:
    """Shows the job, and asks once who would speak it when nobody can tell when it starts."""

    def __init__(self, client: SpeechClient, display: JobDisplay) -> None:
        self._client = client
        self._display = display
        self._has_asked = False

    def show(self, job: dict[str, Any]) -> None:
        self._display.show(job)
        if not self._has_asked and _is_without_start(job):
            self._has_asked = True
            if self._is_without_worker():
                self._display.tell(NO_WORKER)

    def _is_without_worker(self) -> bool:
        try:
            return not self._client.status().get("workers")
        except SpeechApiError:  # the next poll meets the same trouble, and tells it
            return False


def _is_without_start(job: dict[str, Any]) -> bool:
    is_waiting = job["status"] == JobStatus.QUEUED
    return is_waiting and (job.get("queue") or {}).get("estimated_start_s") is None
