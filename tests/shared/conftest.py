"""A JobStore over both implementations of Redis, with a clock that tests turn."""

from __future__ import annotations

from collections.abc import Iterator

import fakeredis
import pytest
import redis

from shared.store import JobStore
from tests.samples import Clock
from tests.valkey import Valkey


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["fakeredis", "valkey"])
def client(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    if request.param == "fakeredis":
        yield fakeredis.FakeRedis(decode_responses=True)
        return
    valkey: Valkey = request.getfixturevalue("valkey")
    with valkey.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def store(client: redis.Redis, clock: Clock) -> JobStore:
    return JobStore(client, lease_s=15, max_queued=5, clock=clock, uptime_s=lambda: 1e9)
