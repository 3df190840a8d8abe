"""`scripts/demo.py`, where the service it starts does not do as it should."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SILENT = "import time; print('starting', flush=True); time.sleep(600)"


@pytest.fixture
def demo(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "START_S", 1.0)
    monkeypatch.chdir(tmp_path)

    def run(service: str, *options: str) -> int:
        monkeypatch.setattr(module, "ECHOFORGE", [sys.executable, "-c", service])
        monkeypatch.setattr(sys, "argv", ["demo.py", "Hello.", *options])
        return module.main()

    return run


def test_a_service_that_is_not_ready_in_time_is_one_line(demo, capfd):
    assert demo(SILENT) == 1
    ours = [line for line in capfd.readouterr().err.splitlines() if line.startswith("demo: ")]
    assert ours == ["demo: the service was not ready within 1 s; see its lines above"]


def test_a_service_that_ends_at_once_is_the_end_of_the_demo(demo):
    assert demo("raise SystemExit(1)") == 1


def test_an_output_directory_that_cannot_be_made_is_told(demo, tmp_path, capfd):
    (tmp_path / "file").touch()
    assert demo(SILENT, "-o", "file/out.wav") == 1
    assert capfd.readouterr().err == "demo: cannot make file (File exists)\n"
