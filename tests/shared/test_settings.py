"""The environment is read under one prefix, and `.env.example` tells the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.settings import Settings, settings_problem

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


def problem_of(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(f"ECHOFORGE_{name}", value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert "s3cret" not in str(refused.value)
    return settings_problem(refused.value)


def test_a_wrong_setting_is_told_in_one_line_without_its_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = problem_of(monkeypatch, REDIS_URL="reds://:s3cret@h/0")
    assert problem == "ECHOFORGE_REDIS_URL: must begin with one of redis, rediss, redis+socket"


def test_several_wrong_settings_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(monkeypatch, SLOTS="0", DEVICE="s3cret")
    assert "ECHOFORGE_SLOTS: " in problem
    assert "; ECHOFORGE_DEVICE: " in f"; {problem}"
    assert "s3cret" not in problem
    assert "\n" not in problem


def test_settings_that_do_not_fit_together_are_told_without_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = problem_of(monkeypatch, RENEW_S="20")
    assert problem == "renew_s must be at most half of lease_s, or leases run out"


@pytest.mark.parametrize(
    "url",
    ["redis://h:99999/0", "redis://h:s3cret/0", "redis://:a/s3cret@h:6379/0", "redis://[::1/0"],
)
def test_a_url_without_a_readable_port_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    problem = problem_of(monkeypatch, REDIS_URL=url)
    assert problem.startswith("ECHOFORGE_REDIS_URL: has no readable host and port")
    assert "s3cret" not in problem


@pytest.mark.parametrize(
    "url",
    ["redis://h", "rediss://u:p@h:1/2", "redis+socket:///run/x.sock", "redis://[::1]:6379/0"],
)
def test_a_url_that_can_be_read_is_accepted(url: str) -> None:
    assert Settings(redis_url=url).redis_url == url
