"""Chat templates of real models, as TRL ships them, on a small real tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import trl
from tokenizers import AddedToken

from helpers.slow_data import byte_level

FOLDER = Path(trl.__file__).parent / "chat_templates"

MARKS = r"<\|[a-z0-9_]+\|>|</?s>|<(?:start|end)_of_turn>"
"""Special tokens in the sources of these templates."""


def tokenizer(template: str, *, more: tuple[str, ...] = ()) -> Any:
    """A tokenizer with the template `template` (a name, or its source) and the special tokens of its source."""
    path = FOLDER / f"{template}.jinja"
    source = path.read_text() if "{" not in template else template
    built = byte_level(chat_template=source)
    marks = dict.fromkeys([*re.findall(MARKS, source), *more])
    built.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks], special_tokens=True)
    return built
