"""How a job looks on a terminal: a bar while it runs (lines into a pipe), a summary at its end.

Knows the job's JSON and the status's; sends nothing.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


class JobDisplay:
    """A context manager to hand to `SpeechClient.wait` as `on_progress=display.show`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_line = ""
        self._bar: Progress | None = _bar(console) if console.is_terminal else None
        self._task = self._bar.add_task("submitted", total=100) if self._bar else None

    def __enter__(self) -> JobDisplay:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, job: dict[str, Any]) -> None:
        line = describe(job)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=line, completed=percent(job))
        elif line != self._last_line:
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)
        self._last_line = line


def percent(job: dict[str, Any]) -> int:
    if job["status"] == "completed":
        return 100
    return int((job.get("progress") or {}).get("percent") or 0)


def describe(job: dict[str, Any]) -> str:
    """One line: where the job is now."""
    status = str(job["status"])
    if status == "queued":
        return _queued_line(job.get("queue") or {})
    if status == "in_progress":
        return _speaking_line(job)
    return status


def summary(job: dict[str, Any], path: str) -> str:
    """What came out: the file, its length, how fast it was made, and by what."""
    output, metrics = job["output"], job.get("metrics") or {}
    parts = [f"{output['duration_s']:.2f} s of audio"]
    if metrics.get("rtf") is not None:
        parts.append(f"RTF {metrics['rtf']:.2f}")
    parts.append(
        f"{job.get('model') or 'unknown model'} on {job.get('device') or 'unknown device'}"
    )
    parts.append(f"seed {output['seed']}")
    return f"{path}: {' · '.join(parts)}"


def notices(job: dict[str, Any], status: dict[str, Any]) -> list[str]:
    """What a hearer must know: an untrained model, another device than asked for, a cut."""
    told = worker_notices(status, job.get("model"))
    if job.get("device_fallback"):
        told.append(job["device_fallback"])
    if (job.get("output") or {}).get("finish_reason") == "length":
        told.append("the speech reached its length limit; raise --max-audio-seconds for more")
    return [f"note: {notice}" for notice in dict.fromkeys(told)]


def worker_notices(status: dict[str, Any], model: str | None = None) -> list[str]:
    """Each notice of the workers once; only of those with `model`, where it is given."""
    workers = [w for w in status.get("workers") or [] if model in {None, w.get("model")}]
    told = [w.get(kind) for w in workers for kind in ("model_notice", "device_fallback")]
    return list(dict.fromkeys(notice for notice in told if notice))


def job_lines(job: dict[str, Any]) -> list[str]:
    lines = [f"{job['id']}: {describe(job)}"]
    if job["status"] == "completed" and job.get("output"):
        lines.append(summary(job, job["result_url"]))
    if job.get("error"):
        lines.append(job["error"]["message"])
    return lines


def server_lines(status: dict[str, Any]) -> list[str]:
    queue: dict[str, Any] = status.get("queue") or {}
    waiting = ", ".join(f"{name} {value}" for name, value in queue.items() if value is not None)
    lines = [f"queue: {waiting or 'unknown'}"]
    for worker in status.get("workers") or []:
        lines.append(f"worker {worker.get('id')}: {worker.get('model')} on {worker.get('device')}")
    if not status.get("workers"):
        lines.append("no worker is ready; jobs wait until one is")
    return lines + [f"note: {notice}" for notice in worker_notices(status)]


def jobs_table(jobs: list[dict[str, Any]]) -> Table:
    table = Table("id", "status", "%", "audio", "RTF", "model", "created", box=None, pad_edge=False)
    for job in jobs:
        metrics = job.get("metrics") or {}
        table.add_row(
            job["id"],
            job["status"],
            str(percent(job)),
            _number(metrics.get("audio_s"), " s"),
            _number(metrics.get("rtf")),
            job.get("model") or "-",
            (job.get("created_at") or "-")[:19].replace("T", " "),
        )
    return table


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
    )


def _queued_line(queue: dict[str, Any]) -> str:
    position, start_s = queue.get("position"), queue.get("estimated_start_s")
    line = "queued" if position is None else f"queued, position {position}"
    return line if start_s is None else f"{line}, starts in about {start_s:.0f} s"


def _speaking_line(job: dict[str, Any]) -> str:
    progress = job.get("progress") or {}
    line = f"speaking, {progress.get('audio_seconds') or 0:.1f} s of audio"
    if job.get("cancel_requested_at"):
        return f"{line}, being cancelled"
    eta_s = progress.get("eta_s")
    return line if eta_s is None else f"{line}, about {eta_s:.0f} s left"


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.2f}{unit}"
