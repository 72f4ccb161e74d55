"""The files of a model by its name: bundled with memlaw, in a directory, or in a repository of the Hugging Face Hub."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from memlaw.core.errors import ModelError, first_line

BUNDLED = "memlaw/base"
"""The name under which the bundled base model is loaded."""


def source_of(name: str) -> str:
    """The directory or Hub id from which transformers loads `name`.

    Raises ModelError for a directory without a model, and for a missing one, which transformers would take for a Hub id
    and report with a puzzling message.
    """
    source = str(importlib.resources.files("memlaw.model") / "bundled") if name == BUNDLED else name
    path = Path(source)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise ModelError(
            f"The model directory {name} does not exist. Give a directory, a Hub id (owner/name) or {BUNDLED}."
        )
    if path.is_dir() and not (path / "config.json").exists():
        raise ModelError(f"The directory {name} has no config.json, so it is not a model saved by `save_pretrained`.")
    return source


def file_of(source: str, file: str) -> Path | None:
    """Path of one file of a source: in its directory, in the Hub's cache, or downloaded into it; None if nowhere.

    Raises ModelError for a repository that cannot be loaded from the Hub.
    """
    if Path(source).is_dir():
        path = Path(source, file)
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(source, file))
    except EntryNotFoundError:  # also when offline and not in the cache
        return None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{source} is neither a local directory nor a model that can be loaded from the Hub ({first_line(error)}). "
            "Check the name, the network and, for a private model, your login."
        ) from error


def cached(source: str, file: str) -> Path | None:
    """Path of one file of a source on this machine; None if it is not there. Downloads nothing."""
    if Path(source).is_dir():
        return file_of(source, file)
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(source, file)
    return Path(path) if isinstance(path, str) else None
