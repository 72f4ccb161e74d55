"""The JSON documents of `memlaw ledger` and their schema (`docs/schema/ledger.json`). No torch.

Every document says by its `schema` which it is. Facts are named by id alone: hashes stay in the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, with_config

from memlaw.core.sealed import Fault
from memlaw.core.side_effects import SideEffects
from memlaw.ledger.audit import Loss
from memlaw.ledger.outlook import Expected, Sized
from memlaw.ledger.records import Audit, Change, Effort, Held, Settings, Status, Verdict, Version
from memlaw.ledger.review import Review
from memlaw.ledger.upkeep import VerifyReport
from memlaw.ledger.view import Entry, Log


@dataclass(frozen=True, kw_only=True)
class InitDocument:
    """`memlaw ledger init`: what all versions of the new ledger share."""

    ledger: str
    """Its directory."""
    version: int
    """0, which holds nothing."""
    model: str
    """Name or path of the base model."""
    base: str
    """Fingerprint of its weights."""
    tokenizer: str
    """Fingerprint of its tokenizer."""
    placement: str
    """Modules that the adapter adapts."""
    rank: int
    """Rank of the first adapter; updates may raise it."""
    texts: bool
    """Whether prompts and targets are kept as text."""
    eos: bool
    """Whether every target ends with end-of-sequence."""
    sized: Sized | None
    """How --room found the rank; null if --rank gave it."""
    schema: Literal["memlaw.ledger.init/1"] = "memlaw.ledger.init/1"
    """Which document this is."""


@dataclass(frozen=True)
class StatusDocument(Status):
    """`memlaw ledger status`: the current version in numbers."""

    schema: Literal["memlaw.ledger.status/1"] = "memlaw.ledger.status/1"
    """Which document this is."""


@dataclass(frozen=True, kw_only=True)
class UpdateDocument(Status):
    """`memlaw ledger update`: what was done, or with --dry-run would be, and where the ledger is now."""

    published: bool
    """Whether a version was made: not by --dry-run, nor if there was nothing to do."""
    change: Change
    """Ids of the facts that the update adds, changes and retracts, and of those that it lost (--allow-loss)."""
    effort: Effort | None
    """What it took; null if nothing was trained."""
    next_rank: int
    """Rank of the adapter once the update is published."""
    expected: Expected | None
    """How likely it was to fit, before any training; null if nothing changes or, with --dry-run, if there is no law."""
    schema: Literal["memlaw.ledger.update/1"] = "memlaw.ledger.update/1"
    """Which document this is."""


@dataclass(frozen=True, kw_only=True)
class RollbackDocument(Status):
    """`memlaw ledger rollback`: where the ledger is now."""

    before: int | None
    """The version that was current; null if HEAD was damaged."""
    schema: Literal["memlaw.ledger.rollback/1"] = "memlaw.ledger.rollback/1"
    """Which document this is."""


@dataclass(frozen=True)
class AuditedFact:
    """A fact, as measured again."""

    id: str
    """Its id."""
    tokens: int
    """Target tokens."""
    margin: float
    """ln 2 minus the largest token loss, nats."""
    verdict: Verdict
    """certified; ordered: it comes back by a margin that rounding may undo; lost: it does not."""
    since: int
    """The version that introduced this target."""
    adapter: int
    """The adapter that it was asked with."""


@dataclass(frozen=True, kw_only=True)
class AuditedVersion:
    """A version, as measured again."""

    version: int
    """Its number."""
    adapter: str
    """The adapter that was measured; empty for the version's own."""
    facts: int
    """Facts that should come back."""
    certified: int
    """Facts that certainly come back verbatim."""
    at_risk: int
    """Facts that come back with a margin below the measured rounding."""
    lost: int
    """Facts that do not come back."""
    returned: tuple[str, ...]
    """Ids of targets that must not come back and do."""
    rounding: float | None
    """Measured difference in nats between teacher-forced and cached losses."""
    side_effects: SideEffects | None
    """Null unless asked for."""
    items: tuple[AuditedFact, ...]
    """Every fact of the version."""


@dataclass(frozen=True)
class FactLoss:
    """A fact that came back under one version and not under the next."""

    id: str
    """Its id."""
    by: int
    """The version that cost it."""
    margin_before: float
    """Nats."""
    margin_after: float
    """Nats."""
    regained: int | None
    """The next version under which it comes back."""


@dataclass(frozen=True, kw_only=True)
class AuditDocument:
    """`memlaw ledger audit`: facts measured again, and what updates cost older facts."""

    audits: tuple[AuditedVersion, ...]
    """What was measured now."""
    versions: tuple[int, ...]
    """The lineage of the last of them: the columns of `margins`, as audited now or as measured when published."""
    facts: tuple[str, ...]
    """Ids: the rows of `margins`. A changed fact has a row for each of its targets."""
    since: tuple[int, ...]
    """The version that introduced the target of each row."""
    margins: tuple[tuple[float | None, ...], ...]
    """Nats, facts x versions; null where the version does not hold the fact."""
    accuracy: float | None
    """Share of the facts of the last version that come back."""
    backward_transfer: float | None
    """How the share of an update's facts that comes back changed since that update, on average; below 0: fewer do."""
    forgetting: float | None
    """Mean of the largest share of each update's facts that ever came back, minus the share that comes back now."""
    losses: tuple[FactLoss, ...]
    """Which update cost which fact."""
    drops: tuple[FactLoss, ...]
    """The facts of the last version whose margin fell most in one update."""
    schema: Literal["memlaw.ledger.audit/1"] = "memlaw.ledger.audit/1"
    """Which document this is."""


