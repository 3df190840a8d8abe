"""What a person reads of a job."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from client.job_display import (
    JobDisplay,
    describe,
    jobs_table,
    notices,
    percent,
    summary,
    worker_notices,
)

SPEAKING = {"status": "in_progress", "progress": {"percent": 40, "audio_seconds": 1.26, "eta_s": 3}}


@pytest.mark.parametrize(
    ("job", "line"),
    [
        ({"status": "queued"}, "queued"),
        ({"status": "queued", "queue": {"position": 3}}, "queued, position 3"),
        (SPEAKING, "speaking, 1.3 s of audio, about 3 s left"),
        ({"status": "in_progress", "progress": None}, "speaking, 0.0 s of audio"),
        ({**SPEAKING, "cancel_requested_at": "now"}, "speaking, 1.3 s of audio, being cancelled"),
        ({"status": "expired"}, "expired"),
    ],
)
def test_where_a_job_is_now_is_one_line(job, line):
    assert describe(job) == line


def test_only_a_completed_job_is_at_100_percent():
    assert percent({"status": "queued"}) == 0
    assert percent(SPEAKING) == 40
    assert percent({"status": "completed", "progress": {"percent": 97}}) == 100


def test_a_summary_leaves_out_what_is_not_known():
    job = {"output": {"duration_s": 1.5, "seed": 7}, "metrics": None}
    assert (
        summary(job, "a.wav") == "a.wav: 1.50 s of audio · unknown model on unknown device · seed 7"
    )


def test_the_workers_notices_are_told_once_each():
    tiny = {"model": "csm-tiny", "model_notice": "untrained"}
    cpu = {"model": "csm-1b", "device_fallback": "CUDA failed; on the CPU"}
    assert worker_notices({"workers": [tiny, tiny, cpu]}) == [
        "untrained",
        "CUDA failed; on the CPU",
    ]


def test_a_jobs_notices_are_its_own():
    job = {"model_notice": "untrained", "device_fallback": "CUDA failed; on the CPU"}
    assert notices(job) == ["note: untrained", "note: CUDA failed; on the CPU"]


def test_a_job_of_a_server_that_knows_no_notices_has_none():
    assert notices({"model": "csm-tiny", "model_notice": None}) == []
    assert notices({"model": "csm-tiny"}) == []


def test_speech_that_was_cut_at_its_limit_is_told():
    assert "length limit" in notices({"output": {"finish_reason": "length"}})[0]


def test_on_a_terminal_there_is_a_bar():
    screen = io.StringIO()
    with JobDisplay(Console(file=screen, force_terminal=True, width=120)) as display:
        display.show(SPEAKING)
    assert "speaking, 1.3 s of audio" in screen.getvalue()
    assert "40 %" in screen.getvalue()


def test_into_a_pipe_go_plain_lines_as_they_are():
    pipe = io.StringIO()
    with JobDisplay(Console(file=pipe, width=20)) as display:
        display.show(SPEAKING)
        display.show(SPEAKING)
    assert pipe.getvalue() == "speaking, 1.3 s of audio, about 3 s left\n"


JOB = {
    "id": "job_" + "0" * 32,
    "status": "in_progress",
    "created_at": "2026-11-22T19:00:00.120Z",
    "model": "csm-1b",
    "metrics": {"audio_s": 123.4, "rtf": 0.64},
}


def drawn(width: int) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width).print(jobs_table([JOB], width), soft_wrap=True)
    return screen.getvalue()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 160])
def test_a_jobs_id_is_never_cut(width):
    assert JOB["id"] in drawn(width)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_list_of_jobs_stays_within_its_terminal_and_leaves_out_what_matters_least(width):
    lines = drawn(width).splitlines()
    assert len(lines) == 2
    assert max(map(len, map(str.rstrip, lines))) <= width
    assert "in_progress" in lines[1]


def test_a_wide_list_of_jobs_tells_everything_and_that_its_times_are_utc():
    head, row = drawn(160).splitlines()
    assert "created (UTC)" in head
    assert row.split() == [
        JOB["id"],
        "in_progress",
        "2026-11-22",
        "19:00:00",
        "0",
        "123.40",
        "s",
        "0.64",
        "csm-1b",
    ]
