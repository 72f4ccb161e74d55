"""Errors a person can act on: each message says what was found, why it matters and the way out.

Each also inherits the built-in error it specialises, so `except ValueError` works without importing memlaw. The command
line prints the message and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MemlawError(Exception):
    """Base of all errors that memlaw raises deliberately."""


class DataError(MemlawError, ValueError):
    """A memory set that cannot be read, or does not mean what its author intends."""


class ModelError(MemlawError, ValueError):
    """A model or tokenizer that cannot be loaded, or cannot be the frozen base."""


class AdapterError(MemlawError, ValueError):
    """An adapter that cannot be built or read, or belongs to another base."""


class ConfigError(MemlawError, ValueError):
    """A setting that is unknown, out of range, or contradicts another."""


class FitError(MemlawError, ValueError):
    """Points to which no law can be fitted."""


class TrainError(MemlawError, RuntimeError):
    """A training run that ended without a usable adapter."""


class JournalError(MemlawError, OSError):
    """A probe directory that is damaged, belongs to another run, or cannot be written."""


class LedgerError(MemlawError, OSError):
    """A ledger that is damaged, busy, of another base, or cannot be written."""


class GateError(MemlawError):
    """An update of a ledger that would lose facts, leave retracted ones or harm the model, and was not published."""


class ServerError(MemlawError, OSError):
    """A server that cannot be reached, refuses to answer, or gives an answer that is none."""


class UnfinishedError(ServerError):
    """A server that stopped answering before every fact was asked: what it answered so far may be kept."""


def listed(names: Iterable[str]) -> str:
    """The first few names, in a sentence."""
    every = list(names)
    shown = ", ".join(every[:5])
    return shown if len(every) <= 5 else f"{shown} and {len(every) - 5} more"


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank; the name of its class if there is no such line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split())


def suggest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """`Did you mean ...? ` with the known names closest to a misspelt one; empty if no name is close."""
    near = difflib.get_close_matches(str(name), list(known), n=3, cutoff=cutoff)
    return f"Did you mean {' or '.join(near)}? " if near else ""
