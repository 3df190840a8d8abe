"""Supervisor: keeps a few child processes alive, relays their lines, ends them in order.

Knows processes, process groups and pipes; nothing about what the parts do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from client.restart import GiveUp, RestartPolicy, describe_exit
from client.tether import tethered

Write: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """One child process. `argv[0]` is a path; `env` is added to this process's environment."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    stage: int = 0  # parts are ended stage by stage, the highest first
    grace_s: float = 10.0  # between SIGTERM and SIGKILL
    pass_fds: tuple[int, ...] = ()
    # What it gets when this process is killed. Redis dies at the same moment, so a worker that
    # drained would only ask a dead server; its leases give its jobs back instead.
    death_signal: signal.Signals = signal.SIGKILL


class Supervisor:
    """Call `start` for each part, `tick` often, `stop` once; all from the main thread.

    `failure` says why a part died for good; the caller then stops everything.
    """

    def __init__(self, write: Write, policy: RestartPolicy | None = None) -> None:
        self.failure: str | None = None
        self._write = write
        self._policy = policy or RestartPolicy()
        self._children: list[_Child] = []

    def start(self, part: Part) -> None:
        child = _Child(part, self._write)
        self._children.append(child)
        child.spawn()

    def is_running(self, name: str) -> bool:
        return any(c.part.name == name and c.is_running for c in self._children)

    def pids(self) -> dict[str, int]:
        return {c.part.name: c.pid for c in self._children if c.is_running and c.pid}

    def tick(self) -> None:
        """Note who died, and start again those whose pause is over."""
        for child in self._children:
            if child.is_running:
                continue
            if child.restart_at is None:
                self._bury(child)
            elif time.monotonic() >= child.restart_at:
                child.spawn()

    def stop(self, is_hurried: Callable[[], bool] = lambda: False) -> None:
        """Stage by stage: SIGTERM, then SIGKILL after `grace_s`, or at once when hurried."""
        for stage in sorted({c.part.stage for c in self._children}, reverse=True):
            _end([c for c in self._children if c.part.stage == stage], is_hurried)

    def _bury(self, child: _Child) -> None:
        exit_code = child.collect()
        child.deaths.append(time.monotonic())
        told = f"{child.part.name} {describe_exit(exit_code)}"
        verdict = self._policy.decide(exit_code, child.deaths)
        if isinstance(verdict, GiveUp):
            said = f"; its last line: {child.last_line}" if child.last_line else ""
            self.failure = self.failure or f"{told}: {verdict.reason}{said}"
            child.restart_at = float("inf")
            return
        self._write(f"{told}; started again in {verdict.after_s:g} s")
        child.restart_at = time.monotonic() + verdict.after_s


class _Child:
    """The process that currently plays a part, and the history of those that did."""

    def __init__(self, part: Part, write: Write) -> None:
        self.part = part
        self.deaths: list[float] = []
        self.restart_at: float | None = None
        self.last_line = ""
        self._write = write
        self._process: subprocess.Popen[str] | None = None
        self._relay: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        self.restart_at = None
        self._process = subprocess.Popen(
            tethered(self.part.argv, self.part.death_signal),
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self.part.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=self.part.pass_fds,
            process_group=0,  # the terminal's Ctrl-C is for the supervisor, which orders the end
        )
        self._relay = threading.Thread(target=self._relay_lines, args=(self._process,), daemon=True)
        self._relay.start()

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def collect(self) -> int:
        """The exit code, once what the process left behind is gone and its lines are told."""
        assert self._process is not None
        assert self._relay is not None
        process, self._process = self._process, None  # its group's number may soon be another's
        _kill_group(process.pid)
        self._relay.join(timeout=1)  # longer only if a grandchild left the group and keeps the pipe
        return process.wait()

    def _relay_lines(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.last_line = line.strip() or self.last_line
                self._write(f"{self.part.name:<7} | {line.rstrip()}")


def _end(children: Sequence[_Child], is_hurried: Callable[[], bool]) -> None:
    begun = time.monotonic()
    for child in children:
        child.signal(signal.SIGTERM)
    for child in children:
        while child.is_running:
            if is_hurried() or time.monotonic() - begun > child.part.grace_s:
                child.signal(signal.SIGKILL)
            time.sleep(0.02)
        if child.pid is not None:
            child.collect()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: an empty group
        os.killpg(pid, signal.SIGKILL)
