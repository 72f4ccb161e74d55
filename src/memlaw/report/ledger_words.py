"""A ledger and its versions in words and rows of tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from memlaw.core.side_effects import sentence
from memlaw.ledger.audit import Forgetting, Loss, Matrix, forgetting, largest_drops, losses
from memlaw.ledger.records import Audit, Held, Room, Version
from memlaw.ledger.sentences import changes, facts_held, room_left, what_it_took
from memlaw.report.ledger import Column, LedgerContent
from memlaw.report.words import DASH, MINUS, count, nats, number, share

LISTED_LOSSES = 50
"""Losses in the table of what updates cost; the rest is counted."""


def answers(content: LedgerContent) -> list[tuple[str, str]]:
    """The questions of a reader, and what `memlaw ledger status` says to each."""
    now = content.now
    room = (
        "Unknown: no law has said yet how much this rank holds. The next `memlaw ledger update` asks those in `laws/`."
    )
    if now.room is not None:
        room = _sentence(room_left(now.room))
    harm = "Not measured." if now.side_effects is None else sentence(now.side_effects)
    return [
        ("Does every fact come back?", " ".join(_do_they(content))),
        ("How much more fits?", room),
        ("What does it cost the model?", harm),
        ("What next?", now.advice),
    ]


def _do_they(content: LedgerContent) -> Iterator[str]:
    now = content.now
    yield f"Version {now.version} holds {facts_held(now.facts, now.certified, now.lost)}."
    if now.at_risk:
        yield f"{count(now.at_risk, 'fact')} at risk, by a margin that rounding may undo."
    if now.retracted:
        yield f"{count(now.retracted, 'retracted target')} must not come back."
    if content.columns:
        yield from _again(content.columns[-1])


def _again(column: Column) -> Iterator[str]:
    for audit in (column.audit, column.served):
        if audit is not None:
            yield _sentence(_audited(audit))


def _audited(audit: Audit) -> str:
    verdicts = [fact.verdict for fact in audit.held]
    served = f" as served by {audit.adapter}" if audit.adapter else ""
    held = facts_held(len(verdicts), verdicts.count("certified"), verdicts.count("lost"))
    back = f"; {count(len(audit.returned), 'retracted target')} came back" if audit.returned else ""
    return f"measured again{served} on {day(audit.created)}: {held}{back}"


def key_numbers(content: LedgerContent) -> list[tuple[str, str, str]]:
    """Label, value and note."""
    now = content.now
    certified = share(now.certified / now.facts) if now.facts else DASH
    room = DASH if now.room is None else number(round(now.room.tokens))
    harm = DASH if now.side_effects is None else signed(now.side_effects.loss_difference)
    return [
        ("facts", number(now.facts), f"{count(now.tokens, 'target token')}"),
        ("certified", certified, f"{number(now.certified)} of {number(now.facts)}"),
        ("at risk", number(now.at_risk), f"{number(now.lost)} lost"),
        ("room left", room, "target tokens" if now.room is None else interval(now.room)),
        ("harm", harm, "nats a token"),
        ("versions", number(now.versions), f"current: {now.version}; rank {now.rank}"),
    ]


def measured_when(content: LedgerContent) -> str:
    """Where the numbers of the map come from."""
    again = [str(column.version.number) for column in content.columns if column.audit is not None]
    if not again:
        return "Each column shows what was measured when the version was made."
    if len(again) == len(content.columns):
        return "Each column shows what the last audit of the version measured."
    versions = f"version {again[0]}" if len(again) == 1 else f"versions {', '.join(again)}"
    return (
        f"Each column shows what was measured when the version was made; of {versions}, what the last audit of its "
        "adapter measured."
    )


def header_of(column: Column) -> dict[str, Any]:
    """The head of a version's column."""
    version = column.version
    counts = {"+": version.change.added, "~": version.change.changed, MINUS: version.change.retracted}
    short = " ".join(f"{sign}{len(ids)}" for sign, ids in counts.items() if ids)
    return {"n": version.number, "day": day(version.created), "short": short, "again": column.audit is not None}


