"""Which model a worker serves: never csm-tiny unless by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.settings import Settings
from worker.describe import describe
from worker.engine.errors import ModelNotFound
from worker.model import find_model, load_model, model_notice


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("worker.model.HF_HUB_CACHE", str(tmp_path / "hub"))
    return Settings(data_dir=tmp_path / "data", model_dir=tmp_path / "csm-1b")


def with_model(settings: Settings, model: str) -> Settings:
    return settings.model_copy(update={"model": model})


def test_csm_tiny_is_made_once_and_the_same_each_time(settings: Settings, tmp_path: Path) -> None:
    first = find_model(with_model(settings, "csm-tiny")).path
    other = settings.model_copy(update={"data_dir": tmp_path / "other", "model": "csm-tiny"})
    second = find_model(other).path
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    find_model(with_model(settings, "csm-tiny"))
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp


def test_csm_tiny_is_told_to_be_noise(settings: Settings) -> None:
    notice = model_notice(load_model(with_model(settings, "csm-tiny")))
    assert notice is not None
    assert "noise, not speech" in notice
    assert "echoforge download" in notice


def test_csm_1b_that_is_missing_is_never_replaced(settings: Settings) -> None:
    find_model(with_model(settings, "csm-tiny"))
    with pytest.raises(ModelNotFound, match="no CSM checkpoint found"):
        find_model(settings)


def test_csm_1b_is_taken_from_the_model_directory(settings: Settings, tiny_path: Path) -> None:
    shutil.copytree(tiny_path, settings.model_dir)
    found = find_model(settings)
    assert (found.path, found.why) == (settings.model_dir, "the model directory")
    assert load_model(settings).name == "csm-1b"


def test_describe_tells_the_model_and_why(settings: Settings, tiny_path: Path) -> None:
    told = describe(with_model(settings, str(tiny_path)))
    assert told["error"] is None
    assert told["model"]["name"] == "csm-tiny"
    assert told["model"]["is_trained"] is False
    missing = describe(settings)
    assert missing["model"] is None
    assert "echoforge download" in missing["error"]


def test_describe_is_one_json_object_on_stdout(tiny_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", "--describe"],
        capture_output=True,
        text=True,
        check=True,
        env={"ECHOFORGE_MODEL": str(tiny_path), "PATH": ""},
    )
    assert json.loads(done.stdout)["model"]["path"] == str(tiny_path)


def test_a_setting_that_is_no_setting_ends_the_worker_with_one_clear_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker"],
        capture_output=True,
        text=True,
        check=False,
        env={"ECHOFORGE_SLOTS": "many", "PATH": ""},
    )
    assert done.returncode == 78
    assert done.stderr.startswith("error: ECHOFORGE_SLOTS: ")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
