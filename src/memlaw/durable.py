"""Files that are there whole or not at all, whatever happens to the process or the machine."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write(path: Path, content: bytes, *, replace: bool = True, mode: int = 0o666) -> bool:
    """Put `content` at `path`, on disk before this returns; until then what was there stays.

    Without `replace` the first writer wins: False if a file is there already. Raises OSError, and then nothing changed.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # see is_temporary, final_name
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    except FileExistsError:
        return False
    except FileNotFoundError:  # somebody swept up, having found the file of another writer there
        if replace or not path.exists():
            raise
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    return True


def make_folders(folder: Path) -> None:
    """mkdir -p that survives a power cut: a new folder is an entry of its parent, which has to reach the disk."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """What is written of a file, or the entries of a folder, reaches the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(path: Path) -> bool:
    """Whether a file is what a writer that was killed left behind."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def final_name(temporary: Path) -> str:
    """The name of the file that it would have become."""
    return temporary.name[1:].rsplit(".", 2)[0]
