"""The interface of a tokenizer, and loading one by the name of its model, without torch where that is safe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from memlaw.core.canonical import digest
from memlaw.core.errors import ModelError, first_line
from memlaw.model.files import BUNDLED, file_of, is_gguf, source_of
from memlaw.model.gguf import stops_of_gguf, tokenizer_of_gguf


class Tokenizer(Protocol):
    """Turns text into token ids, and knows the special tokens that frame a prompt and end a target."""

    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    all_special_ids: Sequence[int]
    chat_template: Any
    """None where the tokenizer cannot render chats."""

    def __len__(self) -> int:
        """Size of the vocabulary, added tokens included."""

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> list[int]: ...

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool, **options: Any
    ) -> str: ...

    def get_chat_template(self, *, tools: list[dict[str, Any]] | None = None) -> str:
        """The source of the template that renders a chat with these tools."""


def token_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The tokens of `text` alone, without special tokens."""
    # Not verbose, or texts longer than the context cause a warning: `data.encoding.check_context` refuses those.
    return tuple(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """The tokens that are marks and no text: <|im_end|>, end of sequence, ...; the unknown token stands for text."""
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    marks = {id_: str(token) for id_, token in added.items() if token.special or id_ in tokenizer.all_special_ids}
    unknown = getattr(tokenizer, "unk_token_id", None)
    return {id_: mark for id_, mark in marks.items() if id_ != unknown}


def stop_ids(tokenizer: Tokenizer, generation_config: Any) -> tuple[int, ...]:
    """The ids at which `generate` stops, by the model's generation config: the tokenizer's eos first if it is one.

    `generation_config` is that of a model (`model.generation_config`) or the content of generation_config.json. Empty
    where `generate` never stops by itself: it does not ask the tokenizer. Without a config (None), the tokenizer's eos
    is all that is known.
    """
    eos = tokenizer.eos_token_id
    if generation_config is None:
        return () if eos is None else (eos,)
    if isinstance(generation_config, Mapping):
        named = generation_config.get("eos_token_id")
    else:
        named = getattr(generation_config, "eos_token_id", None)
    ids = () if named is None else (named,) if isinstance(named, int) else tuple(int(token) for token in named)
    return tuple(dict.fromkeys(sorted(ids, key=lambda token: token != eos)))


def stop_ids_of_files(name: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """`stop_ids` by the files of a Hub id, a local directory or `memlaw/base`, as transformers reads them. No torch.

    A GGUF file needs torch. Raises ModelError.
    """
    source = source_of(name)
    if is_gguf(source):
        return stop_ids(tokenizer, {"eos_token_id": stops_of_gguf(source) or None})
    path = file_of(source, "generation_config.json")
    if path is not None:
        return stop_ids(tokenizer, _json(path))
    config = _json(file_of(source, "config.json"))
    text: Mapping[str, Any] = next(
        (config[part] for part in ("decoder", "generator", "text_config") if config.get(part)), {}
    )
    own = config.get("eos_token_id")
    return stop_ids(tokenizer, {"eos_token_id": text.get("eos_token_id") if own is None else own})


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of all that turns text into ids: the fast tokenizer's own JSON, or else the vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    for state in ("truncation", "padding"):  # left by the last call, and no part of the vocabulary
        rules.pop(state, None)
    return digest({"rules": rules, "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()}})


def auto_tokenizer(name: str) -> Any:
    """Load the tokenizer of a Hub id, a directory, a GGUF file or `memlaw/base` with `transformers.AutoTokenizer`.

    This imports torch. Raises ModelError.
    """
    return _load_checked(name, _load_auto)


def load_tokenizer(name: str = BUNDLED) -> Any:
    """Load the same tokenizer without torch if its files identify it, else as `auto_tokenizer` does.

    They identify it if tokenizer_config.json names the general class, which follows tokenizer.json, or a class whose
    own rules agree with tokenizer.json. A GGUF file never does. Raises ModelError.
    """
    return _load_checked(name, lambda source: _load_by_files(source) or _load_auto(source))


def _load_checked(name: str, load: Callable[[str], Any]) -> Any:
    source = source_of(name)
    try:
        tokenizer = load(source)
        # Without files, transformers builds a tokenizer that has nothing but special tokens.
        usable = len(tokenizer.get_vocab()) > len(tokenizer.all_special_tokens)
        reason = "its vocabulary is empty"
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises a bare Exception for a file that it cannot read
        usable, reason = False, first_line(error)
    if not usable:
        raise ModelError(
            f"{name} has no tokenizer that can be loaded ({reason}), and facts are stored as tokens. Save the "
            "tokenizer beside the weights with `tokenizer.save_pretrained(...)`."
        )
    return tokenizer


def _load_auto(source: str) -> Any:
    if is_gguf(source):
        return tokenizer_of_gguf(source)
    import transformers

    return transformers.AutoTokenizer.from_pretrained(source)


_GENERAL_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Names of the class that follows tokenizer.json, before and since version 5 of transformers."""


def _load_by_files(source: str) -> Any:
    """The tokenizer; None if its files do not fully determine it."""
    if is_gguf(source):
        return None
    rules, config = (_json(file_of(source, file)) for file in ("tokenizer.json", "tokenizer_config.json"))
    named = config.get("tokenizer_class")
    if not rules or "auto_map" in config or not isinstance(named, str):
        return None
    import transformers

    general = transformers.PreTrainedTokenizerFast
    if named in _GENERAL_CLASSES:
        return general.from_pretrained(source)
    # AutoTokenizer knows for which models this name is wrong, but importing it imports torch.
    kind: Any = getattr(transformers, named.removesuffix("Fast"), None)
    reads_tokenizer_json = isinstance(kind, type) and issubclass(kind, general)
    if not reads_tokenizer_json:
        return None
    tokenizer = kind.from_pretrained(source)
    return tokenizer if _follows(rules, tokenizer.backend_tokenizer) else None


_BPE_SETTINGS = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
                 "ignore_merges", "dropout")  # fmt: skip
"""Settings of a byte-pair encoding besides its vocabulary and merges."""


def _follows(rules: dict[str, Any], backend: Any) -> bool:
    """Whether a tokenizer with the vocabulary of tokenizer.json follows the other rules of that file too."""
    from tokenizers import Tokenizer

    if rules["model"].get("type") != "BPE":
        return False
    without_vocabulary = {**rules, "added_tokens": [], "model": {**rules["model"], "vocab": {}, "merges": []}}
    written = Tokenizer.from_str(json.dumps(without_vocabulary))
    return (
        all(getattr(backend.model, setting) == getattr(written.model, setting) for setting in _BPE_SETTINGS)
        and _settings(backend.normalizer) == _settings(written.normalizer)
        and _settings(backend.pre_tokenizer) == _settings(written.pre_tokenizer)
    )


def _settings(step: Any) -> Any:
    """The settings of a normalizer or pre-tokenizer, except the one that changes offsets but no token."""
    if step is None:
        return None
    return json.loads(step.__getstate__(), object_hook=lambda o: {k: v for k, v in o.items() if k != "trim_offsets"})


def _json(path: Path | None) -> dict[str, Any]:
    content = {} if path is None else json.loads(path.read_bytes())
    return content if isinstance(content, dict) else {}
