"""Log lines of every process come out in one shape."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from shared.logs import configure_logging
from shared.settings import Settings


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_json_lines_carry_fields_and_go_to_stderr(capsys):
    configure_logging(Settings(log_format="json"))
    structlog.get_logger("worker").info("claimed", job="job_1")
    said = capsys.readouterr()
    line = json.loads(said.err)
    assert said.out == ""
    assert (line["event"], line["job"], line["level"]) == ("claimed", "job_1", "info")
    assert line["logger"] == "worker"
    assert line["timestamp"].endswith("Z")


def test_the_standard_librarys_loggers_have_the_same_shape(capsys):
    configure_logging(Settings(log_format="json"))
    logging.getLogger("celery").warning("lost %s", "Redis")
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"]) == ("lost Redis", "warning")


def test_an_error_keeps_its_trace_in_both_formats(capsys):
    for log_format in ("json", "console"):
        configure_logging(Settings(log_format=log_format))
        try:
            raise ValueError("broken")
        except ValueError:
            structlog.get_logger().exception("failed")
        assert "ValueError: broken" in capsys.readouterr().err


def test_lines_below_the_level_are_dropped(capsys):
    configure_logging(Settings(log_level="WARNING"))
    structlog.get_logger().info("small talk")
    assert capsys.readouterr().err == ""


def test_urls_that_libraries_log_are_kept_out(capsys):
    configure_logging(Settings(log_level="DEBUG"))
    logging.getLogger("httpx2").info("GET https://bucket/audio?signature=secret")
    assert capsys.readouterr().err == ""


def test_a_console_line_into_a_pipe_has_no_colour(capsys):
    configure_logging(Settings())
    structlog.get_logger().info("ready", port=8000)
    said = capsys.readouterr().err
    assert "ready" in said
    assert "\x1b" not in said
