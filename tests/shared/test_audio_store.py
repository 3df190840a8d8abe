"""Audio files are whole or not there, and nothing but audio files can be named."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from shared.audio_store import AudioStore
from shared.errors import StorageFull
from shared.jobs import new_job_id

TOKEN = "0123456789abcdef" * 2


@pytest.fixture
def audio(tmp_path: Path) -> AudioStore:
    return AudioStore(tmp_path / "audio")


def files(tmp_path: Path) -> list[str]:
    return [entry.name for entry in (tmp_path / "audio").iterdir()]


class Killed(BaseException):
    """Stands for the process ending there."""


class DiesAt(AudioStore):
    step = ""

    def _rename(self, part: Path, final: Path) -> None:
        if self.step == "rename":
            raise Killed
        super()._rename(part, final)

    def _sync_directory(self) -> None:
        if self.step == "sync":
            raise Killed
        super()._sync_directory()


class FullDisk(AudioStore):
    error = errno.ENOSPC

    def _create(self, part: Path) -> BinaryIO:
        part.touch()
        return _FullFile(self.error)


class _FullFile(io.BytesIO):
    def __init__(self, error: int) -> None:
        super().__init__()
        self._error = error

    def write(self, data: object) -> int:
        raise OSError(self._error, os.strerror(self._error))


def test_a_published_file_is_whole_and_described(audio: AudioStore, tmp_path: Path) -> None:
    job_id = new_job_id()
    file = audio.publish(job_id, TOKEN, "wav", lambda out: out.write(b"RIFF...") and None)
    assert file.name == f"{job_id}.0123456789ab.wav"
    assert (file.bytes, file.sha256) == (7, hashlib.sha256(b"RIFF...").hexdigest())
    with audio.open(file.name) as stored:
        assert stored.read() == b"RIFF..."
    assert files(tmp_path) == [file.name]


def test_a_writer_may_go_back_to_patch_its_header(audio: AudioStore) -> None:
    def write(out: BinaryIO) -> None:
        out.write(b"????data")
        out.seek(0)
        out.write(b"RIFF")

    file = audio.publish(new_job_id(), TOKEN, "flac", write)
    assert audio.path(file.name).read_bytes() == b"RIFFdata"
    assert file.sha256 == hashlib.sha256(b"RIFFdata").hexdigest()


def test_publishing_again_replaces_the_same_file(audio: AudioStore, tmp_path: Path) -> None:
    job_id = new_job_id()
    audio.publish(job_id, TOKEN, "wav", b"one")
    file = audio.publish(job_id, TOKEN, "wav", b"two")
    assert audio.path(file.name).read_bytes() == b"two"
    assert len(files(tmp_path)) == 1


def test_a_failing_writer_leaves_nothing(audio: AudioStore, tmp_path: Path) -> None:
    def write(out: BinaryIO) -> None:
        out.write(b"half")
        raise RuntimeError("encoder")

    with pytest.raises(RuntimeError):
        audio.publish(new_job_id(), TOKEN, "wav", write)
    assert files(tmp_path) == []


def test_before_the_rename_no_audio_is_visible(tmp_path: Path) -> None:
    audio = DiesAt(tmp_path / "audio")
    audio.step = "rename"
    with pytest.raises(Killed):
        audio.publish(new_job_id(), TOKEN, "wav", b"RIFF")
    assert not [name for name in files(tmp_path) if name.endswith(".wav")]


def test_after_the_rename_the_audio_is_whole(tmp_path: Path) -> None:
    audio = DiesAt(tmp_path / "audio")
    audio.step = "sync"
    with pytest.raises(Killed):
        audio.publish(new_job_id(), TOKEN, "wav", b"RIFF")
    (name,) = files(tmp_path)
    assert audio.path(name).read_bytes() == b"RIFF"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, error: int) -> None:
    audio = FullDisk(tmp_path / "audio")
    audio.error = error
    with pytest.raises(StorageFull):
        audio.publish(new_job_id(), TOKEN, "wav", b"RIFF")
    assert files(tmp_path) == []


def test_other_disk_errors_are_not_called_full(tmp_path: Path) -> None:
    audio = FullDisk(tmp_path / "audio")
    audio.error = errno.EIO
    with pytest.raises(OSError, match="Input/output") as broken:
        audio.publish(new_job_id(), TOKEN, "wav", b"RIFF")
    assert not isinstance(broken.value, StorageFull)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        f"job_{'0' * 32}.{'0' * 12}.wav.part",
        f"job_{'0' * 32}.{'0' * 12}.exe",
        f"job_{'0' * 32}.{'0' * 12}.wav\n",
        f"x/job_{'0' * 32}.{'0' * 12}.wav",
        f"job_{'G' * 32}.{'0' * 12}.wav",
    ],
)
def test_no_other_name_reaches_the_disk(audio: AudioStore, name: str) -> None:
    for act in (audio.path, audio.open, audio.delete):
        with pytest.raises(ValueError, match="not the name"):
            act(name)


def test_a_symlink_is_not_followed(audio: AudioStore, tmp_path: Path) -> None:
    name = f"{new_job_id()}.{TOKEN[:12]}.wav"
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "audio" / name).symlink_to(tmp_path / "secret")
    for act in (audio.path, audio.open):
        with pytest.raises(FileNotFoundError):
            act(name)


def test_deleting_twice_is_no_error(audio: AudioStore, tmp_path: Path) -> None:
    file = audio.publish(new_job_id(), TOKEN, "wav", b"RIFF")
    audio.delete(file.name)
    audio.delete(file.name)
    with pytest.raises(FileNotFoundError):
        audio.path(file.name)


def test_the_sweep_takes_old_orphans_and_halves_and_nothing_else(
    audio: AudioStore, tmp_path: Path
) -> None:
    named, orphan = (audio.publish(new_job_id(), TOKEN, "wav", b"RIFF").name for _ in range(2))
    half = f"{new_job_id()}.{TOKEN[:12]}.flac.part"
    for name in (half, "somebody_elses.txt"):
        (tmp_path / "audio" / name).touch()
    for name in (named, orphan, half, "somebody_elses.txt"):
        os.utime(tmp_path / "audio" / name, (1, 1))
    fresh = audio.publish(new_job_id(), TOKEN, "wav", b"RIFF").name
    assert set(audio.sweep_orphans(lambda name: name == named, 60)) == {orphan, half}
    assert set(files(tmp_path)) == {named, fresh, "somebody_elses.txt"}
