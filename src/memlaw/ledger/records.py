"""What a ledger says of its facts and versions, as JSON. Texts are hashed with the ledger's key, never spelled out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter

from memlaw.core.canonical import canonical_json
from memlaw.core.config import Number, TrainConfig, Whole
from memlaw.core.facts import Fact
from memlaw.core.precision import TOLERANCE
from memlaw.core.side_effects import SideEffects, worst

FORMAT = 1
"""Goes up when an older memlaw would misread a ledger; that memlaw then refuses it."""

AT_RISK = TOLERANCE["bfloat16"]
"""Nats: without a measured rounding, facts of a smaller margin are at risk, since rounding weights to bfloat16 may move
a loss by as much."""

Verdict = Literal["certified", "ordered", "lost"]
"""lost: published although it does not come back (`--allow-loss`)."""

Pair = tuple[str, str]
"""Hashes of a prompt and a target."""

T = TypeVar("T")

_NO_OTHER_FIELDS = ConfigDict(extra="forbid")

_DESCRIBED = ConfigDict(extra="forbid", use_attribute_docstrings=True)
"""The string under a field becomes its description in the schema of a document."""


@dataclass(frozen=True)
class Settings:
    """What all versions of a ledger share; the content of ledger.json."""

    __pydantic_config__: ClassVar[ConfigDict] = _NO_OTHER_FIELDS

    model: str
    """Name or path of the base model."""
    base: str
    """Fingerprint of its weights."""
    tokenizer: str
    """Fingerprint of its tokenizer."""
    placement: str
    rank: Whole
    """Rank of the first version; a version says its own."""
    scale: Number
    """The factor before x A B, at every rank."""
    train: TrainConfig
    eos: bool
    """Whether the token at which generation stops is the last target token of every fact."""
    texts: bool
    """Whether prompts and targets are kept as text."""
    key: str = field(repr=False)
    """Secret of the hashes, in hexadecimal: without it, nobody can try texts until one has the hash."""
    format: Whole = FORMAT


@dataclass(frozen=True)
class Held:
    """A fact that a version holds."""

    __pydantic_config__: ClassVar[ConfigDict] = _NO_OTHER_FIELDS

    id: str
    prompt: str
    """Hash of the prompt (`prompt_hash`)."""
    target: str
    """Hash of the target (`target_hash`)."""
    tokens: Whole
    """Target tokens."""
    margin: Number
    """ln 2 - max_t nll_t in nats, as last measured: positive means that every token is ordered."""
    verdict: Verdict
    since: Whole
    """The version that introduced this target, whose facts.jsonl has its text."""
    adapter: Whole = 1
    """The adapter that brings it back: the one to serve its prompt with."""

    @property
    def pair(self) -> Pair:
        return self.prompt, self.target


@dataclass(frozen=True)
class Retracted:
    """A target that must no longer come back: of a retracted fact, or the old one of a changed fact."""

    __pydantic_config__: ClassVar[ConfigDict] = _NO_OTHER_FIELDS

    id: str
    """Its id when it was held; a fact that is held now may have the same."""
    prompt: str
    target: str
    tokens: Whole
    since: Whole
    """The version that introduced it."""
    until: Whole
    """The version that dropped it."""
    log_p: Number
    """Log of the probability, in nats, that sampling emits the whole target, when last measured."""
    log_p_base: Number
    """The same of the base alone."""
    adapter: Whole = 1
    """The adapter that held it."""

    @property
    def pair(self) -> Pair:
        return self.prompt, self.target


@dataclass(frozen=True)
class Change:
    """What a version did to its parent, as ids."""

    __pydantic_config__: ClassVar[ConfigDict] = _DESCRIBED

    added: tuple[str, ...] = ()
    """Facts whose prompt it did not hold."""
    changed: tuple[str, ...] = ()
    """Facts with another target than before."""
    retracted: tuple[str, ...] = ()
    """Facts that must no longer come back."""
    lost: tuple[str, ...] = ()
    """Facts that it should hold and does not."""


@dataclass(frozen=True)
class Effort:
    """What the training of a version took."""

    __pydantic_config__: ClassVar[ConfigDict] = _DESCRIBED

    steps: Whole
    """Optimizer steps."""
    tokens_forwarded: Whole
    """Tokens that went through the model: training, rehearsal and measuring."""
    seconds: Number
    loss_init: Number | None
    """Mean loss of the trained target tokens before the first step, nats; None if nothing was trained."""
    loss_final: Number | None


@dataclass(frozen=True)
class Room:
    """How many more target tokens like the stored ones fit, with a 95% interval."""

    __pydantic_config__: ClassVar[ConfigDict] = _DESCRIBED

    tokens: Number
    low: Number
    high: Number | None
    """None: no upper end is known."""


@dataclass(frozen=True)
class Adapter:
    """One adapter of a version: a version whose facts do not fit into one has several, and each fact one of them."""

    __pydantic_config__: ClassVar[ConfigDict] = _NO_OTHER_FIELDS

    number: Whole
    """From 1; the name of its folder."""
    rank: Whole
    trained: Whole
    """The version that trained it last."""
    tokens: Whole
    """Target tokens of the facts that it brings back."""
    learning_rate: Number = 0.0
    """Of the first step; later updates take the same."""
    protection: Number = 0.0
    """Weight of protection at the end, from which the next update goes on."""
    side_effects: SideEffects | None = None
    room: Room | None = None
    rounding: Number | None = None
    """Measured difference in nats between teacher-forced and cached losses; None: not measured."""


@dataclass(frozen=True)
class Version:
    """One state of the knowledge; the content of manifest.json, with the hashes of the other files beside it."""

    __pydantic_config__: ClassVar[ConfigDict] = _NO_OTHER_FIELDS

    number: Whole
    parent: Whole | None
    """The version that it was trained from; None for version 0."""
    held: tuple[Held, ...]
    retracted: tuple[Retracted, ...]
    change: Change
    rank: Whole
    """Rank of the adapter that new facts go to."""
    created: str
    """ISO 8601, for people; nothing depends on it."""
    effort: Effort | None = None
    adapters: tuple[Adapter, ...] = ()
    """By number; new facts go to the last."""

    @property
    def side_effects(self) -> SideEffects | None:
        """Of the adapter that costs the model most: a prompt is served with one of them."""
        return worst(one.side_effects for one in self.adapters)

    @property
    def room(self) -> Room | None:
        """Of the adapter that new facts go to."""
        return self.adapters[-1].room if self.adapters else None

    @property
    def rounding(self) -> float | None:
        """The largest of all adapters; None: not measured."""
        return max((one.rounding for one in self.adapters if one.rounding is not None), default=None)

    @property
    def tokens(self) -> int:
        """Target tokens of the facts that come back."""
        return sum(fact.tokens for fact in self.held if fact.verdict != "lost")

    def asked_of(self, old: Retracted) -> int:
        """The adapter from which a dropped target must not come back: the one that its prompt is served with, which
        holds the fact as it is now, or the one that held the target."""
        return self._homes.get(old.prompt, old.adapter)

    def asked(self) -> tuple[int, ...]:
        """The numbers of all adapters that are asked for facts or for dropped targets, in order."""
        return tuple(sorted({*self._homes.values(), *map(self.asked_of, self.retracted)}))

    @cached_property
    def _homes(self) -> dict[str, int]:
        return {fact.prompt: fact.adapter for fact in self.held}

    def at_risk(self) -> tuple[Held, ...]:
        """Facts that come back with a margin below the measured rounding, or AT_RISK if none was measured."""
        return _at_risk(self.held, self.rounding)


@dataclass(frozen=True)
class Audit:
    """The facts of a version, measured again; the content of audits/NUMBER.json."""

    __pydantic_config__: ClassVar[ConfigDict] = _NO_OTHER_FIELDS

    version: Whole
    held: tuple[Held, ...]
    retracted: tuple[Retracted, ...]
    adapter: str
    """Path of the adapter that was measured, for people; empty for the version's own."""
    created: str
    side_effects: SideEffects | None = None
    rounding: Number | None = None
    returned: tuple[str, ...] = ()
    """Ids of targets that must not come back and do."""

    def at_risk(self) -> tuple[Held, ...]:
        """As `Version.at_risk`, by what was measured now."""
        return _at_risk(self.held, self.rounding)


