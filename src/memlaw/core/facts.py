"""Facts: pairs of a prompt and the target to be recalled, as text and as the tokens of a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from memlaw.core.canonical import digest


@dataclass(frozen=True)
class Fact:
    """One pair (q, a): shown `prompt`, the model must emit `target`, character by character."""

    prompt: str
    target: str
    id: str
    line: int | None = None
    """Line, item or row (from 1) in its source, for messages; not part of its identity."""
    target_ids: tuple[int, ...] | None = None
    """Exact target tokens of a target that was generated as tokens, which its text may not reproduce."""


@dataclass(frozen=True)
class MemorySet:
    """D = {(q_i, a_i)} with unique prompts, in the order in which prefixes of it are taken."""

    facts: tuple[Fact, ...]
    eos: bool
    """Whether the end-of-sequence token is the last target token of every fact."""
    source: str
    """Where it came from, for messages; not part of the fingerprint."""
    warnings: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of prompts, targets, ids, order and the end-of-sequence rule."""
        rows = [[f.id, f.prompt, f.target, f.target_ids] for f in self.facts]
        return digest({"eos": self.eos, "facts": rows})


@dataclass(frozen=True)
class EncodedFact:
    """A fact as the model sees it: `ids` = prompt tokens, then target tokens, end of sequence among them if stored."""

    id: str
    ids: tuple[int, ...]
    prompt_length: int
    text: str | None = field(default=None, repr=False)
    """What the target's tokens must spell after the prompt, end of sequence aside; None for a target made of tokens."""

    @property
    def target(self) -> tuple[int, ...]:
        return self.ids[self.prompt_length :]

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.ids[: self.prompt_length]

    @property
    def length(self) -> int:
        """Target tokens."""
        return len(self.ids) - self.prompt_length
