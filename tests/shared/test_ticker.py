from __future__ import annotations

import logging

import pytest

from shared.errors import StoreUnavailable
from shared.ticker import Ticker
from tests.waiting import until


class Ticks:
    """Fails in turn with each error, then works."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.num_good = list(errors), 0

    def __call__(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.num_good += 1


def test_a_ticker_outlives_expected_and_unexpected_failures(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ticks = Ticks(StoreUnavailable("away"), OSError("no disk"), KeyError("a bug"))
    ticker = Ticker("upkeep", 0.01, ticks)
    with caplog.at_level(logging.WARNING):
        ticker.start()
        until(lambda: ticks.num_good > 2)
        ticker.stop()
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "WARNING", "ERROR"]


def test_a_stopped_ticker_ticks_no_more() -> None:
    ticks = Ticks()
    ticker = Ticker("upkeep", 0.01, ticks)
    ticker.start()
    until(lambda: ticks.num_good)
    ticker.stop()
    before = ticks.num_good
    assert not ticker._thread.is_alive()
    assert ticks.num_good == before
