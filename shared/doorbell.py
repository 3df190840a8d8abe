"""The Celery app, and ringing. A message says "there is work" and nothing else: it names no job.

Knows Celery's settings; knows nothing about jobs. A lost message therefore loses nothing: upkeep
compares waiting jobs with waiting messages and rings again.
"""

from __future__ import annotations

import logging

import kombu.pools
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from shared.keys import CELERY_PREFIX
from shared.settings import Settings

ANSWER = "echoforge.answer"  # the task a worker registers

# A client waits while its doorbell is rung: one attempt, and two seconds for it.
FAIL_FAST = {"max_retries": 0, "socket_timeout": 2}

log = logging.getLogger(__name__)


def make_celery(settings: Settings) -> Celery:
    """Opens nothing yet."""
    app = Celery("echoforge", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        result_backend=None,  # the job record is the result; a second copy could disagree
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],  # never pickle: whoever writes to Redis would run code here
        result_accept_content=["json"],  # the same, for results that nobody sends
        task_acks_late=False,  # the lease is the acknowledgement; a redelivered message shares its
        # tag with the running one, whose entry a late acknowledgement would then remove
        worker_prefetch_multiplier=1,  # the default of 4 hoards messages that others could answer
        worker_disable_prefetch=True,  # waiting messages stay in Redis, where they are counted
        # Cancelling needs `terminate`, which threads lack; Celery 6 will default to True.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,  # Redis may come up after the worker
        broker_connection_max_retries=None,  # the default gives up after 100
        broker_channel_error_retry=True,  # Redis at its memory limit would end the worker
        worker_enable_remote_control=False,  # no stranger's orders, no pub/sub to keep alive
        worker_send_task_events=False,  # the store knows what runs; events would be a second truth
        task_send_sent_event=False,  # the same
        task_publish_retry=False,  # fail fast: upkeep rings later
        broker_transport_options={
            "global_keyprefix": CELERY_PREFIX,  # the store counts messages under this prefix
            "visibility_timeout": 3600,  # of no weight: messages are acknowledged on arrival
            "socket_timeout": 10,  # without these four a half-open connection hangs for ever;
            "socket_connect_timeout": 2,  # with them the worker is back within 15 s
            "socket_keepalive": True,
            "health_check_interval": 10,
            "unacked_restore_interval": 5,  # the default looks only every 100 s
            "unacked_restore_throttle": 1,
        },
    )
    return app


class Doorbell:
    """Safe to share between threads."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        connection = app.connection_for_write(transport_options=FAIL_FAST)
        self._producers = kombu.pools.producers[connection]

    def ring(self, queue: str, times: int = 1) -> bool:
        """False when Redis cannot be reached: nothing is lost, upkeep rings later."""
        try:
            with self._producers.acquire(block=True) as producer:
                for _ in range(times):
                    self._app.send_task(ANSWER, queue=queue, producer=producer)
        except (OperationalError, redis.RedisError) as error:
            log.warning("doorbell %s not rung: %s", queue, type(error).__name__)
            return False
        return True
