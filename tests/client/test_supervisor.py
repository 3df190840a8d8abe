"""The supervisor with tiny parts that really run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from client.restart import RestartPolicy
from client.supervisor import Part, Supervisor
from tests.client.waiting import is_gone, until

ROOT = Path(__file__).parents[2]
QUICK = RestartPolicy(first_backoff_s=0.01, max_backoff_s=0.01)
SERVE = "import time; print('up'); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('up'); time.sleep(600)"
)


def part(name: str, code: str, **options: object) -> Part:
    return Part(name, [sys.executable, "-c", code], **options)


class Lines(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)

    def has(self, words: str) -> bool:
        return any(words in line for line in self)


@pytest.fixture
def lines():
    return Lines()


@pytest.fixture
def supervisor(lines):
    supervisor = Supervisor(lines, QUICK)
    yield supervisor
    supervisor.stop(lambda: True)


def ticking(supervisor: Supervisor, is_so):
    """A condition that also lets the supervisor work."""

    def look() -> bool:
        supervisor.tick()
        return is_so()

    return look


def test_lines_of_a_part_carry_its_name(supervisor, lines):
    supervisor.start(part("api", "import sys; print('out'); print('err', file=sys.stderr)"))
    supervisor.start(part("worker1", SERVE))
    until(lambda: len(lines) >= 3)
    assert sorted(lines) == ["api     | err", "api     | out", "worker1 | up"]


def test_a_part_sees_this_environment_and_its_own(supervisor, lines):
    code = "import os; print(os.environ['MINE'], 'PATH' in os.environ)"
    supervisor.start(part("api", code, env={"MINE": "yes"}))
    until(lambda: lines.has("yes True"))


def test_a_part_that_is_killed_comes_back(supervisor, lines):
    supervisor.start(part("worker1", SERVE))
    until(lambda: lines.has("| up"))
    first = supervisor.pids()["worker1"]
    os.kill(first, signal.SIGKILL)
    until(ticking(supervisor, lambda: supervisor.pids().get("worker1", first) != first))
    assert lines.has("worker1 was killed by signal 9; started again in 0.01 s")
    assert supervisor.failure is None


def test_a_part_that_dies_again_and_again_dies_for_good(supervisor, lines):
    supervisor.start(part("worker1", "print('the last word'); raise SystemExit(3)"))
    until(ticking(supervisor, lambda: supervisor.failure is not None))
    assert supervisor.failure == (
        "worker1 ended with code 3: it died 6 times within 60 s; its last line: the last word"
    )
    assert sum(line == "worker1 | the last word" for line in lines) == 6


def test_exit_code_78_is_for_good_at_once(supervisor, lines):
    supervisor.start(part("worker1", "print('no model at /x'); raise SystemExit(78)"))
    until(ticking(supervisor, lambda: supervisor.failure is not None))
    assert supervisor.failure.endswith("its last line: no model at /x")
    assert len(lines) == 1


def test_the_highest_stage_ends_first(supervisor, lines):
    code = (
        "import signal, time, sys\nsignal.signal(15, lambda *_: sys.exit(print('bye')))\n" + SERVE
    )
    supervisor.start(part("redis", code, stage=0))
    supervisor.start(part("api", code, stage=1))
    supervisor.start(part("worker1", code, stage=2))
    until(lambda: len(lines) == 3)
    supervisor.stop()
    assert lines[3:] == ["worker1 | bye", "api     | bye", "redis   | bye"]
    assert supervisor.pids() == {}


def test_a_part_that_ignores_sigterm_is_killed_after_its_grace(supervisor, lines):
    supervisor.start(part("worker1", STUBBORN, grace_s=0.3))
    until(lambda: lines.has("| up"))
    supervisor.stop()
    assert supervisor.pids() == {}


def test_a_hurried_stop_kills_at_once(supervisor, lines):
    supervisor.start(part("worker1", STUBBORN, grace_s=600))
    until(lambda: lines.has("| up"))
    supervisor.stop(lambda: True)
    assert supervisor.pids() == {}


def test_what_a_part_leaves_behind_in_its_group_ends_with_it(supervisor, lines):
    code = (
        "import subprocess, sys\n"
        f"print(subprocess.Popen([sys.executable, '-c', {SERVE!r}]).pid)\nraise SystemExit(78)"
    )
    supervisor.start(part("worker1", code))
    until(ticking(supervisor, lambda: supervisor.failure is not None))
    pid = int(next(line for line in lines if line[-1].isdigit()).split("| ")[1])
    until(lambda: is_gone(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_parts_die_with_a_killed_supervisor():
    code = (
        "import sys, time\nfrom client.supervisor import Part, Supervisor\n"
        "s = Supervisor(lambda line: None)\n"
        f"s.start(Part('api', [sys.executable, '-c', {SERVE!r}]))\n"
        "print(s.pids()['api'], flush=True)\ntime.sleep(600)"
    )
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    until(lambda: is_gone(pid))
