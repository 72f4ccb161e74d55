"""How facts are read: the choices that a file leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from memlaw.core.errors import ConfigError

OnConflict = Literal["error", "first", "last"]
"""What to do with a prompt that has several targets: refuse the set, or keep the first or the last of them."""


Turns = Literal["last", "all"]
"""Which answers of a chat are stored: each with its history as prompt, or the last alone."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How facts are read. Raises ConfigError for a choice that does not exist or half a pair of fields."""

    eos: bool | None = None
    """Whether every target ends with end-of-sequence; None: yes for records, no for one long target."""
    on_conflict: OnConflict = "error"
    turns: Turns = "all"
    prompt_field: str | None = None
    """The field or column of the prompts, given together with that of the targets; None: recognised by name."""
    target_field: str | None = None

    def __post_init__(self) -> None:
        if self.on_conflict not in get_args(OnConflict):
            raise ConfigError(f"on_conflict is {self.on_conflict!r}; known: {', '.join(get_args(OnConflict))}.")
        if self.turns not in get_args(Turns):
            raise ConfigError(f"turns is {self.turns!r}; known: {', '.join(get_args(Turns))}.")
        prompt, target = self.prompt_field, self.target_field
        if (prompt, target) != (None, None) and (prompt is None or target is None or prompt == target):
            raise ConfigError(
                f"prompt_field is {prompt!r} and target_field is {target!r}: a record has two parts, so name two "
                "different fields, or neither to have them recognised."
            )

    @property
    def fields(self) -> tuple[str, str] | None:
        """The fields of prompt and target, None where they are to be recognised."""
        if self.prompt_field is None or self.target_field is None:
            return None
        return self.prompt_field, self.target_field
