"""A prompt: the backbone's rows for context and text, and the budget they leave for speech.

Context segments come first (text rows, audio rows, one all-zero row that ends the audio), then the
text to be spoken. Nothing is ever cut in silence. Knows no tensors and no device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.engine.errors import PromptTooLong
from worker.engine.tokenizer import SpeechTokenizer

Rows = npt.NDArray[np.int64]
NO_TEXT = -1

SLOWEST_CHARS_PER_S = 6.0  # half the rate of slow speech: past it, an utterance has run away
USUAL_CHARS_PER_S = 15.0
SPARE_S = 3.0


@dataclass(frozen=True, eq=False)
class Prompt:
    """`text` (T,) holds token ids, NO_TEXT on audio rows; `frames` (T, K) codes, 0 on text rows."""

    text: Rows
    frames: Rows
    prefix_rows: int  # how many rows are context

    def __len__(self) -> int:
        return len(self.text)

    @property
    def prefix_key(self) -> str:
        """Names the context: equal keys mean equal rows."""
        rows = slice(0, self.prefix_rows)
        digest = hashlib.sha256(self.text[rows].tobytes())
        digest.update(self.frames[rows].tobytes())
        return digest.hexdigest()


def build_prompt(
    tokenizer: SpeechTokenizer,
    context: Sequence[tuple[int, str, Rows]],
    speaker_id: int,
    text: str,
    num_codebooks: int,
) -> Prompt:
    """`context` holds (speaker, text, codes (T, K)) in the order they were said."""
    pieces: list[tuple[Rows, Rows]] = []
    for speaker, said, codes in context:
        pieces += [_text_rows(tokenizer.encode(said, speaker), num_codebooks), _audio_rows(codes)]
    prefix_rows = sum(len(ids) for ids, _ in pieces)
    pieces.append(_text_rows(tokenizer.encode(text, speaker_id), num_codebooks))
    return Prompt(
        np.concatenate([ids for ids, _ in pieces]),
        np.concatenate([frames for _, frames in pieces]),
        prefix_rows,
    )


def frame_budget(
    prompt: Prompt, text: str, *, asked: int | None, max_frames: int, max_positions: int,
    frame_rate: float,
) -> int:  # fmt: skip
    """How many frames the utterance may take. Raises `PromptTooLong` with the figures."""
    free = max_positions - len(prompt)
    room = min(free, max_frames)
    usual = int(len(text) / USUAL_CHARS_PER_S * frame_rate)
    needed = max(1, usual if asked is None else asked)
    if needed > room:
        limit = (
            f"the prompt takes {len(prompt)} of {max_positions} rows"
            f" ({prompt.prefix_rows} of them context), which leaves room for"
            f" {max(room, 0) / frame_rate:.1f} s of speech"
            if free <= max_frames
            else f"one utterance may last {room / frame_rate:.1f} s here"
        )
        raise PromptTooLong(
            f"{limit}, but {needed / frame_rate:.1f} s"
            f" {'would be needed' if asked is None else 'were asked for'};"
            " shorten the text or the context, or split the text over several jobs"
        )
    if asked is not None:
        return asked
    plausible = (SPARE_S + len(text) / SLOWEST_CHARS_PER_S) * frame_rate
    return max(1, min(room, int(plausible)))


def _text_rows(ids: list[int], num_codebooks: int) -> tuple[Rows, Rows]:
    return np.array(ids, np.int64), np.zeros((len(ids), num_codebooks), np.int64)


def _audio_rows(codes: Rows) -> tuple[Rows, Rows]:
    end = np.zeros((1, codes.shape[1]), np.int64)
    return np.full(len(codes) + 1, NO_TEXT, np.int64), np.concatenate([codes, end])
