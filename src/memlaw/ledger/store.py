"""Reading and writing the files of one ledger."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from memlaw.core import files
from memlaw.core.canonical import to_dict
from memlaw.core.errors import LedgerError, MemlawError, listed, suggest
from memlaw.core.facts import Fact
from memlaw.core.sealed import UNKNOWN_FIELDS, Fault, seal
from memlaw.ledger.contents import (
    Manifest,
    check_consistent,
    parse_audit,
    parse_head,
    parse_manifest,
    parse_settings,
    settings_to_dict,
)
from memlaw.ledger.layout import (
    AUDITS,
    HEAD,
    LEDGER,
    LOCK,
    MANIFEST,
    PRIVATE,
    TEXTS,
    VERSIONS,
    adapter_folder,
    version_folder,
)
from memlaw.ledger.records import Audit, Change, Pair, Settings, Version, now, pair_of
from memlaw.ledger.texts import Texts, read_texts, write_texts

T = TypeVar("T")

AdapterWriter = Callable[[Path], object]
"""Writes an adapter into the folder that it is given, which does not exist yet."""


class Store:
    """The files of one ledger under `root`. Nothing is read before it is asked for; all methods raise LedgerError."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._lock = FileLock(self.root / LOCK)
        self._settings: Settings | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a ledger here."""
        return _present(self.root / LEDGER)

    def settings(self) -> Settings:
        """What all versions share. Read once: it never changes."""
        if self._settings is None:
            if not self.exists:
                raise not_a_ledger(self.root)
            self._settings = self._record(self.root / LEDGER, parse_settings)
        return self._settings

    def head(self) -> Version:
        """The current version, checked against HEAD and its own seal."""
        number, sha256 = self.head_entry()
        if not _present(self.folder(number)):
            raise LedgerError(
                f"{HEAD} names version {number}, but {self.folder(number)} is missing. {self._way_back()}"
            )
        manifest = self.manifest(number)
        if manifest.sha256 != sha256:
            raise LedgerError(
                f"{self._manifest_file(number)} is not the one that {HEAD} names: it was replaced by hand, or restored "
                f"from another ledger. {self._way_back()}"
            )
        return manifest.version

    def head_entry(self) -> tuple[int, str]:
        """What HEAD says: the number of the current version and the SHA-256 of its manifest."""
        self.settings()
        return self._record(self.root / HEAD, parse_head, self._way_back)

    def version(self, number: int) -> Version:
        """A complete version, its manifest checked."""
        self.settings()
        return self.manifest(number).version

    def manifest(self, number: int) -> Manifest:
        """A version with the hashes of its files, which are not read."""
        path = self._manifest_file(number)
        if not _present(path.parent):
            raise LedgerError(f"{self.root} has no version {number}; it has {listed(map(str, self.numbers()))}.")
        return self._record(path, lambda content: parse_manifest(number, content), self._way_back)

    def numbers(self) -> tuple[int, ...]:
        """The numbers of all versions, also of those that HEAD never reached, in order."""
        try:
            return tuple(int(folder.name) for folder in reversed(files.numbered(self.root / VERSIONS)))
        except OSError as error:
            raise _unreadable(self.root / VERSIONS, error) from error

    def versions(self) -> Iterator[Version]:
        """All versions in the order of their numbers."""
        return (self.version(number) for number in self.numbers())

    def lineage(self, number: int | None = None) -> tuple[int, ...]:
        """The versions from 0 to `number` (default: HEAD), each the parent of the next."""
        version = self.head() if number is None else self.version(number)
        line = [version.number]
        while version.parent is not None:
            if version.parent >= version.number:
                raise LedgerError(f"{self._manifest_file(version.number)} names a later version as its parent.")
            version = self.version(version.parent)
            line.append(version.number)
        return tuple(reversed(line))

    def adapters(self, number: int) -> dict[int, Path]:
        """The folders of a version's adapters by their numbers, every file of the version checked."""
        manifest = self.manifest(number)
        if manifest.version.adapters:
            self.check_files(manifest)
        folder = self.folder(number)
        return {one.number: folder / adapter_folder(one.number) for one in manifest.version.adapters}

    def check_files(self, manifest: Manifest) -> None:
        """Raise LedgerError unless the files beside the manifest are those that were published, to the last bit."""
        for fault in self.faults(manifest):
            raise LedgerError(
                f"{self.root / fault.path} cannot be trusted: {fault.why}. Version {manifest.version.number} is not "
                f"what was published. {self._way_back()}"
            )

    def faults(self, manifest: Manifest) -> tuple[Fault, ...]:
        """The files beside a manifest that are missing, foreign or not what was published."""
        folder = self.folder(manifest.version.number)
        try:
            actual = _hashes(folder)
        except OSError as error:
            raise _unreadable(folder, error) from error
        why = {
            name: "it is missing"
            if name not in actual
            else "it was not published with its version"
            if name not in manifest.files
            else "its SHA-256 does not match"
            for name in sorted(actual.keys() | manifest.files.keys())
            if actual.get(name) != manifest.files.get(name)
        }
        return tuple(Fault((folder / name).relative_to(self.root).as_posix(), reason) for name, reason in why.items())

    def texts(self, version: Version, originals: Sequence[Fact] = ()) -> Texts:
        """The texts of everything that a version holds or has retracted, from the files of the versions `since`, which
        are read as facts of them are asked for.

        `originals` are facts that a user gives again; those that the version does not know do no harm.
        """
        settings = self.settings()
        given = {pair_of(fact, settings.key): fact for fact in originals}
        if not settings.texts:
            return Texts(given, None, {})
        since = {*(fact.since for fact in version.held), *(old.since for old in version.retracted)}
        return Texts(given, self.root / VERSIONS, {number: partial(self._texts_of, number) for number in since})

    def _texts_of(self, number: int) -> dict[Pair, Fact]:
        """The texts that a version introduced."""
        return read_texts(self._content(self.folder(number) / TEXTS) or b"", self.settings().key)

    def audit(self, number: int) -> Audit | None:
        """The latest audit of a version; None if there is none."""
        self.settings()
        path = self._audit_file(number)
        if not _present(path):
            return None
        return self._record(path, lambda content: parse_audit(number, content), lambda: "Audit the version again.")

    def create(self, settings: Settings) -> Version:
        """Make the ledger, with the empty version 0. Its directory must be new, empty, or of a killed `create`.

        ledger.json is written last: without it there is no ledger, and creating it again starts over.
        """
        self.check_free()
        with self._writing("The ledger was not made", "Choose another directory."):
            files.make_folders(self.root)
            with self.locked():
                self.check_free()
                files.make_folders(self.root / VERSIONS)
                empty = Version(0, None, (), (), Change(), settings.rank, now())
                manifest = self._build(empty, texts=None, replace=True)
                self._point(0, manifest)
                files.write(self.root / LEDGER, seal(settings_to_dict(settings)), mode=PRIVATE)
                self._tidy()
        return empty

    @contextlib.contextmanager
    def locked(self, wait: float = 0.0) -> Iterator[None]:
        """Be the only writer; may be nested. Waits up to `wait` seconds for another one, math.inf for as long as it
        takes, and then raises LedgerError. A killed writer holds no lock."""
        try:
            self._lock.acquire(timeout=-1 if math.isinf(wait) else wait)
        except Timeout:
            raise LedgerError(
                f"Another process is writing to {self.root}. Two updates at once would each miss what the other "
                "stores, so this one has changed nothing. Run it again once the other has ended, or let it wait: "
                "--wait."
            ) from None
        except OSError as error:
            raise LedgerError(
                f"{self.root / LOCK} cannot be locked: {error.strerror or error}. Nothing was changed. Writing needs "
                "a directory that you may write to, on a file system with locks."
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    def next_number(self) -> int:
        """The number of the next version: one more than the highest ever published, so none is used twice."""
        return max((*self.numbers(), self.head_entry()[0])) + 1

    def publish(
        self, version: Version, *, trained: Mapping[int, AdapterWriter] | None = None, texts: Sequence[Fact] = ()
    ) -> Version:
        """Publish a version whose parent is HEAD, and make it the current one; once this returns, it survives a kill.

        `trained` has those of `version.adapters` that are new or changed; the others are the parent's, file by file.
        `texts` are the facts that are new or changed in this version, with the ids of `version.held`; a ledger without
        texts ignores them.
        Call it under the `locked` that covers the whole update. Raises LedgerError if anything cannot be written or
        another version was published meanwhile: the ledger then is as it was, or the message says what is left to do.
        """
        with self.locked():
            parent, _ = self.head_entry()
            if (version.number, version.parent) != (self.next_number(), parent):
                raise LedgerError(
                    f"The ledger changed during the update: version {parent} is current, and version "
                    f"{self.next_number()} would be next, but this update made version {version.number} from "
                    f"{version.parent}. Nothing was published; run the update again."
                )
            check_consistent(version)
            rows = write_texts(version, texts, self.settings().key) if self.settings().texts else None
            with self._writing(f"Version {version.number} was not published", f"Version {parent} stays current."):
                self._tidy()
                manifest = self._build(version, trained or {}, texts=rows)
            self._advance(version.number, manifest)
        return version

    def move_head(self, number: int) -> Version:
        """Make a complete version the current one, back or forth, after checking all of its files."""
        with self.locked():
            self.settings()
            manifest = self.manifest(number)
            self.check_files(manifest)
            with self._writing("HEAD was not moved", "The current version is the one before."):
                self._point(number, manifest.sha256)
        return manifest.version

    def keep_audit(self, audit: Audit) -> None:
        """Keep an audit in place of the last one of its version. Needs no lock."""
        self.manifest(audit.version)
        with self._writing("The audit was not kept", "The audit before it is."):
            files.make_folders(self.root / AUDITS)
            files.write(self._audit_file(audit.version), seal(to_dict(audit)))

    def folder(self, number: int) -> Path:
        """The folder of a version."""
        return self.root / VERSIONS / version_folder(number)

    def _manifest_file(self, number: int) -> Path:
        return self.folder(number) / MANIFEST

    def _audit_file(self, number: int) -> Path:
        return self.root / AUDITS / f"{version_folder(number)}.json"

    def _build(
        self,
        version: Version,
        trained: Mapping[int, AdapterWriter] | None = None,
        *,
        texts: bytes | None,
        replace: bool = False,
    ) -> str:
        """Make the folder of a version, whole or not at all; returns the SHA-256 of its manifest."""
        with files.new_folder(self.folder(version.number), replace=replace) as built:
            self._add_adapters(version, trained or {}, built)
            if texts:
                files.write(built / TEXTS, texts, mode=PRIVATE)
            content = seal({"files": _hashes(built), "version": to_dict(version)})
            files.write(built / MANIFEST, content)
        return hashlib.sha256(content).hexdigest()

    def _add_adapters(self, version: Version, trained: Mapping[int, AdapterWriter], built: Path) -> None:
        kept = {one.number for one in version.adapters} - trained.keys()
        before = self.adapters(version.parent) if kept and version.parent is not None else {}
        for one in version.adapters:
            folder = built / adapter_folder(one.number)
            files.make_folders(folder.parent)
            if one.number in trained:
                trained[one.number](folder)
            else:
                files.link_all(before[one.number], folder)

    def _point(self, number: int, manifest: str) -> None:
        files.write(self.root / HEAD, seal({"version": number, "manifest": manifest}))

    def _advance(self, number: int, manifest: str) -> None:
        """Move HEAD to a version that was just published. The version is complete, so a failure loses no work."""
        try:
            self._point(number, manifest)
        except OSError as error:
            current, _ = self.head_entry()
            if current == number:
                raise LedgerError(
                    f"Version {number} is current, but the disk did not confirm it: {error.strerror or error}. It may "
                    "be lost if the machine stops now. Repair the disk, then run: memlaw ledger verify."
                ) from error
            raise LedgerError(
                f"Version {number} is complete, but HEAD cannot be moved to it: {error.strerror or error}. Version "
                f"{current} stays current. Free some space or repair the disk, then run: memlaw ledger rollback "
                f"{self.root} {number}"
            ) from error

    def check_free(self) -> None:
        """Raise LedgerError unless a ledger may be made here: memlaw writes into no directory of someone else."""
        if self.exists:
            raise LedgerError(f"{self.root} is a ledger already. Update it, or choose another directory.")
        if _present(self.root) and not self.root.is_dir():
            raise LedgerError(f"{self.root} is a file; a ledger is a directory. Choose another.")
        if any(number for number in self.numbers()):
            raise LedgerError(
                f"{self.root} has the versions of a ledger, but no {LEDGER}. Nothing was written there. Restore the "
                "file from a backup, or choose another directory."
            )
        ours = {VERSIONS, HEAD, LOCK}
        strangers = sorted(
            path.name for path in self.root.glob("*") if path.name not in ours and not files.is_temporary(path)
        )
        if strangers:
            raise LedgerError(
                f"{self.root} is not empty: it holds {strangers[0]}{' and more' if len(strangers) > 1 else ''}. "
                "Nothing was written there. Choose another directory."
            )

    def _tidy(self) -> None:
        """Remove the temporaries of killed writers; only under the lock, so none of them is still at work."""
        for folder in (self.root, self.root / VERSIONS):
            for leftover in files.leftovers(folder):
                files.discard(leftover)

    @contextlib.contextmanager
    def _writing(self, what: str, state: str) -> Iterator[None]:
        try:
            yield
        except MemlawError:
            raise
        except OSError as error:
            raise LedgerError(
                f"{what}: {error.strerror or error}. {state} Free some space or repair the disk, and run the command "
                "again."
            ) from error

    def _record(self, path: Path, parse: Callable[[bytes], T], way_out: Callable[[], str] | None = None) -> T:
        """The content of a sealed file, parsed."""
        advice = way_out or (lambda: "Restore it from a backup.")
        content = self._content(path)
        if content is None:
            raise LedgerError(f"{path} is missing. {advice()}")
        try:
            return parse(content)
        except UNKNOWN_FIELDS as error:
            raise LedgerError(
                f"{path} is intact but has fields or values that this version of memlaw does not know. Use the version "
                "that wrote it, or a newer one."
            ) from error
        except ValueError as error:
            raise LedgerError(f"{path} is damaged: {error}. {advice()}") from error

    def _content(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(path, error) from error

    def _way_back(self) -> str:
        """What to do about a version, or HEAD, that cannot be used."""
        return (
            f"Restore it from a backup, or go to the last intact version: memlaw ledger verify {self.root} names it, "
            f"and memlaw ledger rollback {self.root} VERSION makes it current."
        )


def not_a_ledger(directory: Path) -> LedgerError:
    """The error for a directory without a ledger."""
    return LedgerError(
        f"{directory} is not a ledger: it has no {LEDGER}. {_nearest(directory)}Check the path, or make one: memlaw "
        f"ledger init {directory}"
    )


def _nearest(directory: Path) -> str:
    """The ledger that was probably meant: around the directory, in it, or beside it under a similar name."""
    around = directory.absolute().parents[:2]
    with contextlib.suppress(OSError):
        inside = sorted(path.parent for path in directory.glob(f"*/{LEDGER}"))
        for meant in (*(parent for parent in around if (parent / LEDGER).is_file()), *inside):
            return f"{meant} is one. "
        return suggest(str(directory), (str(path.parent) for path in directory.parent.glob(f"*/{LEDGER}")))
    return ""


def _present(path: Path) -> bool:
    """Whether there is such a file or folder. Raises LedgerError if that cannot be known."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(path, error) from error
    return True


def _hashes(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file in a version's folder but its manifest."""
    entries = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {path.relative_to(folder).as_posix(): files.file_sha256(path) for path in entries}


def _unreadable(path: Path, error: OSError) -> LedgerError:
    return LedgerError(
        f"Cannot read {path}: {error.strerror or error}. Without it, facts could be lost or trained twice. Make it "
        "readable, then run the command again."
    )
