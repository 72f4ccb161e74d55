"""Measuring the facts of a version again: with its own adapters, or with what is served elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from memlaw.adapter.peft import attach
from memlaw.core.facts import Fact
from memlaw.core.side_effects import worst
from memlaw.ledger.measured import bench, check_base, held_as, measured, retracted_as
from memlaw.ledger.records import Audit, Held, Pair, Retracted, now
from memlaw.ledger.served import served
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

    Each fact is asked with its own adapter. `adapter` is a directory with what is served in place of the version's
    own, as `export` wrote it; `originals` are facts whose texts the ledger does not keep; `harm` measures side effects
    as well, of the adapter that costs most. Raises LedgerError for another base, a damaged version and missing texts;
    AdapterError for an adapter that cannot be loaded.
    """
    settings = store.settings()
    check_base(base, settings)
    version = store.head() if number is None else store.version(number)
    texts = store.texts(version, originals)
    folders = store.adapters(version.number) if adapter is None else served(version, adapter)
    held: dict[str, Held] = {}
    retracted: dict[Pair, Retracted] = {}
    results = []
    for which in version.asked():
        wanted = [fact for fact in version.held if fact.adapter == which]
        unwanted = [old for old in version.retracted if version.asked_of(old) == which]
        on = bench(base, texts.of(wanted), texts.of(unwanted), settings.eos, harm=harm)
        result = measured(base, on, partial(_attached, base, folders.get(which)))
        items = () if result.report is None else result.report.items
        held |= {fact.id: held_as(fact, item) for fact, item in zip(wanted, items, strict=True)}
        retracted |= {old.pair: retracted_as(old, one) for old, one in zip(unwanted, result.gone, strict=True)}
        results.append(result)
    reports = [result.report for result in results if result.report is not None]
    found = Audit(
        version=version.number,
        held=tuple(held[fact.id] for fact in version.held),
        retracted=tuple(retracted[old.pair] for old in version.retracted),
        adapter="" if adapter is None else str(adapter),
        created=now(),
        side_effects=worst(result.side_effects for result in results),
        rounding=max((report.rounding for report in reports if report.rounding is not None), default=None),
        returned=tuple(one.id for result in results for one in result.gone if not one.holds),
    )
    store.keep_audit(found)
    return found


def _attached(base: Base, folder: Path | None) -> AbstractContextManager[object]:
    """The base with the adapter of a folder; without one, alone."""
    return nullcontext() if folder is None else attach(base, folder)
