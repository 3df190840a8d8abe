"""Ties a child process's life to its parent's, so that `kill -9` of the parent leaves no orphan.

Linux only (PR_SET_PDEATHSIG); elsewhere the argv is left alone. The signal fires when the thread
that started the child ends, so start children from the main thread. It comes to all children at
once, so one that would drain by asking another of them is better killed (SIGKILL).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

# A few lines run by a bare interpreter that then becomes the child: preexec_fn would do the same,
# but may deadlock (and warns, from Python 3.12 on) in a process that has threads.
_SHIM = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[2]))
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[3], sys.argv[3:])
"""


def tethered(argv: Sequence[str], death_signal: signal.Signals) -> list[str]:
    """`argv[0]` must be a path. The process id stays the same across the exec."""
    if sys.platform != "linux":
        return list(argv)
    return [
        sys.executable,
        "-I",
        "-S",
        "-c",
        _SHIM,
        str(os.getpid()),
        str(int(death_signal)),
        *argv,
    ]
