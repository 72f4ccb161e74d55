"""The map facts x versions of a ledger, and what its script needs to open a cell: numbers, ids, and texts if asked.

Margins are written in thousandths of a nat, since a map of 1,000 facts and 50 versions has 50,000 of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from memlaw.ledger.audit import FactName, Forgetting, Loss, Matrix, largest_drops, losses, matrix
from memlaw.ledger.records import Held, Retracted, Version
from memlaw.report.ledger import Column, LedgerContent
from memlaw.report.ledger_words import header_of, version_words

State = Literal["c", "r", "l", "g", "b", " "]
"""certified; at risk: it comes back by a margin that rounding may undo; lost; retracted and gone; retracted, but it
comes back; not held."""

WORDS: Mapping[State, str] = {
    "c": "certified",
    "r": "at risk",
    "l": "lost",
    "g": "retracted, gone",
    "b": "retracted, comes back",
    " ": "not held",
}

UNSAFE: tuple[State, ...] = ("b", "l", "r")
"""The worst first."""

COSTS_OF_A_VERSION = 5
"""Facts that are named as those that it cost most."""


@dataclass
class Row:
    """What became of one prompt. Cells begin with the first version that held it."""

    id: str
    """The last one, if it had several."""
    tokens: int
    start: int
    """Column of its first cell."""
    since: list[int] = field(default_factory=list)
    """The versions that introduced its targets."""
    targets: list[str] = field(default_factory=list)
    """Hashes of its targets, in the same order."""
    adapter: int = 1
    """The adapter that holds the fact, or held it last."""
    states: list[State] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    """Nats. Held: the margin. Retracted: log p of the whole target, minus that of the model alone."""

    @property
    def margin(self) -> float | None:
        """Of the last version; None if it does not hold the fact."""
        return self.values[-1] if self.states[-1] in "crl" else None


def map_rows(columns: Sequence[Column]) -> dict[str, Row]:
    """Hash of every prompt that a version held -> its row, in the order in which they came."""
    rows: dict[str, Row] = {}
    for place, column in enumerate(columns):
        measured = column.measured
        held = {fact.prompt: fact for fact in measured.held}
        dropped = {old.prompt: old for old in measured.retracted}
        at_risk = {fact.prompt for fact in measured.at_risk()}
        returned = () if column.audit is None else column.audit.returned
        for fact in measured.held:
            rows.setdefault(fact.prompt, Row(fact.id, fact.tokens, place))
        for prompt, row in rows.items():
            if prompt in held:
                _hold(row, held[prompt], prompt in at_risk)
            else:
                _drop(row, dropped.get(prompt), returned)
    return rows


def _hold(row: Row, fact: Held, at_risk: bool) -> None:
    row.id, row.tokens, row.adapter = fact.id, fact.tokens, fact.adapter
    if not row.since or row.since[-1] != fact.since:
        row.since.append(fact.since)
        row.targets.append(fact.target)
    row.states.append("l" if fact.verdict == "lost" else "r" if at_risk or fact.verdict == "ordered" else "c")
    row.values.append(fact.margin)


def _drop(row: Row, old: Retracted | None, returned: Sequence[str]) -> None:
    row.states.append(" " if old is None else "b" if old.id in returned else "g")
    row.values.append(None if old is None else old.log_p - old.log_p_base)


def map_data(
    content: LedgerContent, rows: Mapping[str, Row], table: Matrix, summaries: Sequence[Forgetting]
) -> dict[str, Any]:
    """The map as JSON for the script of the page; `table` is the content's, a summary is of the versions up to one."""
    drops = {drop.fact: drop for drop in largest_drops(table, most=len(table.facts))}
    places = {prompt: place for place, prompt in enumerate(rows)}
    return {
        "adapters": max((len(column.version.adapters) for column in content.columns), default=0),
        "facts": [_fact(prompt, row, drops, content) for prompt, row in rows.items()],
        "versions": [
            {
                **header_of(column),
                "words": list(version_words(column, summary)),
                "lists": _lists(column.version, places),
                "costs": costs,
            }
            for column, summary, costs in zip(content.columns, summaries, _costs(content, places), strict=True)
        ],
    }


def weakest(rows: Mapping[str, Row], most: int) -> list[Row]:
    """The facts of the last version that need attention first: what comes back and must not, lost, at risk, the rest by
    margin."""
    held = [row for row in rows.values() if row.states[-1] not in "g "]
    rank = {state: place for place, state in enumerate((*UNSAFE, "c"))}
    return sorted(held, key=lambda row: (rank[row.states[-1]], row.values[-1] or 0.0))[:most]


def _fact(prompt: str, row: Row, drops: Mapping[FactName, Loss], content: LedgerContent) -> dict[str, Any]:
    found = drops.get(FactName(row.id, prompt, row.targets[-1], row.since[-1]))
    fact = {
        "id": row.id,
        "tokens": row.tokens,
        "adapter": row.adapter,
        "start": row.start,
        "since": row.since,
        "states": "".join(row.states),
        "values": [None if value is None else _thousandths(value) for value in row.values],
        "fall": None if found is None else _fall(found),
    }
    if content.texts is not None:
        texts = [content.texts.get((prompt, target)) for target in row.targets]
        fact["prompt"] = next((text.prompt for text in texts if text is not None), None)
        fact["targets"] = [None if text is None else text.target for text in texts]
    return fact


def _fall(loss: Loss) -> list[int]:
    return [loss.by, _thousandths(loss.margin_before), _thousandths(loss.margin_after)]


def _lists(version: Version, places: Mapping[str, int]) -> list[list[Any]]:
    """What a version changed: label and rows of the map."""
    prompts = {fact.id: fact.prompt for fact in version.held}
    earlier = {old.id: old.prompt for old in version.retracted if old.until == version.number}
    change = version.change
    lists: tuple[tuple[str, Sequence[str], Mapping[str, str]], ...] = (
        ("added", change.added, prompts),
        ("changed", change.changed, prompts),
        ("retracted", change.retracted, earlier),
        ("lost", change.lost, prompts),
    )
    return [[label, [places.get(named.get(name, ""), name) for name in ids]] for label, ids, named in lists if ids]


def _costs(content: LedgerContent, places: Mapping[str, int]) -> Iterator[list[list[int]]]:
    """For each version, the facts whose margin it cost most: row, margin before and after, whether it was lost."""
    for at in range(len(content.columns)):
        step = matrix([one.measured for one in content.columns[max(0, at - 1) : at + 1]])
        gone = {loss.fact for loss in losses(step)}
        yield [
            [places[drop.fact.prompt], *_fall(drop)[1:], int(drop.fact in gone)]
            for drop in largest_drops(step, most=COSTS_OF_A_VERSION)
        ]


def _thousandths(nats: float) -> int:
    return round(1000 * nats)
