from __future__ import annotations

import pytest

from memlaw.core.errors import ConfigError
from memlaw.data import Reading


def test_the_two_fields_are_named_together_or_recognised() -> None:
    assert Reading().fields is None
    assert Reading(prompt_field="key", target_field="value").fields == ("key", "value")


@pytest.mark.parametrize("fields", [("key", None), (None, "key"), ("key", "key")])
def test_one_field_alone_is_refused(fields: tuple[str | None, str | None]) -> None:
    with pytest.raises(ConfigError, match="name two different fields"):
        Reading(prompt_field=fields[0], target_field=fields[1])


def test_an_unknown_choice_of_turns_is_refused() -> None:
    with pytest.raises(ConfigError, match="turns is 'first'; known: last, all"):
        Reading(turns="first")  # type: ignore[arg-type]


def test_an_unknown_way_to_resolve_conflicts_is_refused() -> None:
    with pytest.raises(ConfigError, match="on_conflict is 'newest'; known: error, first, last"):
        Reading(on_conflict="newest")  # type: ignore[arg-type]
