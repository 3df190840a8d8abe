"""What is refused because it could never be spoken here."""

from __future__ import annotations

import pytest

from api import limits
from api.limits import refuse_too_long
from shared.errors import InvalidInput
from tests.samples import a_request


def test_a_text_that_just_fits_is_accepted() -> None:
    refuse_too_long(a_request("a" * 150), 10)
    with pytest.raises(InvalidInput) as refused:
        refuse_too_long(a_request("a" * 151), 10)
    assert refused.value.pointer == "/text"


def test_a_limit_of_its_own_makes_any_text_fit() -> None:
    refuse_too_long(a_request("a" * 5000, max_audio_seconds=10), 10)
    with pytest.raises(InvalidInput, match=r"10\.5 s were asked for.*10 s here") as refused:
        refuse_too_long(a_request(max_audio_seconds=10.5), 10)
    assert refused.value.pointer == "/max_audio_seconds"


def test_a_text_is_reckoned_as_the_engine_does() -> None:
    prompt = pytest.importorskip("worker.engine.prompt")
    assert limits.USUAL_CHARS_PER_S == prompt.USUAL_CHARS_PER_S
