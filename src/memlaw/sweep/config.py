"""The settings of a probe: the axes of its grid, and how each cell is trained."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, model_validator

from memlaw.core.config import Count, Method, Optimizer, Rate, Recipe, Seed, TrainConfig
from memlaw.core.errors import ConfigError, one_line
from memlaw.core.settings import Choose, names, settings


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(set(values)))


Axis = [Field(min_length=1), AfterValidator(_distinct)]
Counts = Annotated[tuple[Count, ...], *Axis, Choose("whole numbers from 1 up, such as [1, 2, 4]")]


USUAL: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"steps": TrainConfig.steps, "learning_rate": TrainConfig.learning_rate}
}
"""Settings that go with an optimizer other than the default, unless they are given."""


@settings
class ProbeConfig(Recipe):
    """The grid of a probe and how each of its cells is trained; a YAML file uses the same names.

    The order of the values on an axis and repeated values have no effect. Raises ConfigError for settings that are
    unknown, missing or out of range.
    """

    ranks: Counts
    """LoRA ranks, such as [1, 2, 4]."""
    lengths: Counts
    """Target tokens, such as [16, 32]: each is the longest prefix of whole records with at most that many, or that many
    of one long target."""
    methods: Annotated[tuple[Method, ...], *Axis] = (TrainConfig.method,)
    """Token weights of the loss."""
    seeds: Annotated[tuple[Seed, ...], *Axis, Choose("whole numbers from 0 to 4294967295, such as [0, 1, 2]")] = (
        TrainConfig.seed,
    )
    """Seeds of the initial weights, the data order and dropout."""
    placement: str | None = None
    """Where the adapters sit; None: the model's default placement."""
    steps: Count = 300
    """Optimizer steps of each cell. 200 of Muon store as much as 600 of AdamW; of records, at ranks 1 and 2, less."""
    optimizer: Optimizer = "muon"
    """muon: the momentum of A and of B with its singular values made alike (Newton-Schulz); adamw, as in the paper."""
    learning_rate: Rate = 0.1
    """Initial learning rate; 0 = auto: the smallest of several that gets far in a few steps."""

    @model_validator(mode="before")
    @classmethod
    def _with_the_usual_of_its_optimizer(cls, given: Any) -> Any:
        """`given` are pydantic's `ArgsKwargs`, whose class it does not export."""
        values = given.kwargs or {}
        return type(given)(given.args, {**USUAL.get(str(values.get("optimizer")), {}), **values})

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> ProbeConfig:
        """Read a YAML file of settings; `overrides`, such as command-line flags, win over it. Raises ConfigError."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"Cannot read the settings in {path}: {error.strerror or error}.") from error
        if _depth(content) > MAX_DEPTH:
            raise ConfigError(f"{path} opens more than {MAX_DEPTH} brackets at once, and settings need one or two.")
        try:
            given = yaml.safe_load(content)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not YAML: {_yaml_fault(error)}. Write one `name: value` per line.") from None
        if not isinstance(given, dict):
            raise ConfigError(f"{path} has no settings. Write one `name: value` per line, such as `ranks: [1, 2, 4]`.")
        try:
            return cls(**{str(name): _number(value) for name, value in given.items()} | dict(overrides or {}))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def train(self, method: Method, seed: int) -> TrainConfig:
        """The training settings of one cell."""
        return TrainConfig(method=method, seed=seed, **{name: getattr(self, name) for name in names(Recipe)})


MAX_DEPTH = 16
"""Brackets open at once: the time to read nested YAML grows with the square of its depth."""


def _depth(content: bytes) -> int:
    """Most brackets open at once, those in quotes and comments included."""
    return max(accumulate((byte in b"[{") - (byte in b"]}") for byte in content), default=0)


_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


def _number(value: Any) -> Any:
    """`value`, or the number that it spells: YAML 1.1 reads 1e-4 as text."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _yaml_fault(error: BaseException) -> str:
    """What is wrong and on which line, without any text of the file, which may be a file of facts."""
    text = one_line(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        text = f"{error.problem} at line {error.problem_mark.line + 1}"
    return re.sub("'.*'", "'...'", text)
