"""Errors: the built-ins they specialise, and the helpers that messages use."""

from __future__ import annotations

import pytest

from memlaw.core import errors
from memlaw.core.errors import MemlawError, first_line, one_line, suggest


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("DataError", ValueError),
        ("ModelError", ValueError),
        ("AdapterError", ValueError),
        ("ConfigError", ValueError),
        ("FitError", ValueError),
        ("TrainError", RuntimeError),
        ("JournalError", OSError),
        ("ServerError", OSError),
        ("UnfinishedError", OSError),
    ],
)
def test_every_error_is_memlaws_and_a_built_in_one(name: str, builtin: type[Exception]) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, MemlawError)
    assert issubclass(kind, builtin)


@pytest.mark.parametrize(
    ("message", "line"),
    [("one", "one"), ("\n  \n  first  \nsecond", "first"), ("", "RuntimeError"), (" \n\t", "RuntimeError")],
)
def test_the_first_line_that_is_not_blank_is_quoted(message: str, line: str) -> None:
    assert first_line(RuntimeError(message)) == line


def test_one_line_keeps_all_words() -> None:
    assert one_line(ValueError("several\n  lines\tand  spaces\n")) == "several lines and spaces"


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("treshold", ["threshold", "margin"], "Did you mean threshold? "),
        ("step", ["steps", "stop", "rank"], "Did you mean steps or stop? "),
        ("zzz", ["threshold", "margin"], ""),
        ("a", [], ""),
    ],
)
def test_close_names_are_suggested(name: str, known: list[str], hint: str) -> None:
    assert suggest(name, known) == hint


def test_a_lower_cutoff_suggests_names_that_are_less_alike() -> None:
    assert suggest("mlp", ["mlp_block_out"]) == ""
    assert suggest("mlp", ["mlp_block_out"], cutoff=0.3) == "Did you mean mlp_block_out? "
