"""What an update changes: facts of a file, and ids to retract, beside the facts that a version holds. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from memlaw.core.errors import DataError, suggest
from memlaw.core.facts import Fact
from memlaw.ledger.records import Change, Held, Pair, Retracted, Version, prompt_hash, target_hash

_GIVEN = 12
"""Hexadecimal digits of the prompt's hash that name a fact without an id of its own."""


@dataclass(frozen=True)
class Diff:
    """A version beside what it is to become. Facts have the ids of the ledger; every prompt is in one field only."""

    new: tuple[Fact, ...]
    """Facts whose prompt the version does not hold, also those that were retracted before."""
    changed: tuple[Fact, ...]
    """Facts with a target other than the one held."""
    replaced: tuple[Held, ...]
    """What is held for `changed`, in the same order: targets that must no longer come back."""
    unchanged: tuple[Held, ...]
    """Facts that stay: those in the file with the same target, and those that it does not mention."""
    retracted: tuple[Held, ...]
    """Facts to retract, which must no longer come back."""
    forbidden: tuple[Retracted, ...]
    """Targets dropped by earlier versions that must still not come back."""

    @property
    def empty(self) -> bool:
        """Whether the version is already what it is to become."""
        return not (self.new or self.changed or self.retracted)

    @property
    def to_train(self) -> tuple[Fact, ...]:
        """New and changed facts."""
        return self.new + self.changed

    @property
    def dropped(self) -> tuple[Held, ...]:
        """What this update makes forbidden: retracted facts and the old targets of changed ones."""
        return self.retracted + self.replaced

    def change(self, lost: Iterable[str] = ()) -> Change:
        """The diff as ids, for a version that does not hold the facts `lost`."""
        return Change(_ids(self.new), _ids(self.changed), _ids(self.retracted), tuple(lost))


def difference(version: Version, facts: Sequence[Fact], retract: Sequence[str], key: str) -> Diff:
    """Compare a version with the facts of a file and the ids to retract; facts that neither mentions stay.

    A fact is known by its prompt. It keeps the id it has in the ledger; a new one has its own, or the first digits of
    its prompt's hash if its source gave none. Raises DataError for ids and prompts that are used twice, an id that
    names another prompt in the ledger, a prompt that is held under another id, an id to retract that no fact has, and a
    prompt that is both in the file and retracted.
    """
    by_id = {fact.id: fact for fact in version.held}
    by_prompt = {fact.prompt: fact for fact in version.held}
    leaving = _to_retract(version, retract)
    staying = {name: fact for name, fact in by_id.items() if name not in leaving}
    given = _named(facts, by_prompt, key)
    _refuse_doubled(given)
    _refuse_contradictions(given, by_prompt, staying, leaving)
    changed = {
        prompt: fact
        for prompt, fact in given.items()
        if prompt in by_prompt and by_prompt[prompt].target != target_hash(fact, key)
    }
    held_after = {(prompt, target_hash(fact, key)) for prompt, fact in given.items()}
    return Diff(
        new=tuple(fact for prompt, fact in given.items() if prompt not in by_prompt),
        changed=tuple(changed.values()),
        replaced=tuple(by_prompt[prompt] for prompt in changed),
        unchanged=tuple(fact for fact in staying.values() if fact.prompt not in changed),
        retracted=tuple(leaving.values()),
        forbidden=tuple(old for old in version.retracted if old.pair not in held_after),
    )


def targets_after(diff: Diff, key: str) -> dict[str, str]:
    """Hash of every prompt -> hash of the target that it must bring once the diff is applied."""
    kept: dict[str, str] = dict(fact.pair for fact in diff.unchanged)
    return kept | {prompt_hash(fact.prompt, key): target_hash(fact, key) for fact in diff.to_train}


def forbidden_after(diff: Diff) -> set[Pair]:
    """Hashes of every prompt and target that must no longer come back once the diff is applied."""
    return {old.pair for old in diff.forbidden} | {old.pair for old in diff.dropped}


def _to_retract(version: Version, ids: Sequence[str]) -> dict[str, Held]:
    by_id = {fact.id: fact for fact in version.held}
    unknown = [name for name in dict.fromkeys(ids) if name not in by_id]
    if unknown:
        name = unknown[0]
        before = [old.until for old in version.retracted if old.id == name]
        gone = f"; it was retracted in version {max(before)}" if before else ""
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise DataError(
            f"Version {version.number} holds no fact with the id {name!r}{more}{gone}. {suggest(name, by_id)}Nothing "
            "was changed; leave it out, or retract an id that is held."
        )
    return {name: by_id[name] for name in dict.fromkeys(ids)}


def _named(facts: Sequence[Fact], by_prompt: Mapping[str, Held], key: str) -> dict[str, Fact]:
    """Hash of the prompt -> fact, with the id that it has in the ledger if its source gave none."""
    given: dict[str, Fact] = {}
    for fact in facts:
        prompt = prompt_hash(fact.prompt, key)
        if prompt in given:
            raise DataError(
                f"{_where(given[prompt])} and {_where(fact)} have the same prompt. Greedy decoding gives one answer "
                "per prompt: keep one of the two."
            )
        name = fact.id if fact.named else by_prompt[prompt].id if prompt in by_prompt else prompt[:_GIVEN]
        given[prompt] = replace(fact, id=name, named=True)
    return given


def _refuse_doubled(given: Mapping[str, Fact]) -> None:
    seen: dict[str, Fact] = {}
    for fact in given.values():
        earlier = seen.setdefault(fact.id, fact)
        if earlier is not fact:
            raise DataError(
                f"{_where(earlier)} and {_where(fact)} share the id {fact.id!r}. The ledger names facts by id: make "
                "the ids differ."
            )


def _refuse_contradictions(
    given: Mapping[str, Fact], by_prompt: Mapping[str, Held], staying: Mapping[str, Held], leaving: Mapping[str, Held]
) -> None:
    prompts_leaving = {fact.prompt for fact in leaving.values()}
    for prompt, fact in given.items():
        if prompt in prompts_leaving:
            raise DataError(
                f"{_where(fact)} stores the prompt of {by_prompt[prompt].id!r}, which is to be retracted. Leave it out "
                "of the file, or do not retract it; to change its target, the file is enough."
            )
        if prompt in by_prompt and by_prompt[prompt].id != fact.id:
            raise DataError(
                f"{_where(fact)} has the id {fact.id!r}, but the ledger holds its prompt as {by_prompt[prompt].id!r}. "
                "Use that id, or leave the id out."
            )
        if fact.id in staying and staying[fact.id].prompt != prompt:
            raise DataError(
                f"{_where(fact)} has the id {fact.id!r}, which names another prompt in the ledger. Choose another id, "
                f"or retract {fact.id!r} to use it again."
            )


def _where(fact: Fact) -> str:
    """Where a fact comes from, without its text."""
    return f"Record {fact.id!r}" if fact.line is None else f"The record in line {fact.line}"


def _ids(records: Iterable[Fact | Held]) -> tuple[str, ...]:
    return tuple(record.id for record in records)
