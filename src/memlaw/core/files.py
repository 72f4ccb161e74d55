"""Files and folders that are written whole or not at all, whatever happens to the process or the machine.

With hard links, `os.link` gives a finished file its name unless another file has it. FAT and some network file systems
lack them; there a *claim* decides, a folder with the content that is renamed into place. A rename is atomic, and fails
onto a folder that is not empty, so exactly one writer's claim stands, whole. Every writer that finds a claim carries it
out: it writes the claimed content if the file does not exist, and only then removes the claim. This is safe because:

- A claim holds everything needed. If its owner is killed, the next writer of the file finishes the work, without
  waiting or timeouts.
- A claim is removed only once its file exists. So a writer that reads a claim and afterwards finds no file has read the
  claim that counts. However long it pauses, it will write the same content as all others.
- A writer that makes a new claim once the file exists sees the file and ignores its claim.

This requires that all writers reach the same file system in the same way, and that only damaged files are removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memlaw.core.canonical import canonical_json
from memlaw.core.errors import JournalError

MANIFEST = "manifest.json"
_CONTENT = "content"

_NO_HARD_LINKS = {
    getattr(errno, name) for name in ("EPERM", "EACCES", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EMLINK", "EXDEV")
}
"""Answers of file systems without hard links. If the folder itself is at fault, the claim fails as well."""


def write(path: Path, content: bytes, *, replace: bool = True, mode: int = 0o666) -> bool:
    """Write `content` to `path`, and to disk before returning; until then the previous content stays.

    Without `replace` the first writer wins: returns False if the file has other content. Raises OSError; the file then
    has its previous content, or, if only its folder could not be synced, either.
    """
    temporary = _temporary(path)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            won = _replace(temporary, path) if replace else _publish(temporary, path, content)
        except FileNotFoundError:  # `sweep` took the temporary for a killed writer's; a missing folder raises again
            return write(path, content, replace=replace, mode=mode)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)  # also for a loser: the winner's file may not have reached the disk yet
    return won


def _replace(temporary: Path, path: Path) -> bool:
    os.replace(temporary, path)
    return True


def _publish(temporary: Path, path: Path, content: bytes) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _claim(temporary, path)
    else:
        return True
    return path.read_bytes() == content


def _claim(temporary: Path, path: Path) -> None:
    offer = _temporary(path)
    try:
        offer.mkdir()
        os.replace(temporary, offer / _CONTENT)
        if not path.exists():
            try:
                offer.rename(_claim_of(path))
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
        _carry_out(path)
    finally:
        discard(offer)


def _carry_out(path: Path) -> None:
    """Carry out the claim of `path`, from any writer, in the order that the argument at the top relies on."""
    claim = _claim_of(path)
    try:
        claimed = (claim / _CONTENT).read_bytes()
        mode = stat.S_IMODE((claim / _CONTENT).stat().st_mode)
    except FileNotFoundError:  # another writer has carried it out
        return
    if not path.exists():
        write(path, claimed, mode=mode)
    discard(claim)


def _claim_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.claim.tmp")


def make_folders(folder: Path) -> None:
    """mkdir -p that survives a power failure: the parent, which lists the new folder, must reach the disk."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary name to write a large file under; when the block ends, it is synced to disk and replaces `path`.

    If the block raises, `path` stays as it is. Raises OSError, then too.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        discard(temporary)


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary folder to put files in; when the block ends, it is synced to disk and replaces `path`.

    If the block raises, nothing changes. The previous folder is removed once the new one is on disk; a kill between the
    two renames leaves both beside `path`, as temporaries. Without `replace` there is one rename, and a `path` that
    holds anything stays as it is. Raises OSError, then too.
    """
    temporary, former = _temporary(path), _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        if replace:
            with contextlib.suppress(FileNotFoundError):
                path.rename(former)
        try:
            temporary.rename(path)
        except OSError:
            if former.exists():
                former.rename(path)
            raise
        sync(path.parent)
        discard(former)
    finally:
        discard(temporary)


def link_all(source: Path, target: Path) -> None:
    """Give every file of a folder a second name in `target`, which is made; a copy where there are no hard links.

    For files that never change: both names are one file. Raises OSError.
    """
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        shutil.copyfile(source, target)


def numbered(folder: Path) -> list[Path]:
    """Its subfolders whose names are numbers, highest first."""
    return sorted((entry for entry in folder.glob("[0-9]*") if entry.name.isdecimal()), key=_number, reverse=True)


def _number(folder: Path) -> int:
    return int(folder.name)


def sign(folder: Path) -> None:
    """Sync all files of the folder to disk, then write its MANIFEST, the SHA-256 of each."""
    files = sorted(folder.iterdir())
    for file in files:
        sync(file)
    hashes = {file.name: file_sha256(file) for file in files}
    write(folder / MANIFEST, canonical_json(hashes).encode())


def check_signed(folder: Path) -> None:
    """Raises ValueError, which names the fault, unless the files are those that were signed, to the last bit."""
    try:
        signed = dict(json.loads((folder / MANIFEST).read_bytes()))
        actual = {file.name: file_sha256(file) for file in folder.iterdir() if file.name != MANIFEST}
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"its {MANIFEST} is not a manifest") from error
    for name in sorted(actual.keys() | signed.keys()):
        if actual.get(name) != signed.get(name):
            raise ValueError(f"{name} is not the file that was saved")


def file_sha256(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether a file or folder is the temporary of a writer."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def final_name(temporary: Path) -> str:
    """The name that a temporary was to get."""
    return temporary.name[1:].rsplit(".", 2)[0]


def leftovers(folder: Path) -> list[Path]:
    """The temporaries in a folder, of killed writers and of running ones."""
    return sorted(folder.glob(".*.tmp"))


def sweep(folder: Path) -> None:
    """Remove temporaries of files that exist by now. A running writer that loses its temporary writes it again."""
    for leftover in leftovers(folder):
        if leftover.with_name(final_name(leftover)).exists():
            discard(leftover)


def discard(path: Path) -> None:
    """Remove a file, or a folder and its content, ignoring OSErrors."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write `text` to the file `path`, whole or not at all; if `private`, readable by its owner only.

    Raises JournalError.
    """
    try:
        make_folders(path.parent)
        write(path, text.encode(), mode=0o600 if private else 0o666)
    except OSError as error:
        raise JournalError(
            f"{path} cannot be written: {error.strerror or error}. Its previous content is unchanged; free disk space "
            "or choose another --out, and rerun the command."
        ) from error


def read_json(path: Path) -> Any:
    """The value in a JSON file; None if the file does not exist. Raises JournalError if it cannot be read."""
    if not path.exists():
        return None
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise JournalError(f"{path} is not JSON ({error}); it was damaged or cut short. Create it again.") from error


def read_text(path: Path) -> str:
    """The content of a UTF-8 file. Raises JournalError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise JournalError(f"{path} is not UTF-8 text (byte {error.start}), so memlaw did not write it.") from error
