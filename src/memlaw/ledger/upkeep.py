"""Maintenance of a ledger: whether its files are what was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from memlaw.core import files
from memlaw.core.errors import LedgerError
from memlaw.core.sealed import Fault, Inspection
from memlaw.ledger import view
from memlaw.ledger.contents import Manifest, parse_audit, parse_head, parse_manifest, parse_settings
from memlaw.ledger.layout import AUDITS, HEAD, LEDGER, LOCK, MANIFEST, VERSIONS, VIEW
from memlaw.ledger.store import Store, not_a_ledger

_OURS = {LEDGER, HEAD, LOCK, VIEW, f"{VIEW}-journal", VERSIONS, AUDITS}


@dataclass(frozen=True)
class VerifyReport:
    """The state of every file of a ledger."""

    out: str
    intact: bool
    """HEAD leads to a version, and no file is damaged, unreadable or missing."""
    current: int | None
    """The version that HEAD names; None if HEAD cannot be read."""
    facts: int | None
    """Facts that the current version should bring back; None if it cannot be read."""
    versions: tuple[int, ...]
    """Versions of which every file is what was published."""
    aside: tuple[int, ...]
    """Those of them from which the current one was not made: rolled back, or published by an update that was killed
    before it became current. `rollback` makes any of them current."""
    damaged: tuple[Fault, ...]
    """Files whose content has changed since they were written, or that are missing from a version."""
    unreadable: tuple[Fault, ...]
    """Files that the system cannot read, or that another version of memlaw wrote."""
    foreign: tuple[str, ...]
    """Files that memlaw did not write here; they are ignored."""
    view: Literal["current", "outdated", "absent"]
    """Whether ledger.db agrees with the versions; if not, the next query mends it."""
    leftovers: tuple[str, ...]
    """Temporary files of killed or running writers; they are harmless, and the next update removes them."""


def verify(store: Store) -> VerifyReport:
    """Check the SHA-256 of every file. Reads only: nothing is moved, written or removed.

    Raises LedgerError if there is no ledger, or one of a later format.
    """
    root = store.root
    if not store.exists and not store.numbers():
        raise not_a_ledger(root)
    inspection = Inspection(root)
    inspection.read(root / LEDGER, parse_settings)
    manifests = _manifests(store, inspection)
    damaged = {number for number, manifest in manifests.items() if _add_faults(store, manifest, inspection)}
    current = _current(manifests, inspection)
    for path in sorted((root / AUDITS).glob("[0-9]*.json")):
        inspection.read(path, partial(_parse_audit, path.stem))
    whole = tuple(number for number in manifests if number not in damaged)
    line = _lineage(manifests, current)
    return VerifyReport(
        out=str(root),
        intact=not inspection.damaged and not inspection.unreadable,
        current=current,
        facts=len(manifests[current].version.held) if current in manifests else None,
        versions=whole,
        aside=tuple(number for number in whole if number not in line),
        damaged=tuple(inspection.damaged),
        unreadable=tuple(inspection.unreadable),
        foreign=tuple(_foreign(root)),
        view=view.state(store),
        leftovers=tuple(sorted(path.relative_to(root).as_posix() for path in root.rglob(".*.tmp"))),
    )


def _manifests(store: Store, inspection: Inspection) -> dict[int, Manifest]:
    manifests = {}
    for number in store.numbers():
        manifest = inspection.read(store.folder(number) / MANIFEST, partial(parse_manifest, number))
        if manifest is not None:
            manifests[number] = manifest
    return manifests


def _add_faults(store: Store, manifest: Manifest, inspection: Inspection) -> bool:
    try:
        faults = store.faults(manifest)
    except LedgerError as error:
        faults = (inspection.fault(store.folder(manifest.version.number), str(error.__cause__)),)
    inspection.damaged += faults
    return bool(faults)


def _current(manifests: dict[int, Manifest], inspection: Inspection) -> int | None:
    entry = inspection.read(inspection.root / HEAD, parse_head)
    if entry is None:
        return None
    number, sha256 = entry
    if number not in manifests:
        why = f"it names version {number}, which is missing or damaged"
    elif manifests[number].sha256 != sha256:
        why = f"it names another manifest than that of version {number}"
    else:
        return number
    inspection.damaged.append(inspection.fault(inspection.root / HEAD, why))
    return number


def _lineage(manifests: dict[int, Manifest], current: int | None) -> set[int]:
    line: set[int] = set()
    while current in manifests and current not in line:
        line.add(current)
        current = manifests[current].version.parent
    return line


def _parse_audit(stem: str, content: bytes) -> object:
    if not stem.isdecimal():
        raise ValueError("its name is not the number of a version")
    return parse_audit(int(stem), content)


def _foreign(root: Path) -> Iterator[str]:
    for folder, is_ours in (
        (root, lambda path: path.name in _OURS),
        (root / VERSIONS, lambda path: path.name.isdecimal()),
        (root / AUDITS, lambda path: path.stem.isdecimal() and path.suffix == ".json"),
    ):
        for path in sorted(folder.glob("*")):
            if not is_ours(path) and not files.is_temporary(path):
                yield path.relative_to(root).as_posix()
