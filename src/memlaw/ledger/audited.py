"""Measuring the facts of a version again: with its own adapter, or with one that is served elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from memlaw.adapter.peft import attach
from memlaw.core.facts import Fact
from memlaw.ledger.measured import bench, check_base, held_as, measured, retracted_as
from memlaw.ledger.records import Audit, now
from memlaw.ledger.store import Store
from memlaw.model.base import Base


def audit(
    store: Store,
    base: Base,
    number: int | None = None,
    *,
    adapter: Path | None = None,
    originals: Sequence[Fact] = (),
    harm: bool = False,
) -> Audit:
    """Measure every fact of a version (None: the current one), keep the result as its latest audit, and return it.

    `adapter` is a directory with what is served in place of the version's own adapter; `originals` are facts whose
    texts the ledger does not keep; `harm` measures side effects as well. Raises LedgerError for another base, a damaged
    version and missing texts; AdapterError for an adapter that cannot be loaded.
    """
    settings = store.settings()
    check_base(base, settings)
    version = store.head() if number is None else store.version(number)
    texts = store.texts(version, originals)
    wanted, unwanted = texts.of(version.held), texts.of(version.retracted)
    folder = store.adapter(version.number) if adapter is None else adapter
    on = bench(base, wanted, unwanted, settings.eos, harm=harm)
    result = measured(base, on, partial(_attached, base, folder))
    items = () if result.report is None else result.report.items
    found = Audit(
        version=version.number,
        held=tuple(held_as(*each) for each in zip(version.held, items, strict=True)),
        retracted=tuple(retracted_as(*each) for each in zip(version.retracted, result.gone, strict=True)),
        adapter="" if adapter is None else str(adapter),
        created=now(),
        side_effects=result.side_effects,
        rounding=None if result.report is None else result.report.rounding,
        returned=tuple(one.id for one in result.gone if not one.holds),
    )
    store.keep_audit(found)
    return found


def _attached(base: Base, folder: Path | None) -> AbstractContextManager[object]:
    """The base with the adapter of a folder; a version without facts has none."""
    return nullcontext() if folder is None else attach(base, folder)
