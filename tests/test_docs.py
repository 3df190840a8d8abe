"""The documents say what is there: settings and defaults, files, make targets, commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import typer.main

from benchmarks.table import BEGIN, END, table
from client.cli import app
from shared.settings import Settings

ROOT = Path(__file__).parents[1]
DOCS = [
    path
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md")))
    if path.exists()
]
SETTING = re.compile(r"^#+ `(ECHOFORGE_\w+)`\nDefault: `(.+)`$", re.MULTILINE)
HEADING = re.compile(r"^#+ .*(ECHOFORGE_\w+)", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
SOURCE = re.compile(r"\b(?:api|worker|shared|client|scripts|benchmarks|tests|docs)/[\w/]+\.\w+")


def code(document: Path) -> str:
    """What stands between backticks: fenced blocks (diagrams excepted), then inline code."""
    text = document.read_text(encoding="utf-8")
    fenced = [body for kind, body in FENCE.findall(text) if kind != "mermaid"]
    return "\n".join([*fenced, *INLINE.findall(FENCE.sub("", text))])


def named(pattern: str) -> set[tuple[str, str]]:
    """(document, first group) of every match in the documents' code."""
    return {(doc.name, name) for doc in DOCS for name in re.findall(pattern, code(doc))}


def test_every_setting_has_a_heading_with_its_default_and_no_other_has() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    told = SETTING.findall(text)
    assert [name for name, _ in told] == HEADING.findall(text), "a heading lacks its default"
    assert len(told) == len(dict(told)), "a setting is told of twice"
    fields = Settings.model_fields.items()
    assert dict(told) == {f"ECHOFORGE_{name.upper()}": str(f.default) for name, f in fields}


def test_no_document_names_a_setting_that_does_not_exist() -> None:
    known = {f"ECHOFORGE_{name.upper()}" for name in Settings.model_fields} | {"ECHOFORGE_URL"}
    found = named(r"\b(ECHOFORGE_[A-Z_]+)\b")
    assert [(doc, name) for doc, name in found if name not in known] == []


def test_relative_links_lead_to_something() -> None:
    links = [(doc, link) for doc in DOCS for link in LINK.findall(doc.read_text(encoding="utf-8"))]
    local = [(doc, link) for doc, link in links if not re.match(r"[a-z]+:|#", link)]
    assert local, "no link was found; is the pattern right?"
    broken = [
        f"{doc.relative_to(ROOT)}: {link}"
        for doc, link in local
        if not (doc.parent / link.partition("#")[0]).exists()
    ]
    assert broken == []


def test_the_readmes_table_is_made_from_the_latest_measurements() -> None:
    latest = sorted((ROOT / "benchmarks" / "results").glob("*-csm-1b.json"))[-1]
    made = table(json.loads(latest.read_text(encoding="utf-8")))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{BEGIN}\n{made}\n{END}" in readme


def test_every_file_named_exists() -> None:
    files = {(doc.name, name) for doc in DOCS for name in SOURCE.findall(code(doc))}
    assert files, "no file was found; is the pattern right?"
    assert [(doc, name) for doc, name in files if not (ROOT / name).exists()] == []


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    found = named(r"(?m)^(?:\$ )?make ([a-z]+)\b")
    assert found, "no target was found; is the pattern right?"
    assert [(doc, name) for doc, name in found if name not in targets] == []


def test_every_command_named_exists() -> None:
    commands = typer.main.get_group(app).commands
    found = named(r"(?<![\w/.-])echoforge ([a-z][\w-]*)")
    assert found, "no command was found; is the pattern right?"
    assert [(doc, name) for doc, name in found if name not in commands] == []
