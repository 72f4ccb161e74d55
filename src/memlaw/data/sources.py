"""From a path or a Hub id to a table: find the source, make sure that it is text and of a sane size.

Files are read whole, so limits keep a wrong file (or a gzip bomb) from exhausting memory.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from memlaw.core.errors import DataError
from memlaw.data.rows import MAX_LINE, Shape, Table
from memlaw.data.tables import SUFFIXES, text_table

MAX_FILE = 1 << 30
"""Bytes of one file, after gzip expansion."""

MAX_EXPANSION = 100
"""Bytes out per byte of gzip in; text stays far below, a bomb reaches 1000."""

_GZIP_MAGIC = b"\x1f\x8b"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_table(source: str | Path, asked: Shape | None) -> Table:
    """Recognise `source` and open its rows; `asked` are the fields that the user named, if any.

    Raises DataError for a source that is missing, empty, not text, over a limit, or (while rows are read) damaged.
    """
    name = os.fspath(source)
    mode = _mode(name)
    if mode is None and _is_hub_id(name):
        return _hub_dataset(name)
    if mode is not None and stat.S_ISDIR(mode):
        return _saved_dataset(name)
    return text_table(read_text(source), name, _suffix(name), asked)


def _suffix(name: str) -> str:
    """The suffix in lower case; the one before .gz where there are two."""
    path = Path(name)
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def read_text(source: str | Path) -> str:
    """Read a UTF-8 text file, verbatim except for a byte-order mark; gzip is expanded. Raises DataError."""
    name = os.fspath(source)
    data = _read_bytes(name)
    if data.startswith(_GZIP_MAGIC):
        data = _expand(data, name)
    _refuse_long_lines(data, name)
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{name} is not UTF-8 text: byte {column} of line {line} (offset {error.start} in the file) is not valid. "
            "Facts are stored character by character, so the encoding must be known: save the file as UTF-8."
        ) from None
    if not text or text.isspace():
        raise DataError(f"{name} is empty, so there is nothing to store. Give it at least one prompt with its target.")
    return text


def _mode(name: str) -> int | None:
    """The file mode of `name`; None if it does not exist."""
    try:
        return Path(name).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        # The name is left out: a text given by mistake ends here (File name too long), and texts are never shown.
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"The source cannot be opened: {reason}. Give a path, or a Hub id such as owner/name."
        ) from None


def _read_bytes(name: str) -> bytes:
    if _mode(name) is None:
        raise DataError(
            f"The file {name!r} does not exist. Give the path of a memory set, a dataset saved with `save_to_disk`, or "
            "a Hub id such as `owner/name`."
        )
    try:
        with Path(name).open("rb") as file:
            data = _read_at_most(file, MAX_FILE + 1)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}. Check the path and its permissions.") from error
    if len(data) > MAX_FILE:
        raise DataError(
            f"{name} is larger than {MAX_FILE >> 20} MB, the limit for a memory set. Check that it is the right file."
        )
    return data


def _read_at_most(file: io.BufferedIOBase, count: int) -> bytes:
    """Like `file.read(count)`, which allocates memory for `count` bytes even where the file is short."""
    parts = []
    while count and (part := file.read(min(count, 1 << 20))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _expand(data: bytes, name: str) -> bytes:
    limit = min(MAX_FILE, max(64 << 10, MAX_EXPANSION * len(data)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            expanded = _read_at_most(file, limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{name} is a damaged gzip file ({error}), so part of it would be missing. Compress it again."
        ) from error
    if len(expanded) > limit:
        raise DataError(
            f"{name} has {len(data)} bytes of gzip that expand to more than {limit}: text does not shrink "
            f"{MAX_EXPANSION}-fold, but a decompression bomb does. If you trust the file, expand it yourself and give "
            "the expanded file."
        )
    return expanded


def _refuse_long_lines(data: bytes, name: str) -> None:
    if len(data) <= MAX_LINE:
        return
    for number, line in enumerate(io.BytesIO(data), start=1):
        if len(line) > MAX_LINE:
            raise DataError(
                f"Line {number} of {name} has {len(line)} bytes, over the limit of {MAX_LINE >> 20} MB, which no "
                "context can hold. Check that the file is a memory set with one record per line."
            )


def _is_hub_id(name: str) -> bool:
    """Whether `name` can only mean owner/name on the Hub: no local folder `owner`, no suffix of a data file."""
    suffixed = _suffix(name) in SUFFIXES or name.endswith(".gz")
    return bool(_HUB_ID.fullmatch(name)) and not suffixed and not Path(name).parent.exists()


def _saved_dataset(name: str) -> Table:
    if not any(Path(name, marker).exists() for marker in ("state.json", "dataset_dict.json")):
        raise DataError(
            f"{name} is a directory, but not a dataset saved with `save_to_disk`. Give the file that holds the memory "
            "set."
        )
    load = _datasets_library(name).load_from_disk
    return _dataset_table(load, name, "was written by `save_to_disk`, but cannot be loaded", "Save it again.")


def _hub_dataset(name: str) -> Table:
    load = _datasets_library(name).load_dataset
    way_out = "Check the name, the network and, for a private dataset, your login."
    return _dataset_table(load, name, "is neither a local file nor a dataset that can be loaded from the Hub", way_out)


def _datasets_library(name: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(
            f"{name} is not a file, so it can only be a Hugging Face dataset, and reading those needs another package: "
            "pip install 'memlaw[datasets]'. Or export the dataset to JSONL with `dataset.to_json`."
        ) from error
    return datasets


def _dataset_table(load: Callable[[str], Any], name: str, failed: str, way_out: str) -> Table:
    try:
        loaded = load(name)
    # Errors of the library, of pyarrow and of the Hub's client all arrive here, and all mean that it is unreadable.
    except Exception as error:
        raise DataError(f"{name} {failed} ({type(error).__name__}). {way_out}") from error
    split, warnings = _one_split(loaded, name) if isinstance(loaded, dict) else (loaded, ())
    return Table(name, "a Hugging Face dataset", "row", iter(enumerate(split, start=1)), warnings)


def _one_split(splits: Mapping[str, Any], name: str) -> tuple[Any, tuple[str, ...]]:
    if len(splits) == 1:
        return next(iter(splits.values())), ()
    if "train" not in splits:
        raise DataError(
            f"{name} has the splits {', '.join(splits)}, none of them called train, so it is unclear which to store. "
            "Save the right one with `save_to_disk` and give its directory."
        )
    others = ", ".join(split for split in splits if split != "train")
    return splits["train"], (f"{name}: only the split train was read, not {others}.",)
