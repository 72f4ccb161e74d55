"""Neutral text: what no fact is about, and what an adapter should therefore leave as it is."""

from __future__ import annotations

import functools
import importlib.resources
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from memlaw.core.errors import DataError, ModelError
from memlaw.core.facts import MemorySet
from memlaw.data import leading_bos, read_text
from memlaw.model.base import Base
from memlaw.model.sampling import EVALUATION_SEED, sampled, start_of
from memlaw.model.tokenizer import token_ids

WINDOW = 256
"""Tokens of text that are read at once, in models whose context has room for them."""

WINDOWS = 16
"""Windows of a text at most, spread evenly over it."""

SAMPLED = (32, 64)
"""Rows, and tokens of each, that are sampled from the base."""

PROSE_SOURCE = "Jerome K. Jerome, Three Men in a Boat (1889), from chapter I; in the public domain"

_TELLING = 4  # characters of a target that is looked for in a neutral text


@dataclass(frozen=True, eq=False)
class NeutralText:
    """Rows of tokens [rows, time] of one text, int64; the first of each row is given, the others are predicted."""

    name: str
    rows: Tensor


def neutral_texts(base: Base, file: Path | None = None, memory_set: MemorySet | None = None) -> tuple[NeutralText, ...]:
    """The user's `file` as plain text or, without one, text sampled from the base and a page of prose.

    A base that has no token to sample from gets the prose alone. The bare base samples, so nothing may be attached to
    it. Raises DataError for a file that cannot be read or is shorter than a window; warns if it holds targets of
    `memory_set`.
    """
    if file is not None:
        return (file_text(base, file, memory_set),)
    prose = NeutralText("prose", _windows(base, token_ids(base.tokenizer, _prose())))
    try:
        start_of(base)
    except ModelError:
        return (prose,)
    rows, tokens = SAMPLED
    if base.context is not None:
        tokens = min(tokens, base.context - 1)
    return NeutralText("sampled", sampled(base, rows, tokens, seed=EVALUATION_SEED)), prose


def file_text(base: Base, file: Path, memory_set: MemorySet | None = None) -> NeutralText:
    """The neutral text of a file, at most 16 windows of 256 tokens. Raises DataError; warns of targets in it."""
    text = _text(file)
    ids = token_ids(base.tokenizer, text)
    window = _window(base)
    if len(ids) < window:
        raise DataError(
            f"The neutral text {file} has {len(ids)} tokens under this tokenizer, and side effects are measured in "
            f"windows of {window}. Give a longer text, of the kind that the model should stay good at."
        )
    leaked = [] if memory_set is None else _targets_in(text, memory_set)
    if leaked:
        warnings.warn(
            f"The neutral text {file} holds the targets of {len(leaked)} facts (first {leaked[0]!r}), whose loss falls "
            "when they are stored: the harm would look smaller than it is. Leave them out of it.",
            stacklevel=2,
        )
    return NeutralText("file", _windows(base, ids))


def _text(file: Path) -> str:
    if file.is_file() and not file.read_bytes().strip():
        raise DataError(f"The neutral text {file} is empty. Give a text that the model should stay good at.")
    return read_text(file)


@functools.cache
def _prose() -> str:
    return (importlib.resources.files("memlaw.diagnosis") / "neutral_prose.txt").read_text(encoding="utf-8")


def _window(base: Base) -> int:
    return WINDOW if base.context is None else min(WINDOW, base.context - 1)


def _windows(base: Base, ids: Sequence[int]) -> Tensor:
    """Whole windows of the tokens, each after the beginning of sequence if the tokenizer writes one."""
    bos = leading_bos(base.tokenizer)
    window = max(1, min(_window(base), len(ids)))
    whole = len(ids) // window
    chosen = range(whole) if whole <= WINDOWS else [place * whole // WINDOWS for place in range(WINDOWS)]
    return torch.tensor([[*bos, *ids[place * window : (place + 1) * window]] for place in chosen])


def _targets_in(text: str, memory_set: MemorySet) -> list[str]:
    """Ids of the facts whose target stands in a text."""
    return [fact.id for fact in memory_set.facts if len(key := fact.target.strip()) >= _TELLING and key in text]
