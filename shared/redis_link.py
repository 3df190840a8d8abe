"""The way to Redis: how a URL is opened, and what its errors mean to us.

Knows timeouts and error classes; knows no keys and no jobs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.errors import StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_S = 2.0
# Redis is there, but cannot take a write or an order now.
UNABLE = re.compile(r"\b(MISCONF|OOM|READONLY|LOADING|BUSY|MASTERDOWN|CLUSTERDOWN|NOREPLICAS)\b")
UNABLE_CLASSES = (redis.OutOfMemoryError, redis.ReadOnlyError)  # these lost their prefix on the way


def open_redis(url: str) -> redis.Redis:
    """Connects at the first command; a Redis that says nothing is given up after four seconds."""
    return redis.Redis.from_url(
        client_url(url),
        decode_responses=True,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        health_check_interval=10,
        retry=Retry(NoBackoff(), 0),  # `redis_call` repeats, where that is known to be safe
    )


def client_url(url: str) -> str:
    """A broker URL as redis-py spells it: kombu's `redis+socket:///path` is its `unix:///path`."""
    parts = urlsplit(url)
    if parts.scheme != "redis+socket":
        return url
    db = parse_qs(parts.query).get("virtual_host", ["0"])[0]
    return f"unix://{parts.path}?db={db.lstrip('/')}"


def redis_call(function: Callable[P, T]) -> Callable[P, T]:
    """The one place where Redis's errors become ours.

    A reply that was lost is asked for once more, so what writes must be safe to repeat.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return _twice(function, *args, **kwargs)
        except (redis.ConnectionError, redis.TimeoutError, redis.InvalidResponse) as error:
            raise StoreUnavailable("Redis does not answer; try again in a few seconds.") from error
        except redis.ResponseError as error:
            if not _is_unable(error):
                raise
            raise StoreUnavailable("Redis takes no orders now; try again later.") from error

    return call


def _twice(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return function(*args, **kwargs)
    except (redis.ConnectionError, redis.TimeoutError):
        return function(*args, **kwargs)


def _is_unable(error: redis.ResponseError) -> bool:
    return isinstance(error, UNABLE_CLASSES) or UNABLE.search(str(error)) is not None
