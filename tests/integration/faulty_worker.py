"""A worker that is killed at one point of a job: `python -m tests.integration.faulty_worker POINT`.

The real worker, with one method wrapped. SIGKILL, so that nothing can be tidied up.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from shared.audio_store import AudioStore
from shared.store import JobStore
from worker.__main__ import main
from worker.engine.torch_runner import TorchRunner
from worker.engine.utterance import Handle

Method = Callable[..., Any]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(method: Method) -> Method:
    def wrapped(*_: Any, **__: Any) -> None:
        die()

    return wrapped


def after(method: Method) -> Method:
    """After the first call that did something."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        if result is not None and result is not False:
            die()
        return result

    return wrapped


def at_third_frame(method: Method) -> Method:
    def wrapped(self: Handle, codes: Any) -> None:
        method(self, codes)
        if self.frames_done == 3:
            die()

    return wrapped


def breaking(error: Exception) -> Callable[[Method], Method]:
    """Works twice, then fails for good, as a model or a card may."""
    calls = []

    def wrap(method: Method) -> Method:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) > 2:
                raise error
            return method(*args, **kwargs)

        return wrapped

    return wrap


BREAKS: dict[str, tuple[type, str, Callable[[Method], Method]]] = {
    "engine_breaks": (TorchRunner, "run", breaking(IndexError("a code out of range"))),
    "device_breaks": (TorchRunner, "run", breaking(torch.AcceleratorError("CUDA error: lost"))),
}
POINTS: dict[str, tuple[type, str, Callable[[Method], Method]]] = {
    "after_claim": (JobStore, "claim", after),
    "while_speaking": (Handle, "add_frame", at_third_frame),
    "before_write": (AudioStore, "_write", before),
    "after_write": (AudioStore, "_rename", before),
    "after_rename": (AudioStore, "_sync_directory", before),
    "after_publish": (AudioStore, "publish", after),
    "before_finish": (JobStore, "finish", before),
    "after_finish": (JobStore, "finish", after),
}

if __name__ == "__main__":
    owner, name, wrap = (POINTS | BREAKS)[sys.argv[1]]
    setattr(owner, name, wrap(getattr(owner, name)))
    raise SystemExit(main([]))
