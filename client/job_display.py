"""How a job looks on a terminal: a bar while it runs (lines into a pipe), a summary at its end.

Knows the job's JSON and the status's; sends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

NO_WORKER = "no worker is ready; jobs wait until one is"
# Where there is no room for all, the last are left out first.
COLUMNS = ("id", "status", "created (UTC)", "%", "audio", "RTF", "model")
ID_CHARS = 36
NOTICES = ("model_notice", "device_fallback")  # of a job as of a worker


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
            self.tell(line)
        self._last_line = line

    def tell(self, line: str) -> None:
        """A line that stays, above the bar where there is one."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


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


def notices(job: dict[str, Any]) -> list[str]:
    """What a hearer must know: an untrained model, another device than asked for, a cut."""
    told = [job[kind] for kind in NOTICES if job.get(kind)]
    if (job.get("output") or {}).get("finish_reason") == "length":
        told.append("the speech reached its length limit; raise --max-audio-seconds for more")
    return [f"note: {notice}" for notice in told]


def worker_notices(status: dict[str, Any]) -> list[str]:
    """Each notice of the workers once."""
    told = [worker.get(kind) for worker in status.get("workers") or [] for kind in NOTICES]
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
        lines.append(NO_WORKER)
    return lines + [f"note: {notice}" for notice in worker_notices(status)]


def jobs_table(jobs: list[dict[str, Any]], width: int) -> Table:
    """Ids are never cut: on a narrow terminal the columns that matter least are left out."""
    rows = [COLUMNS, *map(_cells, jobs)]
    num_shown = _num_fitting([max(map(len, column)) for column in zip(*rows, strict=True)], width)
    id_column = Column(COLUMNS[0], min_width=ID_CHARS, no_wrap=True, overflow="ignore")
    table = Table(id_column, *COLUMNS[1:num_shown], box=None, pad_edge=False)
    for row in rows[1:]:
        table.add_row(*row[:num_shown])
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


def _cells(job: dict[str, Any]) -> tuple[str, ...]:
    """One for each of COLUMNS."""
    metrics = job.get("metrics") or {}
    return (
        job["id"],
        job["status"],
        (job.get("created_at") or "-")[:19].replace("T", " "),
        str(percent(job)),
        _number(metrics.get("audio_s"), " s"),
        _number(metrics.get("rtf")),
        job.get("model") or "-",
    )


def _num_fitting(widths: Sequence[int], width: int) -> int:
    """How many of the columns, from the left, stand beside each other with two spaces between."""
    ends = accumulate(column + 2 for column in widths)
    return max(1, sum(end - 2 <= width for end in ends))


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.2f}{unit}"
