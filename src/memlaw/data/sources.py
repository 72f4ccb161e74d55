"""From a path or a Hub id to a table: what is there, is it text, is it sane.

Files are read whole, so limits keep a wrong file (or a gzip bomb) from filling the memory.
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
from memlaw.data.tables import MAX_LINE, SUFFIXES, Shape, Table, text_table

MAX_FILE = 1 << 30
"""Bytes of one file, after gzip expansion."""

MAX_EXPANSION = 100
"""Bytes out per byte of gzip in; text stays far below, a bomb reaches 1000."""

_GZIP_MAGIC = b"\x1f\x8b"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_table(source: str | Path, asked: Shape | None) -> Table:
    """Recognise `source` and open its rows; `asked` are the fields its owner named, if any.

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
    """The suffix in small letters, the one before .gz where there are two."""
    path = Path(name)
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def read_text(source: str | Path) -> str:
    """The whole of a UTF-8 text file, verbatim but for a byte-order mark; gzip is expanded. Raises DataError."""
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
            "Its characters cannot be stored exactly without knowing them: save it as UTF-8."
        ) from None
    if not text or text.isspace():
        raise DataError(f"{name} is empty: there is nothing to remember. Give it at least one prompt with its target.")
    return text


def _mode(name: str) -> int | None:
    """What the file system says is at `name`; None where there is nothing."""
    try:
        return Path(name).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        # Not named: a text given in place of a path ends here (File name too long), and texts are not repeated.
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"The source cannot be opened: {reason}. Give a path, or a Hub id such as owner/name."
        ) from None


def _read_bytes(name: str) -> bytes:
    if _mode(name) is None:
        raise DataError(
            f"There is no file {name!r}. Give the path of a memory set, a dataset saved with `save_to_disk`, or a "
            "Hub id such as `owner/name`."
        )
    try:
        with Path(name).open("rb") as file:
            data = _read_at_most(file, MAX_FILE + 1)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}. Check the path and its permissions.") from error
    if len(data) > MAX_FILE:
        raise DataError(f"{name} is over {MAX_FILE >> 20} MB, which no memory set is. Check that it is the right file.")
    return data


def _read_at_most(file: io.BufferedIOBase, count: int) -> bytes:
    """As `file.read(count)`, which would take the memory for `count` bytes however few there are."""
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
            f"{name} is gzip of {len(data)} bytes that expand to more than {limit}: over {MAX_EXPANSION} times is no "
            "text but a decompression bomb. If you trust it, expand it yourself and give the expanded file."
        )
    return expanded


def _refuse_long_lines(data: bytes, name: str) -> None:
    if len(data) <= MAX_LINE:
        return
    for number, line in enumerate(io.BytesIO(data), start=1):
        if len(line) > MAX_LINE:
            raise DataError(
                f"Line {number} of {name} has {len(line)} bytes, over the limit of {MAX_LINE >> 20} MB; no context "
                "holds as much. Check that the file is a memory set with one record a line."
            )


def _is_hub_id(name: str) -> bool:
    """Whether `name` can only be owner/name on the Hub: no file, no folder to miss it from, no suffix of a file."""
    suffixed = _suffix(name) in SUFFIXES or name.endswith(".gz")
    return bool(_HUB_ID.fullmatch(name)) and not suffixed and not Path(name).parent.exists()


def _saved_dataset(name: str) -> Table:
    if not any(Path(name, marker).exists() for marker in ("state.json", "dataset_dict.json")):
        raise DataError(
            f"{name} is a directory, but not a dataset saved with `save_to_disk`. Give the file of the memory set."
        )
    load = _datasets_library(name).load_from_disk
    return _dataset_table(load, name, "was begun by `save_to_disk`, but cannot be loaded", "Save it again.")


def _hub_dataset(name: str) -> Table:
    load = _datasets_library(name).load_dataset
    way_out = "Check the name, the network and, for a private dataset, your login."
    return _dataset_table(load, name, "is neither a file here nor a dataset that the Hub gives out", way_out)


def _datasets_library(name: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(
            f"{name} is no file, so it can only be a Hugging Face dataset, and reading those needs one more package: "
            "pip install 'memlaw[datasets]'. Or export it to JSONL with `dataset.to_json`."
        ) from error
    return datasets


def _dataset_table(load: Callable[[str], Any], name: str, failed: str, way_out: str) -> Table:
    try:
        loaded = load(name)
    # The library lets its own errors through beside pyarrow's, the Hub client's and built-in ones: all mean unreadable.
    except Exception as error:
        raise DataError(f"{name} {failed} ({type(error).__name__}). {way_out}") from error
    split, warnings = _one_split(loaded, name) if isinstance(loaded, dict) else (loaded, ())
    return Table(name, "a Hugging Face dataset", "row", iter(enumerate(split, start=1)), warnings)


def _one_split(splits: Mapping[str, Any], name: str) -> tuple[Any, tuple[str, ...]]:
    if len(splits) == 1:
        return next(iter(splits.values())), ()
    if "train" not in splits:
        raise DataError(
            f"{name} has the splits {', '.join(splits)} and none is called train, so it is open which to remember. "
            "Save the one you mean with `save_to_disk` and give that."
        )
    others = ", ".join(split for split in splits if split != "train")
    return splits["train"], (f"{name}: only the split train was read, not {others}.",)
