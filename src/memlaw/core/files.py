"""Files and folders that are there whole or not at all, whatever happens to the process or the machine.

Where hard links exist, `os.link` gives a finished file its name unless another has it. FAT and some network file
systems have none; there a *claim* decides, a folder that holds the content and is renamed into place: a rename is
atomic, and onto a folder that is not empty it fails, so that one writer's claim stands, whole. Whoever finds a claim
carries it out: if the file is not there yet, it writes the claimed content, and only then removes the claim. Why this
is safe:

- A claim holds all that is needed. If its owner is killed, the next writer of the file finishes the work: nobody waits
  for the dead, and no clock is asked whether they are dead.
- A claim goes only once its file is there. So whoever read a claim, and after that saw no file, read the claim that
  counts. It may be paused as long as it likes: what it will write is what everybody else wrote.
- A writer that claims again after the file is there sees the file, and its claim means nothing.

The argument wants that all writers use one file system by the same road, and that only damaged files are ever removed.
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
"""What file systems without hard links answer; where the folder itself is the trouble, the claim meets it again."""


def write(path: Path, content: bytes, *, replace: bool = True, mode: int = 0o666) -> bool:
    """Put `content` at `path`, on disk before this returns; until then what was there stays.

    Without `replace` the first writer wins: False if the file holds another's content. Raises OSError; then the file is
    as it was, or, where its folder alone could not be synced, it may be either.
    """
    temporary = _temporary(path)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            won = _replace(temporary, path) if replace else _publish(temporary, path, content)
        except FileNotFoundError:  # `sweep` took the temporary for a dead writer's; without the folder, this raises too
            return write(path, content, replace=replace, mode=mode)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)  # a loser may rely on the winner's file, which need not have reached the disk yet
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
    """Do what the claim of `path` says, whoever made it. The order of the steps is the argument at the top."""
    claim = _claim_of(path)
    try:
        claimed = (claim / _CONTENT).read_bytes()
        mode = stat.S_IMODE((claim / _CONTENT).stat().st_mode)
    except FileNotFoundError:  # somebody else has done it
        return
    if not path.exists():
        write(path, claimed, mode=mode)
    discard(claim)


def _claim_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.claim.tmp")


def make_folders(folder: Path) -> None:
    """mkdir -p that survives a power cut: a new folder is an entry of its parent, which has to reach the disk."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to put files in; when the block ends they reach the disk, and it takes the place of `path`.

    If the block raises, nothing has changed. A folder that was at `path` goes when the new one is on disk; a kill
    between the two renames leaves both beside it, as temporaries. Raises OSError.
    """
    temporary, former = _temporary(path), _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
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


def numbered(folder: Path) -> list[Path]:
    """The folders in it whose names are numbers, the highest first."""
    return sorted((entry for entry in folder.glob("[0-9]*") if entry.name.isdecimal()), key=_number, reverse=True)


def _number(folder: Path) -> int:
    return int(folder.name)


def sign(folder: Path) -> None:
    """Write the folder's MANIFEST: the SHA-256 of every file in it, once all of them are on disk."""
    files = sorted(folder.iterdir())
    for file in files:
        sync(file)
    hashes = {file.name: file_sha256(file) for file in files}
    write(folder / MANIFEST, canonical_json(hashes).encode())


def check_signed(folder: Path) -> None:
    """Raises ValueError, which says what is wrong, unless the files are those that `sign` found, to the last bit."""
    try:
        signed = dict(json.loads((folder / MANIFEST).read_bytes()))
        found = {file.name: file_sha256(file) for file in folder.iterdir() if file.name != MANIFEST}
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"its {MANIFEST} is none") from error
    for name in sorted(found.keys() | signed.keys()):
        if found.get(name) != signed.get(name):
            raise ValueError(f"{name} is not the file that was saved")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """What is written of a file, or the entries of a folder, reaches the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether a file or folder is what a writer that was killed left behind."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def final_name(temporary: Path) -> str:
    """The name of the file that it would have become."""
    return temporary.name[1:].rsplit(".", 2)[0]


def leftovers(folder: Path) -> list[Path]:
    """The temporaries in a folder, of dead writers and of living ones."""
    return sorted(folder.glob(".*.tmp"))


def sweep(folder: Path) -> None:
    """Remove what killed writers left of files that are there by now. A living one that loses its temporary to this
    writes it once more."""
    for leftover in leftovers(folder):
        if leftover.with_name(final_name(leftover)).exists():
            discard(leftover)


def discard(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, as far as it is there and the system lets go of it."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Make `text` the content of the file `path`, whole or not at all; if `private`, for its owner's eyes only.

    Raises JournalError.
    """
    try:
        make_folders(path.parent)
        write(path, text.encode(), mode=0o600 if private else 0o666)
    except OSError as error:
        raise JournalError(
            f"{path} cannot be written: {error.strerror or error}. What was there is as it was; make room or choose "
            "another --out, and run the command again."
        ) from error


def read_json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise JournalError(f"{path} is not JSON ({error}); it was damaged or cut short. Write it again.") from error


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise JournalError(f"{path} is not UTF-8 text (byte {error.start}), so memlaw did not write it.") from error
