"""What memlaw asks of a tokenizer, and how one is loaded by the name of its model, without torch where that is sure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from memlaw.core.canonical import digest
from memlaw.core.errors import ModelError, first_line
from memlaw.model.files import BUNDLED, file_of, source_of


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


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of everything that turns text into ids: the fast tokenizer's own JSON, or the vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    for passing in ("truncation", "padding"):
        rules.pop(passing, None)
    return digest({"rules": rules, "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()}})


def auto_tokenizer(name: str) -> Any:
    """The tokenizer that `transformers.AutoTokenizer` loads for a Hub id, a local directory or `memlaw/base`.

    It imports torch. Raises ModelError.
    """
    return _checked(name, _auto)


def load_tokenizer(name: str = BUNDLED) -> Any:
    """The same tokenizer without torch, where its files say which it is; elsewhere by way of `auto_tokenizer`.

    They say so if tokenizer_config.json names the general class, which does what tokenizer.json says, or one that
    brings rules of its own, and they are those of tokenizer.json. Raises ModelError.
    """
    return _checked(name, lambda source: _by_files(source) or _auto(source))


def _checked(name: str, load: Callable[[str], Any]) -> Any:
    source = source_of(name)
    try:
        tokenizer = load(source)
        # Without files transformers builds the class with nothing in it but special tokens.
        found = len(tokenizer.get_vocab()) > len(tokenizer.all_special_tokens)
        reason = "its vocabulary is empty"
    except ModelError:
        raise
    except Exception as error:  # of a file that it cannot read, the tokenizers library says so in a bare Exception
        found, reason = False, first_line(error)
    if not found:
        raise ModelError(
            f"{name} has no tokenizer that can be loaded ({reason}); facts are stored as its tokens, so memlaw needs "
            "it. Save it beside the weights with `tokenizer.save_pretrained(...)`."
        )
    return tokenizer


def _auto(source: str) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(source)


_GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""What transformers calls, before and since version 5, the class that does what tokenizer.json says."""


def _by_files(source: str) -> Any:
    """The tokenizer, None unless its class is one for which the files tell all."""
    rules, config = (_json(file_of(source, file)) for file in ("tokenizer.json", "tokenizer_config.json"))
    named = config.get("tokenizer_class")
    if not rules or "auto_map" in config or not isinstance(named, str):
        return None
    import transformers

    general = transformers.PreTrainedTokenizerFast
    if named in _GENERAL:
        return general.from_pretrained(source)
    # AutoTokenizer knows for which models this name is wrong, but it imports torch to be asked.
    kind: Any = getattr(transformers, named.removesuffix("Fast"), None)
    reads_tokenizer_json = isinstance(kind, type) and issubclass(kind, general)
    if not reads_tokenizer_json:
        return None
    tokenizer = kind.from_pretrained(source)
    return tokenizer if _cuts_by(rules, tokenizer.backend_tokenizer) else None


_OF_THE_MODEL = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
                 "ignore_merges", "dropout")  # fmt: skip
"""What a byte-pair encoding has beside its vocabulary and merges."""


def _cuts_by(rules: dict[str, Any], backend: Any) -> bool:
    """Whether a tokenizer that took the vocabulary of tokenizer.json cuts text by the other rules of that file too."""
    from tokenizers import Tokenizer

    if rules["model"].get("type") != "BPE":
        return False
    without_vocabulary = {**rules, "added_tokens": [], "model": {**rules["model"], "vocab": {}, "merges": []}}
    filed = Tokenizer.from_str(json.dumps(without_vocabulary))
    return (
        all(getattr(backend.model, setting) == getattr(filed.model, setting) for setting in _OF_THE_MODEL)
        and _state(backend.normalizer) == _state(filed.normalizer)
        and _state(backend.pre_tokenizer) == _state(filed.pre_tokenizer)
    )


def _state(step: Any) -> Any:
    """The settings of a normalizer or pre-tokenizer, but for the one that moves offsets and no token."""
    if step is None:
        return None
    return json.loads(step.__getstate__(), object_hook=lambda o: {k: v for k, v in o.items() if k != "trim_offsets"})


def _json(path: Path | None) -> dict[str, Any]:
    found = {} if path is None else json.loads(path.read_bytes())
    return found if isinstance(found, dict) else {}
