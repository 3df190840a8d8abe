"""How a command ends: one line on stderr and an exit code; no traceback for what is expected."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from client.api_error import SpeechApiError
from client.setup_error import SetupError

INTERRUPTED = 130  # what a shell makes of SIGINT


@contextmanager
def plain_errors() -> Iterator[None]:
    """One line on stderr and exit code 1, for what is expected to go wrong."""
    try:
        yield
    except (SpeechApiError, SetupError, OSError) as error:
        complain(str(error))
        raise typer.Exit(1) from error


def complain(message: str) -> None:
    print(f"echoforge: {message}", file=sys.stderr)


def usage(message: str) -> NoReturn:
    complain(message)
    raise typer.Exit(2)