@dataclass(frozen=True)
class Status:
    """A ledger in a few numbers: what `memlaw ledger status` prints."""

    __pydantic_config__: ClassVar[ConfigDict] = _DESCRIBED

    version: int
    facts: int
    """Facts that should come back."""
    certified: int
    at_risk: int
    """Facts that come back with a margin below the measured rounding."""
    lost: int
    """Facts that do not come back, published under `--allow-loss`."""
    retracted: int
    """Targets that must not come back."""
    tokens: int
    """Target tokens of the facts that come back."""
    rank: int
    """Rank of the adapter that new facts go to."""
    adapters: int
    """Adapters that the facts are spread over; a prompt is served with the one that holds its fact."""
    versions: int
    """Complete versions, also those that no update builds on."""
    room: Room | None
    side_effects: SideEffects | None
    advice: str
    """What to do next."""


def prompt_hash(prompt: str, key: str) -> str:
    """The keyed hash of a prompt: 32 hexadecimal digits. Facts are the same fact if their prompts are."""
    return _hash(prompt, key)


def target_hash(fact: Fact, key: str) -> str:
    """The keyed hash of what a fact's prompt should bring: its target, exact tokens and the end of a chat's answer."""
    return _hash(canonical_json([fact.target, fact.target_ids, fact.end]), key)


def pair_of(fact: Fact, key: str) -> Pair:
    """The hashes of a fact's prompt and target."""
    return prompt_hash(fact.prompt, key), target_hash(fact, key)


def hold(fact: Fact, key: str, *, tokens: int, margin: float, verdict: Verdict, since: int) -> Held:
    """The record of a fact that version `since` introduces."""
    prompt, target = pair_of(fact, key)
    return Held(fact.id, prompt, target, tokens, margin, verdict, since)


def drop(held: Held, until: int, *, log_p: float, log_p_base: float) -> Retracted:
    """The record of a target that version `until` drops."""
    return Retracted(held.id, held.prompt, held.target, held.tokens, held.since, until, log_p, log_p_base, held.adapter)


def _at_risk(held: Iterable[Held], rounding: float | None) -> tuple[Held, ...]:
    bound = AT_RISK if rounding is None else rounding
    return tuple(fact for fact in held if fact.verdict != "lost" and fact.margin < bound)


def now() -> str:
    """The time in UTC, for people."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def duplicates(values: Iterable[T]) -> set[T]:
    """The values that occur more than once."""
    seen: set[T] = set()
    return {value for value in values if value in seen or seen.add(value)}  # type: ignore[func-returns-value]


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """Inverse of `core.canonical.to_dict` for a record. Raises ValidationError for the content of another version."""
    reader: TypeAdapter[T] = _reader(kind)  # type: ignore[arg-type]  # a class is hashable
    return reader.validate_python(values)


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _hash(text: str, key: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=bytes.fromhex(key)).hexdigest()
