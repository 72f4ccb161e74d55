"""A version as it is served: its adapters in a directory, and which prompt goes to which of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memlaw.adapter.info import INFO
from memlaw.core import files
from memlaw.core.canonical import canonical_json
from memlaw.core.errors import LedgerError
from memlaw.ledger.layout import PRIVATE, adapter_folder
from memlaw.ledger.records import Version, prompt_hash
from memlaw.ledger.store import Store

ROUTES = "routes.json"


@dataclass(frozen=True)
class Routes:
    """Which adapter a prompt is to be served with."""

    key: str
    """Secret of the hashes, in hexadecimal."""
    adapters: Mapping[str, int]
    """Hash of a fact's prompt -> number of the adapter that brings the fact back."""

    def of(self, prompt: str) -> int | None:
        """The number of the adapter for a prompt; None for one that is no fact's, to which any or none will do."""
        return self.adapters.get(prompt_hash(prompt, self.key))


def routes_of(version: Version, key: str) -> Routes:
    """The routes of a version; `key` is the ledger's."""
    return Routes(key, {fact.prompt: fact.adapter for fact in version.held})


def routes(directory: str | os.PathLike[str]) -> Routes:
    """The routes that `export` wrote beside the adapters. Reads nothing else. Raises LedgerError."""
    path = Path(directory) / ROUTES
    try:
        body = json.loads(path.read_bytes())
        return Routes(str(body["key"]), {str(prompt): int(number) for prompt, number in body["adapters"].items()})
    except FileNotFoundError:
        raise LedgerError(
            f"{directory} has no {ROUTES}. `memlaw ledger export` writes it for a version of several adapters; with "
            "one, every prompt goes to it."
        ) from None
    except OSError as error:
        raise LedgerError(f"Cannot read {path}: {error.strerror or error}. Make it readable.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerError(f"{path} is damaged. Export the version again: memlaw ledger export.") from error


def served(version: Version, directory: Path) -> dict[int, Path]:
    """The adapters in a directory that `export` wrote, by their numbers. Raises LedgerError if one is missing."""
    if len(version.adapters) <= 1:
        return {one.number: directory for one in version.adapters}
    folders = {one.number: directory / str(one.number) for one in version.adapters}
    for number, folder in folders.items():
        if not folder.is_dir():
            raise LedgerError(
                f"Version {version.number} has {len(folders)} adapters, and {directory} has no folder {number}. Give "
                "the directory that `memlaw ledger export` made."
            )
    return folders


def export(store: Store, out: str | os.PathLike[str], number: int | None = None) -> Version:
    """Copy the adapters of a version (default: the current one) to `out`, whole or not at all; returns the version.

    One adapter is copied to `out` itself. Several become its folders 1, 2, ..., and routes.json says which prompt goes
    to which; only its owner can read it. `out` must be new, empty, or hold what memlaw exported before, which is
    replaced. Raises LedgerError.
    """
    version = store.head() if number is None else store.version(number)
    sources, target = store.adapters(version.number), Path(out)
    if not sources:
        raise LedgerError(
            f"Version {version.number} holds no facts and so has no adapter to export. Choose another version."
        )
    _check_free(target)
    target = target.absolute()
    try:
        files.make_folders(target.parent)
        with files.new_folder(target) as built:
            for which, source in sources.items():
                folder = built if len(sources) == 1 else built / str(which)
                shutil.copytree(source, folder, dirs_exist_ok=True)
                _check_copy(store, version, which, folder)
            if len(sources) > 1:
                table = routes_of(version, store.settings().key)
                files.write(built / ROUTES, canonical_json(vars(table)).encode(), mode=PRIVATE)
    except OSError as error:
        raise LedgerError(
            f"Cannot write {out}: {error.strerror or error}. The ledger is unchanged; free some space or choose "
            "another directory."
        ) from error
    return version


def _check_copy(store: Store, version: Version, which: int, folder: Path) -> None:
    hashes, where = store.manifest(version.number).files, adapter_folder(which)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    if any(files.file_sha256(folder / name) != hashes.get(f"{where}/{name}") for name in names):
        raise LedgerError(f"An adapter of version {version.number} changed while it was copied. Verify the ledger.")


def _check_free(target: Path) -> None:
    """Raise LedgerError unless an adapter may be put there: memlaw overwrites only what it wrote itself."""
    if target.exists() and not target.is_dir():
        raise LedgerError(f"{target} is a file; an adapter is a directory. Choose another.")
    ours = any((target / name).is_file() for name in (INFO, ROUTES))
    if target.is_dir() and any(target.iterdir()) and not ours:
        raise LedgerError(f"{target} is not empty and holds no adapter of memlaw. Choose another directory.")
