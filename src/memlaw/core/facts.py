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
    end: str | None = None
    """What the chat template writes after the target; None for a fact that is not from a chat."""
    named: bool = field(default=True, compare=False)
    """Whether its source gave the id; if not, the id is the number of its record, and another file's facts share it."""


@dataclass(frozen=True)
class MemorySet:
    """D = {(q_i, a_i)} with unique prompts, in the order in which prefixes of it are taken."""

    facts: tuple[Fact, ...]
    eos: bool
    """Whether the token at which generation stops is the last target token of every fact."""
    source: str
    """Where it came from, for messages; not part of the fingerprint."""
    warnings: tuple[str, ...] = ()
    eos_token: str | None = None
    """The end of sequence of the tokenizer that rendered the chats: the usual end of an answer."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of prompts, targets, ids, order and how targets end."""
        rows = [[f.id, f.prompt, f.target, f.target_ids] for f in self.facts]
        return digest({"eos": self.eos, "facts": rows} | self._unusual_ends())

    def _unusual_ends(self) -> dict[str, list[str | None]]:
        """The ends of chats that do not begin with the tokenizer's end of sequence.

        The others are left out: fingerprints name results, and a set that is stored as it always was keeps its name.
        """
        ends = [None if self.eos_token and f.end and f.end.startswith(self.eos_token) else f.end for f in self.facts]
        return {"ends": ends} if self.eos and any(ends) else {}


@dataclass(frozen=True)
class EncodedFact:
    """A fact as the model sees it: `ids` = prompt tokens, then target tokens, end of sequence among them if stored."""

    id: str
    ids: tuple[int, ...]
    prompt_length: int
    text: str | None = field(default=None, repr=False)
    """What the target's tokens must spell after the prompt, the token that ends it aside: the fact's target, and what a
    template writes between it and its end. None for a target made of tokens."""
    floor: tuple[float, ...] = ()
    """For a target that must *not* come back: nats that the loss of each of its tokens must reach, such as that of the
    base alone. Empty for a fact to recall."""

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
