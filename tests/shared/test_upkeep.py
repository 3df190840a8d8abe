"""What a tick does: ring what is really missing, and delete audio past its time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import fakeredis
import pytest

from shared.audio_store import AudioStore
from shared.store import JobStore
from shared.upkeep import Upkeep
from tests.samples import Clock, FakeDoorbell, a_request, an_output


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())


@pytest.fixture
def store(clock: Clock) -> JobStore:
    client = fakeredis.FakeRedis(decode_responses=True)
    return JobStore(client, clock=clock, uptime_s=lambda: 1e9)


@pytest.fixture
def audio(tmp_path: Path) -> AudioStore:
    return AudioStore(tmp_path)


@pytest.fixture
def doorbell() -> FakeDoorbell:
    return FakeDoorbell()


@pytest.fixture
def upkeep(store: JobStore, doorbell: FakeDoorbell, audio: AudioStore, clock: Clock) -> Upkeep:
    return Upkeep(store, doorbell, audio, sweep_s=600.0, clock=clock)


def test_a_doorbell_is_rung_when_it_was_missing_twice(
    upkeep: Upkeep, store: JobStore, doorbell: FakeDoorbell
) -> None:
    store.submit(a_request())
    upkeep.tick()
    assert doorbell.rings == []  # its message may be on the way
    store.submit(a_request())
    upkeep.tick()
    assert doorbell.rings == [("echoforge.auto", 1)]


def test_the_jobs_of_a_silent_worker_are_rung_for(
    upkeep: Upkeep, store: JobStore, doorbell: FakeDoorbell, clock: Clock
) -> None:
    store.submit(a_request())
    store.claim("w1", "cpu", "m")
    clock.advance(16)
    upkeep.tick()
    upkeep.tick()
    assert doorbell.rings == [("echoforge.auto", 1)]


def test_expired_audio_is_deleted_and_the_record_says_so(
    upkeep: Upkeep, store: JobStore, audio: AudioStore, clock: Clock, tmp_path: Path
) -> None:
    store.submit(a_request(expires_in_s=60))
    lease = store.claim("w1", "cpu", "m")
    assert lease is not None
    file = audio.publish(lease.job_id, lease.token, "wav", b"RIFF")
    store.finish(lease, output=an_output(lease, name=file.name))
    upkeep.tick()
    assert (tmp_path / file.name).exists()
    clock.advance(601)
    upkeep.tick()
    assert not (tmp_path / file.name).exists()
    assert store.get(lease.job_id).audio_expired


def test_orphans_are_swept_and_named_files_are_not(
    upkeep: Upkeep, store: JobStore, audio: AudioStore, tmp_path: Path
) -> None:
    store.submit(a_request())
    lease = store.claim("w1", "cpu", "m")
    assert lease is not None
    named = audio.publish(lease.job_id, lease.token, "wav", b"RIFF")
    store.finish(lease, output=an_output(lease, name=named.name))
    orphan = audio.publish(lease.job_id, "0" * 32, "wav", b"RIFF")
    fresh = audio.publish(lease.job_id, "1" * 32, "wav", b"RIFF")
    for file in (named, orphan):
        os.utime(tmp_path / file.name, (1, 1))
    upkeep.sweep()
    assert {entry.name for entry in tmp_path.iterdir()} == {named.name, fresh.name}
