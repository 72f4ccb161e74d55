"""Files that are there whole or not at all, whatever happens to the process or the machine."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Put `content` at `path`, on disk before this returns; until then what was there stays. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(folder: Path) -> None:
    """The entries of a folder reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
