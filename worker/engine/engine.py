"""The engine: utterances in from any thread, speech out, many at once on one device.

One thread owns the device and repeats `step`. Knows the scheduler, the runner, the audio stream;
knows nothing of jobs, queues or files.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from worker.engine.audio_stream import AudioStream
from worker.engine.backends import Backend, Precision, open_runner
from worker.engine.checkpoint import Checkpoint
from worker.engine.errors import DeadlinePassed, EngineError, EngineStopped, UtteranceCancelled
from worker.engine.mimi import Mimi
from worker.engine.prompt import Prompt, Rows, build_prompt, frame_budget
from worker.engine.sampling import Sampling
from worker.engine.scheduler import Batch, Ending, Scheduler, Turn
from worker.engine.utterance import Handle, Segment, Utterance

log = logging.getLogger(__name__)
IDLE_TICK_S = 0.5


@dataclass(frozen=True)
class EngineConfig:
    """`prefill_rows` bounds how long one step may hold up speaking slots.

    `num_threads` 0 is one a core. `pack_dir` is where quantised weights are kept between starts;
    without it they are packed anew.
    """

    num_slots: int = 4
    max_positions: int = 2048
    prefill_rows: int = 64
    max_audio_s: float = 90.0
    device: str = "cpu"
    backend: Backend = "torch"
    precision: Precision = "fp32"
    pack_dir: Path | None = None
    num_threads: int = 0
    prefix_cache_bytes: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.num_slots < 1 or self.prefill_rows < 1 or self.max_positions < 2:
            raise ValueError("an engine needs a slot, two positions and prefill steps of a row")


@dataclass(eq=False)
class _Job:
    """A turn with the ends that the scheduler need not know."""

    handle: Handle
    prompt: Prompt
    sampling: Sampling


class Engine:
    """Continuous batching over one checkpoint. `start` before `submit`; `stop` ends the thread."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        self.checkpoint, self.config = checkpoint, config
        self.codec = _codec(checkpoint, config)
        self.runner = open_runner(
            checkpoint,
            config.backend,
            config.precision,
            device=config.device,
            num_slots=config.num_slots,
            max_positions=config.max_positions,
            prefix_cache_bytes=config.prefix_cache_bytes,
            pack_dir=config.pack_dir,
            num_threads=config.num_threads,
        )
        self.runner.warm_up()
        self.scheduler = Scheduler(config.num_slots, config.prefill_rows, time.monotonic)
        self._stream = AudioStream(self.codec, config.num_slots)
        self._stream.warm_up()
        self._jobs: dict[Turn, _Job] = {}
        self._arrivals: deque[Turn] = deque()
        self._woken = threading.Condition()
        self._is_stopping = False
        self.failure: BaseException | None = None
        self.last_tick = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    @property
    def sample_rate(self) -> int:
        return self.checkpoint.codec_spec.sampling_rate

    @property
    def frame_rate(self) -> float:
        return self.checkpoint.codec_spec.frame_rate

    @property
    def is_over(self) -> bool:
        """Whether it takes no more utterances."""
        return self._is_stopping or self.failure is not None

    @property
    def tick_age_s(self) -> float:
        """Seconds since the engine's thread last gave a sign of life."""
        return time.monotonic() - self.last_tick

    def start(self) -> Engine:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the thread; what was still being spoken fails with `EngineStopped`."""
        with self._woken:
            self._is_stopping = True
            self._woken.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, utterance: Utterance) -> Handle:
        """Queues an utterance. Raises `PromptTooLong`, or `EngineStopped` when it is over."""
        prompt = self._prompt(utterance)
        self.runner.prepare(utterance.sampling)
        handle = Handle(self.sample_rate, self._frame_budget(utterance, prompt))
        turn = Turn(
            prompt_rows=len(prompt),
            max_frames=handle.max_frames,
            prefix_rows=prompt.prefix_rows,
            deadline=_deadline(utterance.timeout_s),
            is_cancelled=lambda: handle.is_cancelled,
        )
        with self._woken:
            if self.is_over:
                raise EngineStopped("the engine has stopped; the worker must be restarted")
            self._jobs[turn] = _Job(handle, prompt, utterance.sampling)
            self._arrivals.append(turn)
            self._woken.notify()
        return handle

    def take_in(self) -> None:
        """Hands what was submitted to the scheduler."""
        while self._arrivals:
            self.scheduler.add(self._arrivals.popleft())

    def step(self) -> None:
        """Schedule, run, commit: at most one bounded prefill and one frame for all who speak."""
        batch = self.scheduler.schedule()
        for turn, ending in batch.ended:
            self._end(turn, ending)
        self._start_admitted(batch)
        frames = self.runner.run(batch)
        is_eos = {turn: not codes.any() for turn, codes in frames.items()}
        ended = self.scheduler.commit(batch, is_eos)
        for turn, codes in frames.items():
            if not is_eos[turn]:
                self._hear(turn, codes)
        self._sound(batch, ended)
        for turn, ending in ended:
            self._end(turn, ending)

    def _start_admitted(self, batch: Batch) -> None:
        for turn in batch.admitted:
            assert turn.slot is not None
            job = self._jobs[turn]
            self.runner.start(turn, job.prompt, job.sampling)
            self._stream.start(turn.slot)

    def _hear(self, turn: Turn, codes: Rows) -> None:
        assert turn.slot is not None
        self._jobs[turn].handle.add_frame(codes)
        self._stream.add(turn.slot, codes)

    def _sound(self, batch: Batch, ended: list[tuple[Turn, Ending]]) -> None:
        by_slot = {turn.slot: turn for turn in batch.speaking}
        ending = {turn.slot for turn, _ in ended if turn.slot is not None}
        for slot, audio in self._stream.decode_due(ending).items():
            self._jobs[by_slot[slot]].handle.add_audio(audio)

    def _end(self, turn: Turn, ending: Ending) -> None:
        handle = self._jobs.pop(turn).handle
        self.runner.stop(turn)
        if ending == "eos" or ending == "length":
            handle.finish(ending, self.checkpoint.spec.num_codebooks)
        elif ending == "cancelled":
            handle.fail(UtteranceCancelled("the utterance was cancelled"))
        else:
            handle.fail(DeadlinePassed("the utterance did not end within its time limit"))

    def _loop(self) -> None:
        try:
            while self._wait_for_work():
                self.step()
                self.last_tick = time.monotonic()
        except Exception as e:  # whatever it was: nobody may wait for a dead engine
            log.exception("the engine failed")
            self.failure = e
        self._abandon()

    def _wait_for_work(self) -> bool:
        """Takes in arrivals; false when the engine is to stop."""
        with self._woken:
            while not self._arrivals and self.scheduler.is_idle and not self._is_stopping:
                self.last_tick = time.monotonic()
                self._woken.wait(IDLE_TICK_S)
            self.take_in()
            return not self._is_stopping

    def _abandon(self) -> None:
        with self._woken:
            self._is_stopping = True
            jobs, self._jobs = list(self._jobs.values()), {}
        self.scheduler.clear()
        error: EngineError = EngineStopped(f"the engine stopped: {self.failure or 'shut down'}")
        for job in jobs:
            job.handle.fail(error)

    def _prompt(self, utterance: Utterance) -> Prompt:
        context = [(s.speaker_id, s.text, self._codes(s)) for s in utterance.context]
        num_codebooks = self.checkpoint.spec.num_codebooks
        return build_prompt(
            self.checkpoint.tokenizer, context, utterance.speaker_id, utterance.text, num_codebooks
        )

    @torch.inference_mode()
    def _codes(self, segment: Segment) -> Rows:
        """A segment's codes (T, K); its audio is encoded on the caller's thread."""
        if segment.codes is not None:
            return self._checked(segment.codes)
        audio = torch.from_numpy(np.asarray(segment.audio, np.float32)).unsqueeze(0)
        try:
            codes = self.codec.encode(audio.to(self.codec.device))[0]
        except torch.AcceleratorError as e:
            raise EngineStopped(f"the device failed at a context clip: {e}") from e
        return codes.T.contiguous().cpu().numpy()

    def _checked(self, codes: Rows) -> Rows:
        shape = (len(codes), self.checkpoint.spec.num_codebooks)
        limit = self.checkpoint.codec_spec.codebook_size
        if codes.shape != shape or codes.dtype != np.int64:
            raise ValueError(f"context codes are {codes.shape} {codes.dtype}, not {shape} int64")
        if codes.size and not 0 <= codes.min() <= codes.max() < limit:
            raise ValueError(f"context codes must lie between 0 and {limit - 1}")
        return codes

    def _frame_budget(self, utterance: Utterance, prompt: Prompt) -> int:
        return frame_budget(
            prompt,
            utterance.text,
            asked=utterance.max_frames,
            max_frames=int(self.config.max_audio_s * self.frame_rate),
            max_positions=self.runner.max_positions,
            frame_rate=self.frame_rate,
        )


def _codec(checkpoint: Checkpoint, config: EngineConfig) -> Mimi:
    weights = {n: t.to(config.device, torch.float32) for n, t in checkpoint.codec_weights.items()}
    if config.backend == "torch":
        return Mimi(checkpoint.codec_spec, weights)
    from worker.engine.openvino_codec import OpenvinoMimi

    return OpenvinoMimi(checkpoint.codec_spec, weights, config.num_threads)


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s
