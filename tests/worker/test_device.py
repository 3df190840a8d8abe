"""CUDA that will not have the engine, with the faults injected where the engine is built."""

from __future__ import annotations

import pytest
import torch

from worker.device import open_engine
from worker.engine.engine import Engine, EngineConfig
from worker.engine.errors import PrecisionUnavailable
from worker.precision import Asked


class FakeCard:
    """Builds a marker instead of an engine; raises what a card would."""

    def __init__(self, fits_slots: int = 99, fault: Exception | None = None) -> None:
        self.fits_slots, self.fault = fits_slots, fault
        self.built: list[EngineConfig] = []

    def build(self, config: EngineConfig) -> Engine:
        if config.device == "cuda":
            if self.fault:
                raise self.fault
            if config.num_slots > self.fits_slots:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.built.append(config)
        return object()  # type: ignore[return-value]


CONFIG = EngineConfig(num_slots=8)


def test_auto_takes_cuda_in_bf16_where_it_is() -> None:
    card = FakeCard()
    opened = open_engine(card.build, CONFIG, "auto", is_cuda_there=lambda: True)
    assert (opened.device, opened.fallback) == ("cuda:0", None)
    assert card.built[0].precision == "bf16"


def test_auto_takes_the_cpu_without_a_word_where_there_is_no_cuda() -> None:
    opened = open_engine(FakeCard().build, CONFIG, "auto", is_cuda_there=lambda: False)
    assert (opened.device, opened.fallback) == ("cpu", None)


def test_cuda_that_was_asked_for_and_is_missing_is_told() -> None:
    opened = open_engine(FakeCard().build, CONFIG, "cuda", is_cuda_there=lambda: False)
    assert opened.device == "cpu"
    assert opened.fallback is not None
    assert "not available" in opened.fallback


def test_too_little_memory_means_fewer_slots_and_is_told() -> None:
    card = FakeCard(fits_slots=3)
    opened = open_engine(card.build, CONFIG, "cuda", is_cuda_there=lambda: True)
    assert opened.device == "cuda:0"
    assert card.built[0].num_slots == 2
    assert opened.fallback == "2 of 8 slots fit into the device's memory"


def test_no_memory_even_for_one_slot_means_the_cpu() -> None:
    opened = open_engine(FakeCard(fits_slots=0).build, CONFIG, "auto", is_cuda_there=lambda: True)
    assert opened.device == "cpu"
    assert opened.fallback is not None
    assert "one slot" in opened.fallback


def test_a_card_that_fails_at_load_means_the_cpu_with_its_reason() -> None:
    card = FakeCard(fault=RuntimeError("no kernel image is available\nmore"))
    opened = open_engine(card.build, CONFIG, "auto", is_cuda_there=lambda: True)
    assert opened.device == "cpu"
    assert opened.fallback == (
        "CUDA failed (no kernel image is available); speaking on the CPU instead"
    )


@pytest.mark.parametrize("error", [ValueError("our bug")])
def test_a_bug_is_not_taken_for_a_card(error: Exception) -> None:
    with pytest.raises(ValueError, match="our bug"):
        open_engine(FakeCard(fault=error).build, CONFIG, "cuda", is_cuda_there=lambda: True)


@pytest.mark.parametrize(
    ("asked", "backend", "precision"),
    [
        ("auto", "openvino", "int8"),
        ("int4", "openvino", "int4"),
        ("fp32", "torch", "fp32"),
        ("bf16", "torch", "bf16"),
    ],
)
def test_the_cpu_speaks_in_the_precision_that_was_asked_for(
    asked: Asked, backend: str, precision: str
) -> None:
    card = FakeCard()
    open_engine(card.build, CONFIG, "cpu", asked)
    assert (card.built[0].backend, card.built[0].precision) == (backend, precision)


def test_a_precision_that_the_card_cannot_run_is_refused_and_not_replaced() -> None:
    card = FakeCard()
    with pytest.raises(PrecisionUnavailable, match="CPU only"):
        open_engine(card.build, CONFIG, "auto", "int8", is_cuda_there=lambda: True)
    assert card.built == []
    assert open_engine(card.build, CONFIG, "cuda", "int8", lambda: False).device == "cpu"
