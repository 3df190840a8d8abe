"""The API over fakeredis, with a server that a test can take away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fakeredis
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from shared.audio_store import AudioStore
from shared.settings import Settings
from shared.store import Claim, JobStore
from tests.samples import Clock, FakeDoorbell, an_output

LOOPBACK = "http://127.0.0.1"  # TestClient's own name for itself would not be answered
AUDIO = b"RIFF" + bytes(range(256)) * 40


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, max_body_bytes=64 * 1024)


@pytest.fixture
def redis_server() -> fakeredis.FakeServer:
    """`connected = False` takes Redis away."""
    return fakeredis.FakeServer()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(redis_server: fakeredis.FakeServer, clock: Clock) -> JobStore:
    client = fakeredis.FakeRedis(server=redis_server, decode_responses=True)
    return JobStore(client, max_queued=5, clock=clock, uptime_s=lambda: 1e9)


@pytest.fixture
def audio(settings: Settings) -> AudioStore:
    return AudioStore(settings.audio_dir)


@pytest.fixture
def doorbell() -> FakeDoorbell:
    return FakeDoorbell()


@pytest.fixture
def client(settings: Settings, store: JobStore, doorbell: FakeDoorbell) -> Iterator[TestClient]:
    app = create_app(settings, store, doorbell)
    with TestClient(app, LOOPBACK, follow_redirects=False) as client:
        yield client


@pytest.fixture
def claim(store: JobStore) -> Callable[[], Claim]:
    def claim() -> Claim:
        lease = store.claim("w1", "cpu", "csm-tiny")
        assert lease is not None
        return lease

    return claim


@pytest.fixture
def complete(store: JobStore, audio: AudioStore, claim: Callable[[], Claim]) -> Callable[[], Claim]:
    """Speaks the best waiting job, as a worker would."""

    def complete() -> Claim:
        lease = claim()
        file = audio.publish(lease.job_id, lease.token, "wav", AUDIO)
        output = an_output(lease, name=file.name, bytes=file.bytes, sha256=file.sha256)
        assert store.finish(lease, output=output)
        return lease

    return complete