def version_words(column: Column, summary: Forgetting) -> Iterator[tuple[str, str]]:
    """What opens of a version, label and value; `summary` is of the versions up to it."""
    version, held = column.version, column.measured.held
    at_risk = len(column.measured.at_risk())
    yield "made", f"{_time(version.created)}, from version {version.parent}"
    yield "holds", f"{_held(held)}; {count(version.tokens, 'target token')}"
    if at_risk:
        yield "at risk", count(at_risk, "fact")
    yield "rank", number(version.rank)
    if version.effort is not None:
        yield "effort", what_it_took(version.effort)
    if column.side_effects is not None:
        yield "side effects", sentence(column.side_effects).removeprefix("Side effects: ")
    if version.room is not None:
        yield "room left", room_left(version.room)
    yield "rounding", "not measured" if column.rounding is None else f"{number(column.rounding)} nats at most"
    yield from _learning(summary)
    if column.audit is not None and column.audit.returned:
        yield "come back although they must not", ", ".join(column.audit.returned)
    for audit in (column.audit, column.served):
        if audit is not None:
            yield "audit", _audited(audit)


def _learning(summary: Forgetting) -> Iterator[tuple[str, str]]:
    yield "accuracy", share(summary.accuracy)
    if summary.backward_transfer is not None:
        yield "backward transfer", signed_share(summary.backward_transfer)
    if summary.forgetting is not None:
        yield "forgetting", signed_share(summary.forgetting)


def by_version(table: Matrix) -> list[Forgetting]:
    """Accuracy, backward transfer and forgetting as they stood after each version."""
    return [forgetting(_until(table, last)) for last in range(1, len(table.versions) + 1)]


def _until(table: Matrix, last: int) -> Matrix:
    return Matrix(
        table.facts,
        table.versions[:last],
        tuple(row[:last] for row in table.margins),
        tuple(row[:last] for row in table.right),
    )


def version_table(content: LedgerContent, summaries: Sequence[Forgetting]) -> list[dict[str, Any]]:
    """A row for each version, the latest first; a summary is of the versions up to one."""
    pairs = zip(content.columns, summaries, strict=True)
    return [_row(column.version, column, summary) for column, summary in pairs][::-1]


def _row(version: Version, column: Column, summary: Forgetting) -> dict[str, Any]:
    change, effort = version.change, version.effort
    values = [
        number(len(column.measured.held)),
        number(sum(fact.verdict == "certified" for fact in column.measured.held)),
        share(summary.accuracy),
        signed_share(summary.backward_transfer),
        signed_share(summary.forgetting),
        DASH if column.side_effects is None else signed(column.side_effects.loss_difference),
        DASH if version.room is None else f"{number(round(version.room.tokens))} ({_range(version.room)})",
        number(version.rank),
        DASH if effort is None else number(effort.steps),
        DASH if effort is None else number(effort.tokens_forwarded),
    ]
    changed = changes(len(change.added), len(change.changed), len(change.retracted))
    return {"number": version.number, "day": day(version.created), "changed": changed or "none", "values": values}


def cost_table(table: Matrix) -> dict[str, Any]:
    """What updates cost older facts: those that were lost or, without any, those whose margin fell most."""
    lost = losses(table)
    shown = lost[:LISTED_LOSSES] if lost else largest_drops(table)
    return {"lost": len(lost), "rows": [_cost(loss) for loss in shown], "more": len(lost) - len(shown) if lost else 0}


def _cost(loss: Loss) -> dict[str, Any]:
    back = DASH if loss.regained is None else f"version {loss.regained}"
    margins = [nats(loss.margin_before), nats(loss.margin_after)]
    return {"id": loss.fact.id, "by": loss.by, "margins": margins, "back": back}


def interval(room: Room) -> str:
    """The 95% interval of the room left, named as such."""
    return f"95%: {_range(room)}"


def _range(room: Room) -> str:
    return f"{number(round(room.low))} " + ("or more" if room.high is None else f"to {number(round(room.high))}")


def signed(nats: float) -> str:
    return f"{nats:+.3f}".replace("-", MINUS)


def signed_share(value: float | None) -> str:
    """A difference of shares in percentage points; only 0 itself becomes 0."""
    if value is None:
        return DASH
    return "0 %" if value == 0 else f"{100 * value:+.1f} %".replace("-", MINUS)


def day(created: str) -> str:
    """The date of a time in ISO 8601."""
    return created.partition("T")[0]


def _time(created: str) -> str:
    """A time in ISO 8601 to the minute; what is no such time stays as it is."""
    try:
        return f"{datetime.fromisoformat(created).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return created


def _held(held: tuple[Held, ...]) -> str:
    verdicts = [fact.verdict for fact in held]
    return facts_held(len(verdicts), verdicts.count("certified"), verdicts.count("lost"))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
