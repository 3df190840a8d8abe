"""Long polling: look at a job again and again until there is something to tell.

Knows when to stop looking; knows nothing about what is told.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from api.parts import Parts
from shared.jobs import Job

MAX_WAIT_S = 60
LOOK_EVERY_S = 0.25


async def wait_until(
    is_enough: Callable[[Job], bool], job_id: str, wait_s: float, parts: Parts, request: Request
) -> Job:
    """The job as soon as `is_enough`, else as it is after `wait_s`.

    Also ends when the client has gone, or the server is closing.
    """
    deadline = time.monotonic() + wait_s
    while True:
        job = await run_in_threadpool(parts.store.get, job_id)
        left_s = deadline - time.monotonic()
        if is_enough(job) or left_s <= 0 or parts.closing.is_set():
            return job
        if await request.is_disconnected():
            return job
        await asyncio.sleep(min(LOOK_EVERY_S, left_s))


def preferred_wait_s(prefer: str | None) -> int:
    """The `wait` of a Prefer header (RFC 7240), within our limit; 0 when there is none."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})", prefer or "", re.IGNORECASE)
    return min(int(found[1]), MAX_WAIT_S) if found else 0
