from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from shared.settings import Settings
from worker.direct_csm import DirectCSM
from worker.engine.errors import EngineStopped, ModelNotFound, PromptTooLong


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", model_dir=tmp_path / "none", max_positions=512)


@pytest.fixture
def csm(settings: Settings) -> Iterator[DirectCSM]:
    direct = DirectCSM("csm-tiny", "cpu", settings)
    yield direct
    direct.close()


def decoded(path: Path) -> tuple[np.ndarray, int]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        return np.concatenate(frames, axis=1)[0], container.streams.audio[0].rate


def test_nothing_is_loaded_until_the_first_call(csm: DirectCSM) -> None:
    assert not csm.is_loaded
    audio, sample_rate = csm.generate_speech("hello", max_audio_length_ms=400)
    assert csm.is_loaded
    assert sample_rate == 24_000
    assert audio.shape == (5 * 1920,)
    assert audio.dtype == torch.float32


def test_the_same_seed_speaks_the_same(csm: DirectCSM) -> None:
    first, _ = csm.generate_speech("hello", seed=3, max_audio_length_ms=400)
    again, _ = csm.generate_speech("hello", seed=3, max_audio_length_ms=400)
    assert torch.equal(first, again)


def test_cuda_that_is_missing_falls_back_to_the_cpu_and_says_so(
    csm: DirectCSM, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with caplog.at_level(logging.WARNING):
        audio, _ = csm.generate_speech("hello", device="cuda", max_audio_length_ms=400)
    assert len(audio)
    assert csm.fallback is not None
    assert "speaking on the CPU instead" in csm.fallback
    assert csm.fallback in caplog.text


def test_an_engine_that_fails_on_the_cpu_is_an_error_not_a_loop(csm: DirectCSM) -> None:
    csm.generate_speech("hello", max_audio_length_ms=80)
    csm._open.engine.stop()  # type: ignore[union-attr]
    with pytest.raises(EngineStopped):
        csm.generate_speech("hello", max_audio_length_ms=80)
    audio, _ = csm.generate_speech("hello", max_audio_length_ms=80)  # a new engine
    assert len(audio)


class BrokenCard:
    """Stands in for the runner, and fails in mid-speech as a card does."""

    max_positions = 512

    def prepare(self, *_: object) -> None: ...

    def start(self, *_: object) -> None: ...

    def stop(self, *_: object) -> None: ...

    def run(self, *_: object) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")


def test_cuda_that_fails_while_speaking_falls_back_to_the_cpu_and_says_so(
    csm: DirectCSM, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = csm.generate_speech("hello", seed=1, max_audio_length_ms=400)
    csm._open = replace(csm._open, device="cuda:0")  # type: ignore[type-var]
    csm._open.engine.runner = BrokenCard()  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        audio, _ = csm.generate_speech("hello", seed=1, max_audio_length_ms=400)
    assert torch.equal(audio, expected)
    assert csm.fallback is not None
    assert "unspecified launch failure" in csm.fallback
    assert csm.fallback in caplog.text


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_saved_audio_is_whole_and_latest_points_at_it(
    csm: DirectCSM, tmp_path: Path, suffix: str
) -> None:
    audio = torch.sin(torch.arange(40_000) / 20) * 0.5
    for name in ("one", "two"):
        path = csm.save_audio(audio, 24_000, tmp_path / f"{name}.{suffix}")
    samples, rate = decoded(path)
    assert rate == 24_000
    assert np.abs(samples / 32767 - audio.numpy()).max() < 1e-4
    assert (tmp_path / f"latest.{suffix}").resolve() == path.resolve()
    assert not list(tmp_path.glob("*.part"))


def test_an_unknown_format_is_refused(csm: DirectCSM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use one of wav, flac"):
        csm.save_audio(torch.zeros(3), 24_000, tmp_path / "x.mp3")


def test_text_without_room_is_refused(csm: DirectCSM) -> None:
    with pytest.raises(PromptTooLong):
        csm.generate_speech("x" * 600)


def test_a_directory_that_is_no_model_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="not a CSM"):
        DirectCSM(str(tmp_path), "cpu", settings).generate_speech("hello")


def test_the_script_speaks(tmp_path: Path) -> None:
    out = tmp_path / "said.wav"
    command = [sys.executable, "scripts/direct_csm_test.py", "Your text here", "-o", str(out)]
    env = os.environ | {"ECHOFORGE_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(
        [*command, "--model", "csm-tiny"], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    assert "untrained" in done.stdout
    assert len(decoded(out)[0]) > 24_000
    assert (tmp_path / "latest.wav").is_symlink()


def test_the_script_without_a_model_says_the_way_out(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/direct_csm_test.py", "hi", "--model", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
