"""The environment is read under one prefix, and `.env.example` tells the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.settings import Settings

EXAMPLE = Path(__file__).parents[2] / ".env.example"


def documented() -> str:
    """What `.env.example` must say: every setting, its meaning, its default."""
    blocks = [
        f"# {field.description}\nECHOFORGE_{name.upper()}={field.default}\n"
        for name, field in Settings.model_fields.items()
    ]
    head = "# Every setting with its default. Copy what you change; the rest may be left out.\n\n"
    return head + "\n".join(blocks)


def test_the_example_file_equals_the_settings() -> None:
    assert EXAMPLE.read_text() == documented()


def test_the_example_file_sets_nothing_but_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in EXAMPLE.read_text().splitlines():
        if line.startswith("ECHOFORGE_"):
            monkeypatch.setenv(*line.split("=", 1))
    given = Settings()
    monkeypatch.undo()
    assert given == Settings()


def test_variables_carry_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOFORGE_PORT", "9")
    monkeypatch.setenv("PORT", "10")
    assert Settings().port == 9


def test_a_wrong_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOFORGE_SLOTS", "0")
    with pytest.raises(ValidationError, match="slots"):
        Settings()


def test_audio_lies_in_the_data_directory() -> None:
    assert Settings(data_dir=Path("~/x")).audio_dir == Path.home() / "x" / "audio"
