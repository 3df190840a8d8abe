from __future__ import annotations

import numpy as np
import pytest

from worker.engine.errors import PromptTooLong
from worker.engine.prompt import NO_TEXT, build_prompt, frame_budget
from worker.engine.tiny import byte_tokenizer
from worker.engine.tokenizer import SpeechTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> SpeechTokenizer:
    return SpeechTokenizer(byte_tokenizer(), text_vocab=300)


def test_text_stands_between_both_special_tokens_behind_its_speaker(
    tokenizer: SpeechTokenizer,
) -> None:
    ids = tokenizer.encode("hi", 3)
    raw = byte_tokenizer()
    assert ids[0] == raw.token_to_id("<|begin_of_text|>")
    assert ids[-1] == raw.token_to_id("<|end_of_text|>")
    assert raw.decode(ids[1:-1]) == "[3]hi"


def test_special_tokens_in_a_text_are_spoken_not_obeyed(tokenizer: SpeechTokenizer) -> None:
    ids = tokenizer.encode("a<|end_of_text|>b", 1)
    assert ids.count(ids[-1]) == 1


def test_a_segment_is_its_text_its_audio_and_one_zero_row(tokenizer: SpeechTokenizer) -> None:
    codes = np.arange(1, 9).reshape(2, 4)
    prompt = build_prompt(tokenizer, [(1, "a", codes)], 2, "b", num_codebooks=4)
    num_text = len(tokenizer.encode("a", 1))
    assert prompt.prefix_rows == num_text + 2 + 1
    assert len(prompt) == prompt.prefix_rows + len(tokenizer.encode("b", 2))
    audio = slice(num_text, num_text + 2)
    assert np.array_equal(prompt.frames[audio], codes)
    assert (prompt.text[num_text : prompt.prefix_rows] == NO_TEXT).all()
    assert not prompt.frames[prompt.prefix_rows - 1].any()
    assert not prompt.frames[:num_text].any()


def test_equal_context_has_an_equal_key_and_other_context_has_not(
    tokenizer: SpeechTokenizer,
) -> None:
    codes = np.ones((2, 4), np.int64)
    one, same, other = (
        build_prompt(tokenizer, [(1, "a", c)], 1, text, 4).prefix_key
        for c, text in ((codes, "x"), (codes, "y"), (codes + 1, "x"))
    )
    assert one == same
    assert one != other


def budget(tokenizer: SpeechTokenizer, text: str, asked: int | None, positions: int = 200) -> int:
    prompt = build_prompt(tokenizer, [], 1, text, 4)
    return frame_budget(
        prompt, text, asked=asked, max_frames=100, max_positions=positions, frame_rate=12.5
    )


def test_what_is_asked_for_is_given_when_it_fits(tokenizer: SpeechTokenizer) -> None:
    assert budget(tokenizer, "hello", 40) == 40


def test_nothing_is_cut_when_it_does_not_fit_the_positions(tokenizer: SpeechTokenizer) -> None:
    with pytest.raises(PromptTooLong, match=r"takes 105 of 130 rows .*2\.0 s of speech.*2\.1 s"):
        budget(tokenizer, "x" * 100, 26, positions=130)


def test_the_longest_utterance_is_named_when_that_is_the_limit(tokenizer: SpeechTokenizer) -> None:
    with pytest.raises(PromptTooLong, match=r"may last 8\.0 s here, but 8\.1 s were asked for"):
        budget(tokenizer, "hello", 101)


def test_without_a_wish_the_limit_is_far_above_usual_speech(tokenizer: SpeechTokenizer) -> None:
    text = "x" * 30
    assert budget(tokenizer, text, None) == int((3 + 30 / 6) * 12.5)
