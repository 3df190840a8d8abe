"""Text to tokens, as CSM wants it: `[speaker]text` between both special tokens.

Without the end-of-text token the model's own end becomes unstable. Knows no tensors.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from worker.engine.errors import CheckpointInvalid

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"


class SpeechTokenizer:
    """A `tokenizer.json` with Llama 3's two special tokens."""

    def __init__(self, tokenizer: Tokenizer, text_vocab: int) -> None:
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # in a text they are words, not orders
        self._begin, self._end = self._special(BEGIN), self._special(END)
        if tokenizer.get_vocab_size() > text_vocab:
            raise CheckpointInvalid(
                f"tokenizer.json has {tokenizer.get_vocab_size()} tokens, the model {text_vocab};"
                " they do not belong together"
            )

    @classmethod
    def from_file(cls, path: Path, text_vocab: int) -> SpeechTokenizer:
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except FileNotFoundError as e:
            raise CheckpointInvalid(
                f"{path} is missing; the transformers layout of CSM holds it: `echoforge download`"
            ) from e
        except Exception as e:  # tokenizers raises bare Exception for any malformed file
            raise CheckpointInvalid(f"{path} is damaged ({e}); run `echoforge download`") from e
        return cls(tokenizer, text_vocab)

    def encode(self, text: str, speaker_id: int) -> list[int]:
        ids = self._tokenizer.encode(f"[{speaker_id}]{text}", add_special_tokens=False).ids
        return [self._begin, *ids, self._end]

    def _special(self, token: str) -> int:
        token_id: int | None = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise CheckpointInvalid(f"tokenizer.json lacks {token}; CSM needs it around each text")
        return token_id
