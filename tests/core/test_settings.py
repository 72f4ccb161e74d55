"""Classes of settings: checks, help and error messages come from the definition of each field."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import pytest
from pydantic import Field

from memlaw.core.canonical import to_dict
from memlaw.core.errors import ConfigError
from memlaw.core.settings import Choose, choices, default, meaning, names, settings, split_unknown, unit


@settings
class Oven:
    """Settings that all oven recipes share."""

    degrees: Annotated[int, Field(ge=0, le=300), Choose("degrees from 0 to 300", unit="°C")] = 180
    """Temperature of
    the oven."""
    mode: Literal["fan", "grill", "steam"] = "fan"
    """Where the heat comes from."""


@settings
class Bake(Oven):
    """One recipe."""

    minutes: float
    """Time in the oven."""
    layers: tuple[Literal["dough", "cream"], ...] = ("dough",)
    """From the bottom up."""

    def __post_init__(self) -> None:
        if self.mode == "grill" and self.minutes > 10:
            raise ConfigError("A grill burns in more than 10 minutes.")


def refusal(**values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Bake(**values)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_class_of_settings_is_a_frozen_dataclass() -> None:
    bake = Bake(minutes=5)
    assert to_dict(bake) == {"degrees": 180, "mode": "fan", "minutes": 5.0, "layers": ["dough"]}
    assert bake == Bake(minutes=5.0)
    assert hash(bake) == hash(Bake(minutes=5.0))
    assert dataclasses.replace(bake, degrees=200).degrees == 200
    with pytest.raises(dataclasses.FrozenInstanceError):
        bake.degrees = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Bake(5)  # type: ignore[call-arg]


def test_replace_checks_as_well() -> None:
    with pytest.raises(ConfigError, match="Setting degrees is 301: choose degrees from 0 to 300"):
        dataclasses.replace(Bake(minutes=5), degrees=301)


def test_ranges_meanings_units_and_defaults_are_read_from_the_fields() -> None:
    assert names(Bake) == ["degrees", "mode", "minutes", "layers"]
    assert meaning(Bake, "minutes") == "Time in the oven."
    assert meaning(Oven, "degrees") == "Temperature of the oven."
    assert choices(Bake, "degrees") == "degrees from 0 to 300"
    assert choices(Bake, "mode") == "fan, grill or steam"
    assert choices(Bake, "layers") == "dough or cream"
    assert choices(Bake, "minutes") == ""
    assert (unit(Bake, "degrees"), unit(Bake, "mode"), unit(Bake, "minutes")) == ("°C", "", "")
    assert (default(Bake, "degrees"), default(Bake, "minutes")) == (180, None)


def test_meanings_are_inherited_with_their_fields() -> None:
    assert meaning(Bake, "degrees") == "Temperature of the oven."
    assert meaning(Bake, "mode") == "Where the heat comes from."


def test_a_setting_defined_anew_has_its_own_meaning_range_and_default() -> None:
    @settings
    class Kiln(Oven):
        degrees: Annotated[int, Field(ge=600), Choose("degrees from 600 up")] = 1000
        """Temperature of the kiln."""

    assert meaning(Kiln, "degrees") == "Temperature of the kiln."
    assert default(Kiln, "degrees") == 1000
    assert unit(Kiln, "degrees") == ""
    with pytest.raises(ConfigError, match=r"Setting degrees is 180: choose degrees from 600 up\."):
        Kiln(degrees=180)
    assert Oven(degrees=180).degrees == 180


def test_several_faults_are_reported_at_once_in_one_sentence_each() -> None:
    assert refusal(degrees=-1, mode="gril", speed=3, weight=1) == (
        "Unknown setting speed, weight: it would change nothing. Known: degrees, mode, minutes, layers. "
        "Setting degrees is -1: choose degrees from 0 to 300. "
        "Setting mode is 'gril': choose fan, grill or steam. Did you mean grill? "
        "Setting minutes is missing. Time in the oven."
    )


def test_a_misspelt_name_gets_a_suggestion_and_so_does_a_misspelt_value() -> None:
    assert refusal(minutes=1, degree=3).startswith(
        "Unknown setting degree: it would change nothing. Did you mean degrees? Known: "
    )
    assert refusal(minutes=1, mode="steem").endswith("choose fan, grill or steam. Did you mean steam?")
    assert refusal(minutes=1, mode="cold") == "Setting mode is 'cold': choose fan, grill or steam."


def test_a_setting_without_choices_is_refused_in_the_words_of_its_type() -> None:
    assert refusal(minutes="long").startswith("Setting minutes is 'long': input should be a valid number")
    assert refusal(minutes=float("nan")).startswith("Setting minutes is nan: input should be a finite number")


def test_the_entry_of_a_list_is_named() -> None:
    assert refusal(minutes=1, layers=("dough", "creem")) == (
        "Setting layers entry 1 is 'creem': choose dough or cream. Did you mean cream?"
    )


def test_a_contradiction_between_settings_has_a_message_of_its_own() -> None:
    assert refusal(minutes=20, mode="grill") == "A grill burns in more than 10 minutes."


def test_values_of_a_later_version_are_separated() -> None:
    written = {"degrees": 200, "minutes": 3, "wind": 1, "humidity": 2}
    known, unknown = split_unknown(Bake, written)
    assert (known, unknown) == ({"degrees": 200, "minutes": 3}, ["humidity", "wind"])
    assert Bake(**known).degrees == 200
