from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from memlaw.cli.options import Inputs
from memlaw.cli.records import expand_records, setting
from memlaw.core.config import PRESETS, Execution, TrainConfig


def help_of(option: Any) -> str:
    return str(option.help)


def test_the_help_of_a_setting_is_its_meaning_range_and_default() -> None:
    assert help_of(setting(TrainConfig, "learning_rate")) == (
        "Initial learning rate; 0 = auto: the smallest of several that gets far in a few steps.  "
        "[number above 0, or 0 to have it chosen; default: 0.02]"
    )
    margin = setting(TrainConfig, "margin")
    assert margin.metavar == "NATS"
    assert help_of(margin).endswith("  [nats from 0 to below ln 2 (0.693); default: 0]")


def test_choices_that_the_command_line_lists_anyway_are_not_repeated() -> None:
    assert help_of(setting(TrainConfig, "until")).endswith("  [default: budget]")


def test_presets_that_differ_in_a_setting_are_named() -> None:
    assert help_of(setting(TrainConfig, "batch_size", presets=PRESETS)).endswith("default: 32; adamw: 16; paper: 0]")
    assert help_of(setting(TrainConfig, "steps", presets=PRESETS)).endswith("default: 3000; adamw: 2000; paper: 2000]")


def test_a_switch_and_a_setting_without_a_default_show_none() -> None:
    assert "[" not in help_of(setting(Execution, "compiled", "--compile"))
    assert "[" not in help_of(setting(Execution, "prefix_cache"))


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option()]
    height: Annotated[int, typer.Option()] = 2


def test_the_fields_of_records_become_options_beside_the_plain_ones() -> None:
    given: dict[str, object] = {}

    def draw(*, size: Size, inputs: Inputs, name: str = "box") -> None:
        given.update(size=size, inputs=inputs, name=name)

    draw.__annotations__ |= {"size": Size, "inputs": Inputs, "name": str}
    command = expand_records(draw)
    options = inspect.signature(command).parameters
    assert list(options)[:3] == ["width", "height", "data"]
    assert list(options)[-1] == "name"
    assert (options["height"].default, options["width"].default) == (2, inspect.Parameter.empty)
    defaults = {name: option.default for name, option in options.items() if name not in ("width", "data")}
    command(width=3, data="facts.jsonl", **defaults)
    assert given == {"size": Size(width=3), "inputs": Inputs(data="facts.jsonl"), "name": "box"}
