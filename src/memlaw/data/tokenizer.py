"""What memlaw asks of a tokenizer. Every Hugging Face tokenizer answers; this package imports none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """Text to token ids, with the special tokens that frame a prompt and end a target."""

    bos_token_id: int | None
    eos_token_id: int | None
    all_special_ids: Sequence[int]
    chat_template: Any
    """None where the tokenizer cannot render chats."""

    def __len__(self) -> int:
        """Size of the vocabulary, added tokens included."""

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> list[int]: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str: ...


def token_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The tokens of `text` alone, no special token added. Quiet: the context is checked where it is known."""
    return tuple(tokenizer.encode(text, add_special_tokens=False, verbose=False))
