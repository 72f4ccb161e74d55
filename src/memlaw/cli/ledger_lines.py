"""What `memlaw ledger` prints for a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memlaw.cli.output import SHOWN, aligned_rows, counted, paragraph, printable
from memlaw.core.side_effects import sentence
from memlaw.ledger.outlook import SURE
from memlaw.ledger.sentences import changes, facts_held, room_left, what_it_took

if TYPE_CHECKING:
    from memlaw.ledger import Change, Log, Status, VerifyReport
    from memlaw.ledger.documents import (
        AuditDocument,
        AuditedVersion,
        ExportDocument,
        FactLoss,
        InitDocument,
        RouteDocument,
        UpdateDocument,
    )
    from memlaw.ledger.outlook import Expected, Sized
    from memlaw.ledger.view import Entry


def init_lines(made: InitDocument) -> Iterator[str]:
    """A new ledger."""
    yield f"{made.ledger}: an empty ledger for {made.model}, rank {made.rank} at {made.placement}."
    if not made.texts:
        yield from paragraph("It keeps no texts: updates ask for the original records of what it holds.")
    if made.sized is not None:
        yield from paragraph(_sized(made.sized))
    yield f"Store facts: memlaw ledger update {made.ledger} FACTS"


def update_lines(ledger: Path, done: UpdateDocument, *, dry_run: bool) -> Iterator[str]:
    """What an update changed, what it took, and where the ledger is now."""
    if not done.published:
        yield from _unpublished(ledger, done, dry_run)
        return
    yield f"{ledger}: version {done.version}, {_changes(done.change)}."
    if done.effort is not None:
        yield what_it_took(done.effort)
    if done.side_effects is not None:
        yield from paragraph(sentence(done.side_effects))
    yield from _named("lost", done.change.lost)
    yield f"Now {_counts(done)}; {_at(done)}."
    yield from paragraph(done.advice)


def chance_line(found: Expected) -> str:
    """How likely an update fits."""
    return f"{found.tokens:,} target tokens at rank {found.rank}: they fit with probability {_percent(found.chance)}."


def status_lines(ledger: Path, now: Status) -> Iterator[str]:
    """The current version in numbers."""
    yield f"{ledger}: version {now.version}, {_counts(now)}."
    rows = {
        "at risk": f"{counted(now.at_risk, 'fact')}, by a margin that rounding may undo" if now.at_risk else "",
        "lost": f"{counted(now.lost, 'fact')}, published with --allow-loss" if now.lost else "",
        "retracted": f"{counted(now.retracted, 'target')} that must not come back" if now.retracted else "",
        "target tokens": f"{now.tokens:,} at {_at(now)}",
        "room left": "" if now.room is None else room_left(now.room),
        "versions": f"{now.versions:,}; see `memlaw ledger log {ledger}`",
    }
    yield from aligned_rows({name: text for name, text in rows.items() if text})
    if now.side_effects is not None:
        yield from paragraph(sentence(now.side_effects))
    yield from paragraph(now.advice)


def audit_lines(found: AuditDocument) -> Iterator[str]:
    """What was measured again, and which update cost which fact."""
    for audit in found.audits:
        yield from _audited(audit)
    if len(found.versions) > 1:
        shares = {
            "accuracy": found.accuracy,
            "backward transfer": found.backward_transfer,
            "forgetting": found.forgetting,
        }
        yield ""
        yield f"Versions {found.versions[0]} to {found.versions[-1]}:"
        yield from aligned_rows({name: f"{share:.1%}" for name, share in shares.items() if share is not None})
    if found.losses:
        yield ""
        yield "Facts that an update cost:"
        yield from _costs(found.losses)
    elif found.drops:
        yield ""
        yield "Margins that fell most; these facts may still come back:"
        yield from _costs(found.drops[:SHOWN])


def log_lines(ledger: Path, log: Log) -> Iterator[str]:
    """All versions, the latest first."""
    yield f"{ledger}: {counted(len(log.entries), 'version')}."
    yield from aligned_rows({f"{entry.version} {entry.state}": _entry(entry) for entry in reversed(log.entries)})
    for number in log.unreadable:
        yield f"  {number}: cannot be read; `memlaw ledger verify {ledger}` says why."


def rollback_lines(ledger: Path, now: Status, before: int | None) -> Iterator[str]:
    """Which version is current now."""
    was = "" if before is None else f" It was version {before}."
    yield f"{ledger}: version {now.version} is current.{was}"
    yield f"Now {_counts(now)}; {_at(now)}."


def route_lines(ledger: Path, found: RouteDocument) -> Iterator[str]:
    """Which adapter a prompt goes to."""
    if found.adapter is None:
        yield f"{ledger}: version {found.version} holds no fact of this prompt. Any adapter will do, or none."
    else:
        yield f"{ledger}: adapter {found.adapter}."


def export_lines(made: ExportDocument) -> Iterator[str]:
    """Where the adapters are."""
    if len(made.adapters) == 1:
        yield f"{made.adapter}: the adapter of version {made.version}."
        return
    yield f"{made.adapter}: the {len(made.adapters)} adapters of version {made.version}, in folders by their numbers."
    yield from paragraph("routes.json says which prompt goes to which: memlaw.ledger.routes(DIR).of(PROMPT).")


def verify_lines(checked: VerifyReport) -> Iterator[str]:
    """The state of a ledger's files."""
    state = "all files are intact" if checked.intact else "not all files are intact"
    current = "no current version" if checked.current is None else f"version {checked.current} is current"
    yield f"{checked.out}: {counted(len(checked.versions), 'intact version')}, {current}; {state}."
    for fault in (*checked.damaged, *checked.unreadable):
        yield from paragraph(f"{fault.path}: {fault.why}", indent=2)
    whole = [number for number in checked.versions if number != checked.current]
    if not checked.intact and whole:
        last = max(whole)
        yield from paragraph(
            f"If the current version is damaged: memlaw ledger rollback {checked.out} {last}", indent=2
        )
    for number in checked.aside:
        yield from paragraph(
            f"version {number} is complete, but the current version was not made from it; `memlaw ledger rollback "
            f"{checked.out} {number}` makes it current",
            indent=2,
        )
    for name, files in (("not memlaw's", checked.foreign), ("left by killed writers", checked.leftovers)):
        if files:
            yield f"  {name}: {counted(len(files), 'file')}, such as {printable(files[0])}"


