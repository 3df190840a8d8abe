from __future__ import annotations

import json
from pathlib import Path

import pytest

from worker.engine.errors import ModelNotFound
from worker.engine.search import find_checkpoint


def a_model(path: Path, kind: str = "csm", weights: bool = True) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": kind}))
    if weights:
        (path / "model.safetensors").touch()
    return path


def a_cache_entry(cache: Path, entry: str, *commits: str, main: str) -> list[Path]:
    (cache / entry / "refs").mkdir(parents=True)
    (cache / entry / "refs" / "main").write_text(main + "\n")
    return [a_model(cache / entry / "snapshots" / commit) for commit in commits]


def test_the_model_directory_comes_first(tmp_path: Path) -> None:
    model = a_model(tmp_path / "model")
    a_cache_entry(tmp_path / "hub", "models--sesame--csm-1b", "aaa", main="aaa")
    assert find_checkpoint(model, tmp_path / "hub").path == model


def test_then_the_snapshot_that_refs_main_names_not_the_last_sorted(tmp_path: Path) -> None:
    first, _ = a_cache_entry(tmp_path / "hub", "models--sesame--csm-1b", "aaa", "zzz", main="aaa")
    assert find_checkpoint(tmp_path / "none", tmp_path / "hub").path == first


def test_then_any_csm_in_the_cache_but_nothing_else(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    a_model(hub / "models--meta--llama" / "snapshots" / "x", kind="llama")
    (csm,) = a_cache_entry(hub, "models--unsloth--csm-1b", "bbb", main="bbb")
    found = find_checkpoint(tmp_path / "none", hub)
    assert found.path == csm
    assert "unsloth/csm-1b is a CSM" in found.why
    assert found.name == "unsloth/csm-1b"  # never passed off as csm-1b


def test_a_config_without_weights_is_passed_over(tmp_path: Path) -> None:
    a_model(tmp_path / "model", weights=False)
    with pytest.raises(ModelNotFound):
        find_checkpoint(tmp_path / "model", tmp_path / "hub")


def test_nothing_found_says_where_it_looked_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as error:
        find_checkpoint(tmp_path / "model", tmp_path / "hub")
    text = str(error.value)
    for part in (str(tmp_path / "model"), "models--sesame--csm-1b", "echoforge download"):
        assert part in text
