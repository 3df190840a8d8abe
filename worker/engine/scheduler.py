"""Decides which utterances share the next frame, and when each is over.

Knows slots, order, limits and the clock; knows nothing about tensors, text or Redis.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Ending = Literal["eos", "length", "deadline", "cancelled"]


@dataclass(eq=False)
class Turn:
    """One utterance's passage through the engine."""

    prompt_rows: int
    max_frames: int
    prefix_rows: int = 0  # rows at the start that are context; prefilled apart, so they can be kept
    deadline: float | None = None  # on the scheduler's clock
    is_cancelled: Callable[[], bool] = lambda: False
    slot: int | None = None
    arrival: int = 0
    rows_done: int = 0
    frames_done: int = 0

    @property
    def is_prefilled(self) -> bool:
        return self.rows_done == self.prompt_rows

    @property
    def position(self) -> int:
        """The backbone row that the next frame will fill."""
        return self.prompt_rows + self.frames_done


@dataclass(frozen=True)
class Prefill:
    """Rows `start` to `stop` of one turn's prompt, to be read before the next frame."""

    turn: Turn
    start: int
    stop: int


@dataclass(frozen=True)
class Batch:
    """One step's work: who starts, what is prefilled, who speaks a frame, and who is over."""

    admitted: list[Turn] = field(default_factory=list)
    prefills: list[Prefill] = field(default_factory=list)
    speaking: list[Turn] = field(default_factory=list)
    ended: list[tuple[Turn, Ending]] = field(default_factory=list)


class Scheduler:
    """First come, first served, over `num_slots` places.

    Each step prefills at most `prefill_rows` rows of one waiting prompt, so that a long prompt
    holds up the speaking slots by a bounded time. Cuts fall at multiples of `prefill_rows` from
    the prompt's (or its prefix's) start, whatever else is going on: the same prompt is always
    computed in the same pieces.
    """

    def __init__(self, num_slots: int, prefill_rows: int, clock: Callable[[], float]) -> None:
        self.prefill_rows, self._clock = prefill_rows, clock
        self._waiting: deque[Turn] = deque()
        self._num_arrived = 0
        self._slots: list[Turn | None] = [None] * num_slots

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def turns(self) -> list[Turn]:
        return [turn for turn in self._slots if turn is not None]

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self.turns

    def add(self, turn: Turn) -> None:
        self._num_arrived += 1
        turn.arrival = self._num_arrived
        self._waiting.append(turn)

    def schedule(self) -> Batch:
        ended = self._end_stopped()
        admitted = self._admit()
        speaking = [turn for turn in self.turns if turn.is_prefilled]
        return Batch(admitted, self._next_prefill(admitted), speaking, ended)

    def commit(self, batch: Batch, is_eos: Mapping[Turn, bool]) -> list[tuple[Turn, Ending]]:
        """Books what the runner did; returns the turns that ended by it, their slots now free."""
        for prefill in batch.prefills:
            prefill.turn.rows_done = prefill.stop
        ended: list[tuple[Turn, Ending]] = []
        for turn in batch.speaking:
            if is_eos[turn]:
                ended.append((turn, "eos"))
                continue
            turn.frames_done += 1
            if turn.frames_done == turn.max_frames:
                ended.append((turn, "length"))
        for turn, _ in ended:
            self._free(turn)
        return ended

    def clear(self) -> list[Turn]:
        """Takes out everything, waiting and speaking."""
        turns = [*self.turns, *self._waiting]
        self._waiting.clear()
        self._slots = [None] * len(self._slots)
        return turns

    def _end_stopped(self) -> list[tuple[Turn, Ending]]:
        ended = [
            (turn, ending)
            for turn in [*self.turns, *self._waiting]
            if (ending := self._stopped(turn)) is not None
        ]
        for turn, _ in ended:
            self._free(turn)
        return ended

    def _stopped(self, turn: Turn) -> Ending | None:
        if turn.is_cancelled():
            return "cancelled"
        if turn.deadline is not None and self._clock() > turn.deadline:
            return "deadline"
        return None

    def _admit(self) -> list[Turn]:
        admitted = []
        for slot, holder in enumerate(self._slots):
            if holder is None and self._waiting:
                turn = self._waiting.popleft()
                turn.slot, self._slots[slot] = slot, turn
                admitted.append(turn)
        return admitted

    def _next_prefill(self, admitted: list[Turn]) -> list[Prefill]:
        # a turn admitted in this step may yet find its prefix cached
        unread = [t for t in self.turns if not t.is_prefilled and t not in admitted]
        unread.sort(key=lambda turn: turn.arrival)
        return [self._piece(turn) for turn in unread[:1]]

    def _piece(self, turn: Turn) -> Prefill:
        end = turn.prefix_rows if turn.rows_done < turn.prefix_rows else turn.prompt_rows
        return Prefill(turn, turn.rows_done, min(turn.rows_done + self.prefill_rows, end))

    def _free(self, turn: Turn) -> None:
        if turn.slot is None:
            self._waiting.remove(turn)
        else:
            self._slots[turn.slot] = None
