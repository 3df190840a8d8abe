"""What this installation can never speak, refused before it is queued. Knows no HTTP.

Length in time only: whether the prompt fits into a slot is known to the worker alone.
"""

from __future__ import annotations

from shared.errors import InvalidInput
from shared.jobs import SpeechRequest

USUAL_CHARS_PER_S = 15.0  # as the engine reckons, in worker/engine/prompt.py


def refuse_too_long(request: SpeechRequest, max_audio_s: float) -> None:
    """Raises InvalidInput with the figures."""
    asked = request.max_audio_seconds
    if asked is not None and asked > max_audio_s:
        raise InvalidInput(
            f"{asked:g} s were asked for, but one job may last {max_audio_s:g} s here; ask for"
            " less, and split the text over several jobs",
            "/max_audio_seconds",
        )
    usual_s = len(request.text) / USUAL_CHARS_PER_S
    if asked is None and usual_s > max_audio_s:
        raise InvalidInput(
            f"about {usual_s:.0f} s of speech; at most {max_audio_s:g} s here; split the text"
            " over several jobs, or set max_audio_seconds to take only the beginning",
            "/text",
        )
