"""The files of a model by its name: bundled with memlaw, in a directory, one GGUF file, or on the Hugging Face Hub."""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path

from memlaw.core.errors import ModelError, first_line

BUNDLED = "memlaw/base"
"""The name under which the bundled base model is loaded."""


def source_of(name: str) -> str:
    """The directory, GGUF file or Hub id from which transformers loads `name`.

    Raises ModelError for a directory without a model, a file that is not GGUF, and a missing directory or file, which
    transformers would take for a Hub id and report with a puzzling message.
    """
    if is_gguf(name):
        _check_gguf(name)
        return name
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


_GGUF_PART = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", re.IGNORECASE)
"""How llama.cpp names the parts of a split model."""


def is_gguf(name: str) -> bool:
    """Whether `name` is that of a GGUF file, by its ending; the file need not exist."""
    return name.lower().endswith(".gguf") and not Path(name).is_dir()


def _check_gguf(name: str) -> None:
    path = Path(name)
    if not path.is_file():
        raise ModelError(f"The GGUF file {name} does not exist. Give its path, a directory, a Hub id or {BUNDLED}.")
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"GGUF":
        raise ModelError(
            f"{name} is not a GGUF file: it starts with {start!r} instead of b'GGUF'. Fetch it again; a file of a few "
            "hundred bytes may be a Git LFS pointer or an error page."
        )
    if _GGUF_PART.search(name):
        raise ModelError(
            f"{name} is one part of a split model, and transformers reads only whole ones. Merge the parts with "
            "`llama-gguf-split --merge FIRST_PART WHOLE.gguf`."
        )


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