@dataclass(frozen=True)
class LogDocument(Log):
    """`memlaw ledger log`: all versions."""

    schema: Literal["memlaw.ledger.log/1"] = "memlaw.ledger.log/1"
    """Which document this is."""


@dataclass(frozen=True, kw_only=True)
class ExportDocument:
    """`memlaw ledger export`: where an adapter was copied to."""

    version: int
    """Whose adapters they are."""
    adapter: str
    """Its directory; that of several has a folder for each, named by its number, and routes.json."""
    adapters: tuple[int, ...]
    """The numbers of the adapters."""
    schema: Literal["memlaw.ledger.export/1"] = "memlaw.ledger.export/1"
    """Which document this is."""


@dataclass(frozen=True, kw_only=True)
class RouteDocument:
    """`memlaw ledger route`: the adapter to serve a prompt with."""

    version: int
    """The current version."""
    adapter: int | None
    """Number of the adapter that holds the prompt's fact; null for a prompt of no fact."""
    schema: Literal["memlaw.ledger.route/1"] = "memlaw.ledger.route/1"
    """Which document this is."""


@dataclass(frozen=True, kw_only=True)
class ReportDocument:
    """`memlaw ledger report`: where the page was written."""

    report: str
    """The HTML file."""
    version: int
    """The current version, whose lineage it shows."""
    schema: Literal["memlaw.ledger.report/1"] = "memlaw.ledger.report/1"
    """Which document this is."""


@dataclass(frozen=True)
class VerifyDocument(VerifyReport):
    """`memlaw ledger verify`: the state of every file."""

    schema: Literal["memlaw.ledger.verify/1"] = "memlaw.ledger.verify/1"
    """Which document this is."""


Document = (
    InitDocument
    | UpdateDocument
    | StatusDocument
    | AuditDocument
    | LogDocument
    | RollbackDocument
    | ExportDocument
    | RouteDocument
    | ReportDocument
    | VerifyDocument
)

for _kind in (
    *(InitDocument, UpdateDocument, StatusDocument, AuditDocument, AuditedVersion, AuditedFact, FactLoss),
    *(LogDocument, Log, Entry, RollbackDocument, ExportDocument, RouteDocument, ReportDocument, VerifyDocument),
    *(VerifyReport, Fault, Expected, Sized),
):  # the string under a field becomes its description in the schema
    with_config(ConfigDict(use_attribute_docstrings=True))(_kind)


_EXTENDED: dict[type, type] = {
    UpdateDocument: Status,
    StatusDocument: Status,
    RollbackDocument: Status,
    LogDocument: Log,
    VerifyDocument: VerifyReport,
}
"""Documents that are a record and more."""


def init_document(ledger: str, settings: Settings, sized: Sized | None = None) -> InitDocument:
    """What was made in the directory `ledger`; `sized` says how its rank was found, if --room asked for it."""
    shared = {field.name: getattr(settings, field.name) for field in fields(Settings) if field.name in _SHARED}
    return InitDocument(ledger=ledger, version=0, sized=sized, **shared)


_SHARED = {field.name for field in fields(InitDocument)} - {"sized"}


def update_document(
    now: Status,
    change: Change,
    made: Version | None,
    *,
    next_rank: int | None = None,
    foretold: Expected | None = None,
) -> UpdateDocument:
    """What an update did; `made` is the version that it published, if any, and `foretold` what it could expect.

    `next_rank` is the rank afterwards, by default as it is.
    """
    return UpdateDocument(
        **vars(now),
        published=made is not None,
        change=change if made is None else made.change,
        effort=None if made is None else made.effort,
        next_rank=next_rank or now.rank,
        expected=foretold,
    )


def audit_document(audits: Sequence[Audit], review: Review) -> AuditDocument:
    """What audits found, and the review of the lineage of the last one."""
    table, summary = review.matrix, review.forgetting
    return AuditDocument(
        audits=tuple(map(_audited, audits)),
        versions=table.versions,
        facts=tuple(fact.id for fact in table.facts),
        since=tuple(fact.since for fact in table.facts),
        margins=table.margins,
        accuracy=summary.accuracy,
        backward_transfer=summary.backward_transfer,
        forgetting=summary.forgetting,
        losses=tuple(map(_loss, review.losses)),
        drops=tuple(map(_loss, review.drops)),
    )


def _audited(audit: Audit) -> AuditedVersion:
    verdicts = [fact.verdict for fact in audit.held]
    return AuditedVersion(
        version=audit.version,
        adapter=audit.adapter,
        facts=len(verdicts),
        certified=verdicts.count("certified"),
        at_risk=len(audit.at_risk()),
        lost=verdicts.count("lost"),
        returned=audit.returned,
        rounding=audit.rounding,
        side_effects=audit.side_effects,
        items=tuple(map(_audited_fact, audit.held)),
    )


def _audited_fact(fact: Held) -> AuditedFact:
    return AuditedFact(**{field.name: getattr(fact, field.name) for field in fields(AuditedFact)})


def _loss(loss: Loss) -> FactLoss:
    return FactLoss(loss.fact.id, loss.by, loss.margin_before, loss.margin_after, loss.regained)


def ledger_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of all documents of `memlaw ledger`; docs/schema/ledger.json holds it."""
    documents: TypeAdapter[Any] = TypeAdapter(Annotated[Document, Field(discriminator="schema")])
    schema = documents.json_schema(mode="serialization")
    for kind, parent in _EXTENDED.items():
        inherited = TypeAdapter[Any](parent).json_schema(mode="serialization")["properties"]
        schema["$defs"][kind.__name__]["properties"] |= inherited  # with the sentences of the parent
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
