"""Errors a person can act on: each message says what was found, why it matters and the way out.

Every child also inherits the built-in it specialises, so `except ValueError` keeps working for people who never
heard of memlaw. The command line prints the sentence and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MemlawError(Exception):
    """Base of every error memlaw raises on purpose."""


class DataError(MemlawError, ValueError):
    """A memory set that cannot be read, or would not mean what its owner thinks."""


class ModelError(MemlawError, ValueError):
    """A model or tokenizer that cannot be loaded, or cannot serve as the frozen base."""


class AdapterError(MemlawError, ValueError):
    """An adapter that cannot be built here, read back, or belongs to another base."""


class ConfigError(MemlawError, ValueError):
    """A setting that is unknown, out of range, or contradicts another."""


class FitError(MemlawError, ValueError):
    """Points that no law can be fitted to."""


class TrainError(MemlawError, RuntimeError):
    """A training run that ended without a usable adapter."""


class JournalError(MemlawError, OSError):
    """A probe directory that is damaged, belongs to another run, or cannot be written."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split())


def suggest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """`Did you mean ...?` with the known names nearest to a misspelt one; empty if none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=3, cutoff=cutoff)
    return f"Did you mean {' or '.join(near)}? " if near else ""
