"""The engine without a service: a process that speaks on request, for `benchmarks.service`.

Reads lines `<utterances> <frames>` and answers each with the seconds from first to last.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

READY = "ready"


class BareEngine:
    """The other end of the pipe. Close it, or it stays."""

    def __init__(self, model: Path, pack_dir: Path, slots: int, positions: int) -> None:
        command = [sys.executable, "-m", "benchmarks.bare", str(model), str(pack_dir)]
        self._process = subprocess.Popen(
            [*command, str(slots), str(positions)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._answer() == READY

    def speak(self, utterances: int, frames: int) -> float:
        assert self._process.stdin
        self._process.stdin.write(f"{utterances} {frames}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError("the bare engine has ended")
        return line


def text_of(index: int) -> str:
    return f"Sentence number {index}, of the length that people say."


def main() -> None:
    from worker.engine.checkpoint import load_checkpoint
    from worker.engine.engine import Engine, EngineConfig
    from worker.engine.sampling import Sampling
    from worker.engine.utterance import Utterance

    model, pack_dir, slots, positions = sys.argv[1:]
    config = EngineConfig(
        num_slots=int(slots), max_positions=int(positions), backend="openvino", precision="int8",
        pack_dir=Path(pack_dir),
    )  # fmt: skip
    engine = Engine(load_checkpoint(Path(model)), config).start()
    print(READY, flush=True)
    for line in sys.stdin:
        count, frames = (int(word) for word in line.split())
        began = time.perf_counter()
        handles = [
            engine.submit(Utterance(text_of(i), 1, Sampling(seed=i), max_frames=frames))
            for i in range(count)
        ]
        for handle in handles:
            handle.result()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
