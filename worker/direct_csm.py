"""DirectCSM: CSM without a queue. Finds and loads the checkpoint on first use, and speaks.

Drives the same engine as the workers, with one slot. Knows files and devices; knows no jobs.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from shared.settings import Settings
from worker.audio_file import CODECS, write_audio
from worker.device import OpenEngine, Wanted, fall_back, open_engine
from worker.engine.checkpoint import Checkpoint
from worker.engine.engine import Engine, EngineConfig
from worker.engine.errors import EngineStopped
from worker.engine.sampling import Sampling
from worker.engine.utterance import Segment, Utterance
from worker.model import load_model, model_notice

log = logging.getLogger(__name__)
LATEST = "latest"


class DirectCSM:
    """One utterance at a time, in this process.

    `model` is csm-1b (looked for in the model directory, then the Hugging Face cache), csm-tiny,
    or a directory. `fallback` tells, after speaking, why CUDA was not used if it was wanted.
    """

    def __init__(
        self, model: str = "csm-1b", device: Wanted = "auto", settings: Settings | None = None
    ) -> None:
        self.settings = (settings or Settings()).model_copy(update={"model": model})
        self.device: Wanted = device
        self.fallback: str | None = None
        self._checkpoint: Checkpoint | None = None
        self._open: OpenEngine | None = None

    @property
    def is_loaded(self) -> bool:
        return self._open is not None

    @property
    def notice(self) -> str | None:
        """What must be said about the model; None before loading and for a trained one."""
        return model_notice(self._checkpoint) if self._checkpoint else None

    def generate_speech(
        self,
        text: str,
        speaker_id: int = 1,
        temperature: float = 0.9,
        top_k: int = 50,
        device: Wanted | None = None,
        *,
        seed: int | None = None,
        context: tuple[Segment, ...] = (),
        max_audio_length_ms: int | None = None,
    ) -> tuple[torch.Tensor, int]:
        """Speaks `text`: float32 audio (samples,) on the CPU, and its sample rate.

        Raises `ModelNotFound`, `CheckpointInvalid`, `PromptTooLong`. A CUDA failure, at load or
        while speaking, is logged and told in `fallback`, and the CPU speaks instead.
        """
        engine = self._engine(device or self.device)
        utterance = Utterance(
            text,
            speaker_id,
            Sampling(temperature, top_k, secrets.randbits(63) if seed is None else seed),
            context,
            _frames(max_audio_length_ms, engine.frame_rate),
        )
        try:
            speech = engine.submit(utterance).result()
        except EngineStopped as e:
            speech = self._leave_cuda(e).submit(utterance).result()
        return torch.from_numpy(speech.audio), speech.sample_rate

    def save_audio(
        self, audio: torch.Tensor | npt.NDArray[np.float32], sample_rate: int, path: str | Path
    ) -> Path:
        """Saves WAV or FLAC by `path`'s suffix, and points `latest.<suffix>` beside it at it."""
        path = Path(path)
        kind = path.suffix.removeprefix(".").lower()
        if kind not in CODECS:
            raise ValueError(f"cannot save {path.name}; use one of {', '.join(CODECS)}")
        if isinstance(audio, torch.Tensor):
            audio = audio.detach().float().cpu().numpy()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            write_audio(file, np.asarray(audio, np.float32).reshape(-1), sample_rate, kind)
        part.replace(path)
        _point_latest_at(path)
        return path

    def close(self) -> None:
        """Stops the engine and frees the device; the next call loads again."""
        if self._open is not None:
            self._open.engine.stop()
            self._open = None

    def _engine(self, device: Wanted) -> Engine:
        if self._open is None or device != self.device:
            self.close()
            self.device = device
            self._keep(open_engine(self._build, self._config(), device, self.settings.precision))
        assert self._open is not None
        return self._open.engine

    def _leave_cuda(self, error: EngineStopped) -> Engine:
        assert self._open is not None
        device = self._open.device
        self.close()
        if device == "cpu":
            raise error
        return self._keep(
            fall_back(
                self._build, self._config(), f"CUDA failed ({error})", self.settings.precision
            )
        )

    def _keep(self, opened: OpenEngine) -> Engine:
        self._open, self.fallback = opened, opened.fallback
        return opened.engine.start()

    def _build(self, config: EngineConfig) -> Engine:
        if self._checkpoint is None:
            self._checkpoint = load_model(self.settings)
        return Engine(self._checkpoint, config)

    def _config(self) -> EngineConfig:
        return EngineConfig(
            num_slots=1,
            max_positions=self.settings.max_positions,
            max_audio_s=self.settings.max_audio_s,
            num_threads=self.settings.threads,
            pack_dir=self.settings.data_dir / "packed",
        )


def _frames(max_audio_length_ms: int | None, frame_rate: float) -> int | None:
    if max_audio_length_ms is None:
        return None
    return max(1, int(max_audio_length_ms / 1000 * frame_rate))


def _point_latest_at(path: Path) -> None:
    link = path.with_name(f"{LATEST}{path.suffix}")
    if link.name == path.name:
        return
    fresh = path.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(path.name)
    fresh.replace(link)
