"""What can be shown of CUDA graphs without a card: a frame waits for nothing, breaks nowhere, and
a recording of its operations, replayed over the same buffers, says the same."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from worker.engine.capture import Step
from worker.engine.checkpoint import Checkpoint
from worker.engine.prompt import Prompt
from worker.engine.sampling import Sampling
from worker.engine.scheduler import Scheduler, Turn
from worker.engine.torch_runner import TorchRunner, torch_model

SYNCS = {"aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select"}


class Recording:
    """Stands in for CUDA graphs: keeps the operations of one run, and runs exactly those again.

    As in a CUDA graph, whatever the step took from the host is frozen at capture.
    """

    def __init__(self) -> None:
        self.captured: list[torch.fx.GraphModule] = []

    def __call__(self, step: Step) -> Step:
        with torch.inference_mode(False), torch.no_grad():
            graph = make_fx(lambda _: step())(torch.zeros(1))
        self.captured.append(graph)

        def replay() -> None:
            with torch.no_grad():
                graph(torch.zeros(1))

        return replay


class SyncCounter(TorchDispatchMode):
    """Counts the operations that would make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.num_operations = 0
        self.syncs: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_operations += 1
        name = str(func.overloadpacket)
        if name in SYNCS:
            self.syncs.append(name)
        return func(*args, **(kwargs or {}))


def a_runner(tiny: Checkpoint, capture: Recording | None = None) -> TorchRunner:
    model = torch_model(tiny.spec, tiny.weights)
    return TorchRunner(model, num_slots=3, max_positions=300, num_codes=256, capture=capture)


def spoken(runner: TorchRunner, num_frames: int = 12) -> list[np.ndarray]:
    """Three utterances that join one after the other; the longest crosses into the next span."""
    scheduler = Scheduler(3, 64, time.monotonic)
    said: dict[Turn, list[np.ndarray]] = {}
    for index, rows in enumerate((250, 20, 90)):
        turn = Turn(rows, num_frames)
        said[turn] = []
        scheduler.add(turn)
        turn.arrival = index
    settings = [Sampling(0.9, 50, 1), Sampling(0.0), Sampling(1.2, 200, 3)]
    while not scheduler.is_idle:
        batch = scheduler.schedule()
        for turn in batch.admitted:
            text = np.arange(turn.prompt_rows) % 250
            prompt = Prompt(text, np.zeros((len(text), 16), np.int64), 0)
            runner.start(turn, prompt, settings[turn.arrival])
        codes = runner.run(batch)
        for turn, frame in codes.items():
            said[turn].append(frame.copy())
        for turn, _ in scheduler.commit(batch, dict.fromkeys(codes, False)):
            runner.stop(turn)
    return [np.array(frames) for frames in said.values()]


def test_a_recorded_frame_replays_to_exactly_what_the_eager_frame_says(tiny: Checkpoint) -> None:
    capture = Recording()
    recorded = a_runner(tiny, capture)
    recorded.warm_up()
    usual = len(capture.captured)
    assert usual == 2  # spans of 256 and of all 300 positions
    heard = spoken(recorded)
    assert len(capture.captured) == usual + 2  # top-k 200 needed another bound, at two spans
    for ours, expected in zip(heard, spoken(a_runner(tiny)), strict=True):
        assert np.array_equal(ours, expected)
    assert len(np.unique(np.concatenate(heard))) > 50


def test_a_frame_never_makes_the_host_wait(tiny: Checkpoint) -> None:
    runner = a_runner(tiny)
    with SyncCounter() as counter:
        runner.compute_frame(span=256, limit=64)
    assert counter.num_operations > 1000
    assert counter.syncs == []


def test_the_counter_would_see_a_wait() -> None:
    with SyncCounter() as counter:
        torch.ones(3).sum().item()
    assert counter.syncs == ["aten._local_scalar_dense"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_frame_compiles_without_a_break(tiny: Checkpoint) -> None:
    """`fullgraph` raises at the first thing that cannot be traced into one graph."""
    runner = a_runner(tiny)
    compiled = torch.compile(runner.compute_frame, fullgraph=True, backend="eager")
    compiled(64, 64)
    assert runner._codes.any()
