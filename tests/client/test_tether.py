"""The tether, with parents that are really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from client.tether import tethered
from tests.client.waiting import is_gone, until

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
PARENT = """
import subprocess, sys, time
from client.tether import tethered
child = subprocess.Popen(tethered([sys.executable, *sys.argv[2:]], int(sys.argv[1])))
time.sleep(600)
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""
TIDY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(open(sys.argv[1], "w").write("tidied up")))
print(os.getpid(), flush=True)
time.sleep(600)
"""
VALKEY_OWNER = """
import sys, time
from pathlib import Path
from tests.valkey import Valkey
valkey = Valkey(Path(sys.argv[1]))
valkey.start()
print(valkey.client().info("server")["process_id"], flush=True)
time.sleep(600)
"""


def child_of_a_killed(*argv: str) -> int:
    """The process whose id the program prints, after the program was killed."""
    command = [sys.executable, "-c", *argv]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    return pid


def test_a_child_that_ignores_sigterm_dies_with_its_parent_by_sigkill():
    pid = child_of_a_killed(PARENT, str(int(signal.SIGKILL)), "-c", STUBBORN)
    until(lambda: is_gone(pid), timeout_s=5)


def test_a_child_tied_by_sigterm_may_still_tidy_up(tmp_path):
    note = tmp_path / "note"
    pid = child_of_a_killed(PARENT, str(int(signal.SIGTERM)), "-c", TIDY, str(note))
    until(lambda: is_gone(pid), timeout_s=5)
    assert note.read_text() == "tidied up"


def test_a_valkey_of_the_tests_dies_with_a_killed_test_run(tmp_path):
    pid = child_of_a_killed(VALKEY_OWNER, str(tmp_path))
    until(lambda: is_gone(pid), timeout_s=5)


def test_elsewhere_than_on_linux_the_command_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tethered(["/bin/true", "x"], signal.SIGKILL) == ["/bin/true", "x"]
