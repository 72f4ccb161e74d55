"""A page is made to be shown, so it names files without saying where they are on its author's machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

_START = r"(?:[A-Za-z]:[\\/]|~[\\/]|/)"
_QUOTED = re.compile(rf"(?P<quote>['\"`])(?P<path>{_START}[^'\"`\n]+)(?P=quote)")
_BARE = re.compile(rf"(?<![\w/\\.:~])(?P<path>{_START}[^\s'\"`,;()<>]*[^\s'\"`,;()<>.:])")
_WHOLE = re.compile(rf"(?P<path>{_START}[^\n]+?)(?P<kind> \([^()\n]+\))?")


def without_paths(value: Any, directory: Path) -> Any:
    """`value`, with every absolute path in its strings shortened: relative to `directory` inside it, else a name.

    Strings in lists and mappings are shortened too, keys and all other values stay.
    """
    if isinstance(value, str):
        return _shortened(value, directory)
    if isinstance(value, Mapping):
        return {key: without_paths(held, directory) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_paths(held, directory) for held in value)
    return value


def _shortened(text: str, directory: Path) -> str:
    if (whole := _WHOLE.fullmatch(text)) and not re.search(r"\s[-/~]", whole["path"]):
        return _name(whole["path"], directory) + (whole["kind"] or "")
    text = _QUOTED.sub(lambda found: f"{found['quote']}{_name(found['path'], directory)}{found['quote']}", text)
    return _BARE.sub(lambda found: _name(found["path"], directory), text)


def _name(path: str, directory: Path) -> str:
    if "\\" in path or path[1:2] == ":":
        return PureWindowsPath(path).name or path
    here = PurePosixPath(directory.resolve())
    inside = PurePosixPath(path)
    return str(inside.relative_to(here)) if inside.is_relative_to(here) else inside.name or path
