"""Where memlaw keeps what it would otherwise compute again: never a result, always safe to delete."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "MEMLAW_CACHE"
"""Environment variable that names the folder."""


def cache_folder(kind: str) -> Path:
    """The folder for one `kind` of computed files: in MEMLAW_CACHE, or else in memlaw's part of the user's cache.

    The user's cache is XDG_CACHE_HOME, or else `~/.cache`. The folder is not created. Who writes there must tolerate a
    folder that cannot be written, and who reads there a file that is damaged.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen) / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memlaw" / kind
