"""Samples to a file: WAV or FLAC, 16 bits, mono, through PyAV.

Knows containers and sample formats; knows nothing of where files live or what they are called.
"""

from __future__ import annotations

from typing import BinaryIO, cast

import av
import numpy as np
import numpy.typing as npt

CODECS = {"wav": "pcm_s16le", "flac": "flac"}
CONTENT_TYPES = {"wav": "audio/wav", "flac": "audio/flac"}
BLOCK = 16_384  # samples an encoder call: long single calls have crashed encoders of the field
MADE_BY = "AI-generated speech (EchoForge)"


def write_audio(
    file: BinaryIO, audio: npt.NDArray[np.float32], sample_rate: int, kind: str
) -> None:
    """Writes float samples (n,) in -1..1 to a seekable binary file. OSError is the disk's."""
    samples = np.clip(np.rint(audio * 32767.0), -32768, 32767).astype(np.int16)
    with av.open(file, "w", format=kind) as container:
        container.metadata["comment"] = MADE_BY
        stream = cast(
            av.AudioStream, container.add_stream(CODECS[kind], rate=sample_rate, layout="mono")
        )
        for start in range(0, len(samples), BLOCK):
            frame = av.AudioFrame.from_ndarray(
                samples[None, start : start + BLOCK], format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts = sample_rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
