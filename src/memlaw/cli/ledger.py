"""memlaw ledger: facts that come, change and go, as versions of one adapter."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memlaw.cli import ledger_lines as lines
from memlaw.cli.ledger_options import Asked, Directory, Judged, LedgerBase, Running, Shared, Size, Source, Wanted
from memlaw.cli.options import AsJson, ShowText
from memlaw.cli.output import counted, emit, note
from memlaw.cli.records import expand_records
from memlaw.cli.train import TrainingOptions
from memlaw.core.canonical import to_dict
from memlaw.core.errors import LedgerError

if TYPE_CHECKING:
    from memlaw.core.config import Execution
    from memlaw.ledger import Version
    from memlaw.ledger.diff import Diff
    from memlaw.ledger.outlook import Expected
    from memlaw.ledger.store import Store
    from memlaw.ledger.update import Request
    from memlaw.model.base import Base

ledger = typer.Typer(
    help="Add, change and retract facts: versions of one adapter, each measured before it counts.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@ledger.command(short_help="Make an empty ledger for a model")
@expand_records
def init(
    *, directory: Directory, shared: Shared, size: Size, training: TrainingOptions, as_json: AsJson = False
) -> None:
    """Make an empty ledger in KB, for adapters of a model. All updates share its settings."""
    from memlaw.ledger.documents import init_document
    from memlaw.ledger.store import Store
    from memlaw.ledger.update import NewLedger, create

    size.check()
    store, config = Store(directory), training.config(shared.dtype, shared.model)
    store.check_free()  # before what takes long
    base = shared.load_base()
    rank, sized = size.found(base, shared)
    create(store, base, NewLedger(rank, shared.placement, config, eos=shared.eos, texts=shared.text))
    document = init_document(str(directory), store.settings(), sized)
    emit(as_json, to_dict(document), lines.init_lines(document))


@ledger.command(short_help="Add, change and retract facts")
@expand_records
def update(
    *,
    directory: Directory,
    wanted: Wanted,
    judged: Judged,
    source: Source,
    options: Running,
    as_json: AsJson = False,
) -> None:
    """Add the new FACTS, change those with a new target, retract others; publish a version if every fact comes back."""
    from memlaw.ledger import open as open_ledger
    from memlaw.ledger.documents import update_document
    from memlaw.ledger.forecast import check_rank

    wanted.check()
    terms, opened, execution = judged.terms(), open_ledger(directory), options.execution()
    head, model = opened.version(), LedgerBase(opened.settings, source)
    rank = check_rank(head.rank, wanted.rank)
    facts, retract = model.read(wanted.facts), wanted.ids([fact.id for fact in head.held])
    diff = opened.diff(facts, retract)  # a contradiction is refused before the model is loaded
    made = foretold = None
    if not (diff.empty and rank == head.rank):
        if judged.own or not wanted.dry_run:  # for the published law, right within a factor of 4, no model is loaded
            foretold = _foretold(opened.store, model, diff, rank, judged)
        if not wanted.dry_run:
            from memlaw.ledger.update import Request  # loads torch

            originals = model.read(wanted.originals)
            request = Request(facts, retract, originals, rank, wanted.auto_grow, terms, judged.chooser())
            made = _published(opened.store, model.base, request, execution, math.inf if wanted.wait else 0.0)
    document = update_document(opened.status(), diff.change(), made, foretold=foretold, next_rank=rank)
    emit(as_json, to_dict(document), lines.update_lines(directory, document, dry_run=wanted.dry_run))


def _foretold(store: Store, model: LedgerBase, diff: Diff, rank: int, judged: Judged) -> Expected | None:
    """What the update can expect; also said on stderr, before the training."""
    from memlaw.ledger.forecast import expected

    choose = judged.chooser()
    found = expected(store, model.base, diff, rank, choose, max_harm=judged.max_harm)
    if found is not None:
        note(lines.chance_line(found))
    return found


@ledger.command(short_help="Show what the ledger holds, and what to do next")
def status(*, directory: Directory, as_json: AsJson = False) -> None:
    """Show how many facts come back, how many are at risk, and what to do next."""
    from memlaw.ledger import open as open_ledger
    from memlaw.ledger.documents import StatusDocument

    now = open_ledger(directory).status()
    emit(as_json, to_dict(StatusDocument(**vars(now))), lines.status_lines(directory, now))


@ledger.command(short_help="Measure every fact again")
@expand_records
def audit(*, directory: Directory, asked: Asked, source: Source, as_json: AsJson = False) -> None:
    """Measure every fact of a version again, with its own adapter or with one that is served elsewhere."""
    from memlaw.adapter.info import load_info
    from memlaw.ledger import open as open_ledger
    from memlaw.ledger.audited import audit as measure
    from memlaw.ledger.documents import audit_document
    from memlaw.ledger.served import served

    asked.check()
    opened = open_ledger(directory)
    version = opened.version(asked.version)
    for folder in () if asked.adapter is None else served(version, asked.adapter).values():
        load_info(folder)  # a directory that holds no adapter is refused before the model is loaded
    last = version.number
    numbers = [number for number in opened.store.lineage(last) if number] if asked.every else [last]
    model = LedgerBase(opened.settings, source)
    originals, audits = model.read(asked.originals), []
    for number in numbers:
        found = measure(
            opened.store, model.base, number, adapter=asked.adapter, originals=originals, harm=asked.side_effects
        )
        audits.append(found)
        if asked.every:
            note(f"Version {number}: {counted(len(found.held), 'fact')} measured.")
    document = audit_document(audits, opened.review(last, audits))
    emit(as_json, to_dict(document), lines.audit_lines(document))


@ledger.command(short_help="List the versions and what each changed")
def log(*, directory: Directory, as_json: AsJson = False) -> None:
    """List the versions, what each changed, and what that took."""
    from memlaw.ledger import open as open_ledger
    from memlaw.ledger.documents import LogDocument

    found = open_ledger(directory).log()
    emit(as_json, to_dict(LogDocument(**vars(found))), lines.log_lines(directory, found))


@ledger.command(short_help="Make another version the current one")
def rollback(
    *,
    directory: Directory,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="Its number, as `memlaw ledger log` shows it.")],
    as_json: AsJson = False,
) -> None:
    """Make another version the current one, back or forth. Nothing is removed."""
    from memlaw.ledger import open as open_ledger
    from memlaw.ledger.documents import RollbackDocument

    opened, before = open_ledger(directory), None
    with suppress(LedgerError):  # a damaged HEAD is a reason to roll back
        before, _ = opened.store.head_entry()
    opened.rollback(version)
    now = opened.status()
    emit(as_json, to_dict(RollbackDocument(**vars(now), before=before)), lines.rollback_lines(directory, now, before))


@ledger.command(short_help="Say which adapter to serve a prompt with")
def route(
    *,
    directory: Directory,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The exact prompt of a fact.")],
    as_json: AsJson = False,
) -> None:
    """Print the number of the adapter that brings back the fact of a prompt: a ledger may have several."""
    from memlaw.ledger import open as open_ledger
    from memlaw.ledger.documents import RouteDocument

    opened = open_ledger(directory)
    document = RouteDocument(version=opened.version().number, adapter=opened.route(prompt))
    emit(as_json, to_dict(document), lines.route_lines(directory, document))


@ledger.command(short_help="Copy the adapters of a version for a server")
def export(
    *,
    directory: Directory,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory for the adapters, in PEFT's format.")],
    version: Annotated[int | None, typer.Option(metavar="V", help="Version.  [default: the current one]")] = None,
    as_json: AsJson = False,
) -> None:
    """Copy the adapter of a version to a directory of its own, as PEFT and every LoRA server load it.

    Several adapters become its folders 1, 2, ..., and routes.json says which prompt goes to which.
    """
    from memlaw.ledger import open as open_ledger
    from memlaw.ledger.documents import ExportDocument

    exported = open_ledger(directory).export(out, version)
    numbers = tuple(one.number for one in exported.adapters)
    document = ExportDocument(version=exported.number, adapter=str(out), adapters=numbers)
    emit(as_json, to_dict(document), lines.export_lines(document))


@ledger.command(short_help="Write one HTML page: what became of every fact")
def report(
    *,
    directory: Directory,
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    show_text: ShowText = False,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page: every fact under every version, and what each update changed and cost."""
    from memlaw.ledger.documents import ReportDocument
    from memlaw.report.ledger import collect_ledger
    from memlaw.report.ledger_page import write_ledger

    content = collect_ledger(directory, show_text=show_text)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_ledger(content, out, show_text=show_text)
    emit(as_json, to_dict(ReportDocument(report=str(out), version=content.now.version)), [str(out)])


@ledger.command(short_help="Check every file against its SHA-256; change nothing")
def verify(*, directory: Directory, as_json: AsJson = False) -> None:
    """Read every file of a ledger and check its SHA-256. Exits with 2 if one is damaged; changes nothing."""
    from memlaw.ledger import upkeep
    from memlaw.ledger.documents import VerifyDocument
    from memlaw.ledger.store import Store

    checked = upkeep.verify(Store(directory))  # not `open`: ledger.json may be what is damaged
    emit(as_json, to_dict(VerifyDocument(**vars(checked))), lines.verify_lines(checked))
    if not checked.intact:
        raise typer.Exit(2)


def _published(store: Store, base: Base, request: Request, execution: Execution, wait: float) -> Version | None:
    """The version that an update published; None if another process has made it already."""
    from memlaw.cli.progress import training_bar
    from memlaw.ledger.training import Watch
    from memlaw.ledger.update import update as make

    before = store.numbers()
    with training_bar("update") as on_step:
        version = make(store, base, request, Watch(execution, on_step, wait))
    return None if version.number in before else version
