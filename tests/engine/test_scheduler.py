"""Policy, in microseconds: a fake clock, no tensors."""

from __future__ import annotations

import subprocess
import sys

from worker.engine.scheduler import Batch, Scheduler, Turn


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def a_scheduler(num_slots: int = 2, prefill_rows: int = 10) -> tuple[Scheduler, FakeClock]:
    clock = FakeClock()
    return Scheduler(num_slots, prefill_rows, clock), clock


def run(scheduler: Scheduler, eos: tuple[Turn, ...] = ()) -> tuple[Batch, list[tuple[Turn, str]]]:
    batch = scheduler.schedule()
    return batch, list(scheduler.commit(batch, {t: t in eos for t in batch.speaking}))


def test_turns_are_admitted_in_order_and_wait_for_a_slot() -> None:
    scheduler, _ = a_scheduler(num_slots=2)
    turns = [Turn(prompt_rows=3, max_frames=5) for _ in range(3)]
    for turn in turns:
        scheduler.add(turn)
    batch, _ = run(scheduler)
    assert batch.admitted == turns[:2]
    assert scheduler.num_waiting == 1


def test_a_long_prompt_is_read_in_bounded_pieces_while_others_speak() -> None:
    scheduler, _ = a_scheduler(prefill_rows=10)
    short, long = Turn(prompt_rows=4, max_frames=50), Turn(prompt_rows=25, max_frames=50)
    scheduler.add(short)
    run(scheduler), run(scheduler)
    scheduler.add(long)
    pieces = []
    for _ in range(5):
        batch, _ = run(scheduler)
        assert short in batch.speaking
        pieces += [(p.start, p.stop) for p in batch.prefills]
    assert pieces == [(0, 10), (10, 20), (20, 25)]
    assert scheduler.schedule().speaking == [short, long]


def test_pieces_end_where_the_prefix_ends() -> None:
    scheduler, _ = a_scheduler(prefill_rows=10)
    scheduler.add(Turn(prompt_rows=30, max_frames=1, prefix_rows=14))
    pieces = [(p.start, p.stop) for _ in range(6) for p in run(scheduler)[0].prefills]
    assert pieces == [(0, 10), (10, 14), (14, 24), (24, 30)]


def test_prompts_are_read_in_order_of_arrival_whatever_their_slot() -> None:
    scheduler, _ = a_scheduler(num_slots=2, prefill_rows=10)
    first, second, third = (Turn(prompt_rows=r, max_frames=1) for r in (5, 30, 30))
    scheduler.add(first), scheduler.add(second)
    for _ in range(3):
        run(scheduler)
    scheduler.add(third)  # takes slot 0, before the slot of `second`
    batch, _ = run(scheduler)
    batch, _ = run(scheduler)
    assert third.slot == 0
    assert batch.prefills[0].turn is second


def test_the_length_limit_ends_a_turn_and_frees_its_slot() -> None:
    scheduler, _ = a_scheduler(num_slots=1)
    turn, waiting = Turn(prompt_rows=1, max_frames=2), Turn(prompt_rows=1, max_frames=1)
    scheduler.add(turn), scheduler.add(waiting)
    endings = [run(scheduler)[1] for _ in range(4)]
    assert endings == [[], [], [], [(turn, "length")]]
    assert run(scheduler)[0].admitted == [waiting]


def test_eos_on_the_first_frame_ends_a_turn_with_no_frames() -> None:
    scheduler, _ = a_scheduler()
    turn = Turn(prompt_rows=1, max_frames=9)
    scheduler.add(turn)
    run(scheduler), run(scheduler)
    assert run(scheduler, eos=(turn,))[1] == [(turn, "eos")]
    assert turn.frames_done == 0
    assert scheduler.is_idle


def test_a_deadline_ends_speaking_and_waiting_turns() -> None:
    scheduler, clock = a_scheduler(num_slots=1)
    turns = [Turn(prompt_rows=1, max_frames=9, deadline=5.0) for _ in range(2)]
    for turn in turns:
        scheduler.add(turn)
    run(scheduler)
    clock.now = 5.1
    assert run(scheduler)[0].ended == [(turns[0], "deadline"), (turns[1], "deadline")]
    assert scheduler.is_idle


def test_cancel_frees_the_slot_for_the_same_step() -> None:
    scheduler, _ = a_scheduler(num_slots=1)
    stopped = [False]
    turn = Turn(prompt_rows=1, max_frames=9, is_cancelled=lambda: stopped[0])
    waiting = Turn(prompt_rows=1, max_frames=9)
    scheduler.add(turn), scheduler.add(waiting)
    run(scheduler)
    stopped[0] = True
    batch, _ = run(scheduler)
    assert batch.ended == [(turn, "cancelled")]
    assert batch.admitted == [waiting]


def test_the_scheduler_never_imports_torch() -> None:
    code = "import sys; import worker.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
