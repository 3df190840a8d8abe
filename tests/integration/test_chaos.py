from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.chaos import Chaos
from tests.integration.service import Service

pytestmark = pytest.mark.integration


def test_nothing_is_lost_ended_twice_or_torn_while_workers_and_redis_are_killed(
    make_service: Callable[..., Service],
) -> None:
    service = make_service(max_queued=200)
    chaos = Chaos(service, 150, num_workers=2, kill_s=4, redis_kills=2, chance=random.Random(7))
    assert chaos.run() == []
    assert chaos.counts["workers killed"] >= 1
    assert chaos.counts["redis killed"] == 2
    assert chaos.counts["completed"] + chaos.counts["cancelled"] == 150
