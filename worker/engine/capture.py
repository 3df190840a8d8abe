"""A step of fixed shape over fixed buffers, recorded once and replayed: CUDA graphs.

A captured step must not wait for the device, and reads nothing from the host but its buffers.
Knows streams and graphs; knows no model.

It has not been run on hardware. What can be shown without is tested: no host sync, no graph break,
and that a recording of the step's operations, replayed, says the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

Step = Callable[[], None]
WARM_UPS = 3  # libraries choose kernels and take memory on first use, which a capture must not see


class Capture(Protocol):
    """Takes a step, may run it, and returns what repeats it."""

    def __call__(self, step: Step) -> Step: ...


class CudaCapture:
    """CUDA graphs that share one pool of memory, since only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        self._warm_up(step)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            step()
        replay: Step = graph.replay
        return replay

    def _warm_up(self, step: Step) -> None:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(side)