def _unpublished(ledger: Path, done: UpdateDocument, dry_run: bool) -> Iterator[str]:
    change, raised = done.change, done.next_rank > done.rank
    what = changes(len(change.added), len(change.changed), len(change.retracted))
    if not (what or raised):
        yield f"{ledger}: nothing to do. Version {done.version} holds these facts as they are."
        return
    if dry_run:
        parts = [what, f"rank {done.rank} -> {done.next_rank}" if raised else ""]
        what = ", ".join(part for part in parts if part)
        yield f"{ledger}: {what} after version {done.version}. Nothing was trained."
    else:
        yield f"{ledger}: another update made version {done.version} meanwhile. It holds these facts."
    for name in ("added", "changed", "retracted"):
        yield from _named(name, getattr(change, name))
    if dry_run:
        yield from paragraph(_expected(done.expected))


def _expected(found: Expected | None) -> str:
    """What still fits after an update, or the rank at which it does."""
    if found is None:
        return "Whether it fits is not known: --laws has no law of this model's own (`memlaw probe`)."
    if found.chance >= SURE:
        return f"Then there is room for {room_left(found.room)}."
    if found.fits_at is None:
        return f"No rank of this placement is predicted to hold it with {SURE:.0%}."
    return f"With {SURE:.0%} it fits at rank {found.fits_at}: --rank {found.fits_at}."


def _sized(found: Sized) -> str:
    """How a rank was found for a room."""
    of = f"the {found.like:,} facts of --like" if found.like else "random codes; --like FACTS says what yours are like"
    law = f"the law of {found.law}" + (", borrowed from another model" if found.borrowed else "")
    return (
        f"By {law}, rank {found.rank} holds {found.tokens:,} target tokens with probability {_percent(found.chance)}, "
        f"if they are like those of {of}. What they cost the model, the first update shows."
    )


def _percent(chance: float) -> str:
    """A probability; one that is not quite certain is not printed as if it were."""
    return f"{chance:.0%}" if chance in (0.0, 1.0) else f"{min(max(chance, 0.01), 0.99):.0%}"


def _changes(change: Change) -> str:
    return changes(len(change.added), len(change.changed), len(change.retracted)) or "nothing added or changed"


def _named(what: str, ids: Sequence[str]) -> Iterator[str]:
    if ids:
        more = f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else ""
        yield from paragraph(f"{what}: {', '.join(map(printable, ids[:SHOWN]))}{more}", indent=2)


def _counts(now: Status) -> str:
    return facts_held(now.facts, now.certified, now.lost)


def _at(now: Status) -> str:
    return f"rank {now.rank}" if now.adapters <= 1 else f"rank {now.rank}, {now.adapters} adapters"


def _audited(audit: AuditedVersion) -> Iterator[str]:
    name = f"Version {audit.version}" + (f" as served by {audit.adapter}" if audit.adapter else "")
    yield f"{name}: {facts_held(audit.facts, audit.certified, audit.lost)}."
    yield from _named("lost", [item.id for item in audit.items if item.verdict == "lost"])
    yield from _named("come back although they must not", audit.returned)
    if audit.at_risk:
        yield f"  at risk: {counted(audit.at_risk, 'fact')}, by a margin that rounding may undo"
    if audit.side_effects is not None:
        yield from paragraph(sentence(audit.side_effects), indent=2)


def _costs(losses: Iterable[FactLoss]) -> Iterator[str]:
    yield from aligned_rows({f"{printable(loss.id)} by version {loss.by}": _cost(loss) for loss in losses})


def _cost(loss: FactLoss) -> str:
    back = "" if loss.regained is None else f"; back in version {loss.regained}"
    return f"margin {loss.margin_before:+.3f} -> {loss.margin_after:+.3f} nats{back}"


def _entry(entry: Entry) -> str:
    changed = changes(entry.added, entry.changed, entry.retracted)
    parts = [facts_held(entry.facts, entry.certified, entry.lost), changed, f"rank {entry.rank}"]
    if entry.adapters > 1:
        parts.append(f"{entry.adapters} adapters")
    if entry.steps is not None:
        parts.append(counted(entry.steps, "step"))
    if entry.loss_difference is not None:
        parts.append(f"{entry.loss_difference:+.3f} nats")
    return f"{'; '.join(part for part in parts if part)} ({entry.created})"
