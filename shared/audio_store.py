"""AudioStore: whole audio files in one directory, under names that a job's record makes public.

Knows names, writing without a visible half, and deleting; knows nothing about records or sound.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shared.errors import StorageFull

NAME = re.compile(r"job_[0-9a-f]{32}\.[0-9a-f]{12}\.(wav|flac)")
PART = ".part"
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

Write = Callable[[BinaryIO], None]


@dataclass(frozen=True)
class PublishedFile:
    name: str
    bytes: int
    sha256: str


class AudioStore:
    def __init__(self, root: Path) -> None:
        self._root = root.expanduser()
        self._root.mkdir(parents=True, exist_ok=True, mode=0o750)

    def publish(self, job_id: str, token: str, suffix: str, data: Write | bytes) -> PublishedFile:
        """Whole or not at all, even if the machine loses power. `data`: bytes, or what writes them.

        The token keeps two workers on one job apart. Raises StorageFull.
        """
        name = f"{job_id}.{token[:12]}.{suffix}"
        final = self._at(name)
        part = final.with_name(name + PART)
        try:
            self._write(part, data)
            published = PublishedFile(name, part.stat().st_size, _sha256(part))
            self._rename(part, final)
            self._sync_directory()
        except OSError as error:
            raise _full(error) from error
        finally:
            with suppress(OSError):  # swept later; what went wrong first is what counts
                part.unlink(missing_ok=True)
        return published

    def path(self, name: str) -> Path:
        """Where a published file lies. Raises FileNotFoundError, also for what is no plain file."""
        path = self._at(name)
        if not stat.S_ISREG(path.lstat().st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a plain file", name)
        return path

    def open(self, name: str) -> BinaryIO:
        return os.fdopen(os.open(self.path(name), os.O_RDONLY | os.O_NOFOLLOW), "rb")

    def delete(self, name: str) -> None:
        """A file that is gone already is no error."""
        self._at(name).unlink(missing_ok=True)

    def sweep_orphans(self, is_named: Callable[[str], bool], older_than_s: float) -> list[str]:
        """Deletes what no record names: left by a killed writer, or by a worker that came too late.

        `older_than_s` spares files that are still being written or not yet named.
        """
        before = time.time() - older_than_s
        orphans = [
            path.name
            for path in self._root.iterdir()
            if NAME.fullmatch(path.name.removesuffix(PART))
            and _modified_at(path) < before
            and (path.name.endswith(PART) or not is_named(path.name))
        ]
        for name in orphans:
            (self._root / name).unlink(missing_ok=True)
        return orphans

    def _at(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise ValueError(f"not the name of an audio file: {name!r}")
        return self._root / name

    # The steps of publishing; a test may break between any two.

    def _write(self, part: Path, data: Write | bytes) -> None:
        with self._create(part) as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                data(file)
            file.flush()
            os.fsync(file.fileno())

    def _create(self, part: Path) -> BinaryIO:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        return os.fdopen(os.open(part, flags, 0o640), "w+b")

    def _rename(self, part: Path, final: Path) -> None:
        part.rename(final)

    def _sync_directory(self) -> None:
        directory = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _modified_at(path: Path) -> float:
    """Never old, for a file that was renamed or deleted meanwhile."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _full(error: OSError) -> Exception:
    if error.errno in NO_SPACE:
        return StorageFull("The disk for audio is full; free some space, or try later.", 60)
    return error
