"""The settings of a probe: the axes of its grid, and how each cell is trained."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from memlaw.core.config import Init, Method, Rule, Scaling, Schedule, TrainConfig, Until
from memlaw.core.errors import ConfigError, one_line


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(set(values)))


_Axis = [Field(min_length=1), AfterValidator(_distinct)]

_Whole = Annotated[int, Field(strict=True)]

_Positive = Annotated[_Whole, Field(ge=1)]


class ProbeConfig(BaseModel):
    """The grid of a probe and how each of its cells is trained; a YAML file has the same names.

    The order of an axis and repeated values mean nothing. Meaning, defaults and ranges of the settings of training are
    those of `TrainConfig`. Raises ConfigError for settings that are unknown, missing or out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ranks: Annotated[tuple[_Positive, ...], *_Axis]
    lengths: Annotated[tuple[_Positive, ...], *_Axis]
    """Target tokens; each takes the longest prefix of whole records with at most that many, or cuts one long target."""
    methods: Annotated[tuple[Method, ...], *_Axis] = (TrainConfig.method,)
    seeds: Annotated[tuple[_Whole, ...], *_Axis] = (TrainConfig.seed,)
    placement: str | None = None
    """Where the adapters sit; None: the default place of the model."""

    rule: Rule = TrainConfig.rule
    steps: _Whole = TrainConfig.steps
    until: Until = TrainConfig.until
    margin: float = TrainConfig.margin
    position: float = TrainConfig.position
    focus: float = TrainConfig.focus
    boundaries: tuple[_Whole, ...] = TrainConfig.boundaries
    learning_rate: float = TrainConfig.learning_rate
    schedule: Schedule = TrainConfig.schedule
    batch_size: _Whole = TrainConfig.batch_size
    clip: float = TrainConfig.clip
    weight_decay: float = TrainConfig.weight_decay
    dropout: float = TrainConfig.dropout
    scale: float = TrainConfig.scale
    scaling: Scaling = TrainConfig.scaling
    init: Init = TrainConfig.init

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(_explained(error)) from None
        for method, seed in itertools.product(self.methods, self.seeds):
            self.train(method, seed)  # refuses what is out of range

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> ProbeConfig:
        """Read a YAML file of settings; `overrides` (flags that were given) win over it. Raises ConfigError."""
        try:
            settings = yaml.safe_load(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(f"Cannot read the settings in {path}: {error.strerror or error}.") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not YAML: {_yaml_fault(error)}. Write one `name: value` a line.") from None
        if not isinstance(settings, dict):
            raise ConfigError(f"{path} holds no settings. Write one `name: value` a line, such as `ranks: [1, 2, 4]`.")
        try:
            return cls(**{str(name): value for name, value in (settings | dict(overrides or {})).items()})
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def train(self, method: Method, seed: int) -> TrainConfig:
        """The training of one cell."""
        shared = {f.name: getattr(self, f.name) for f in fields(TrainConfig) if f.name not in ("method", "seed")}
        return TrainConfig(method=method, seed=seed, **shared)


def _explained(error: ValidationError) -> str:
    """What is wrong with the settings, one sentence for each."""
    problems = error.errors()
    unknown = sorted(str(problem["loc"][0]) for problem in problems if problem["type"] == "extra_forbidden")
    entries = {problem["loc"][:1] for problem in problems if len(problem["loc"]) > 1}
    sentences = []
    if unknown:
        known = ", ".join(ProbeConfig.model_fields)
        sentences.append(f"Unknown setting {', '.join(unknown)}: it would change nothing. Known: {known}.")
    for problem in problems:
        name = " ".join(f"entry {part}" if isinstance(part, int) else part for part in problem["loc"]) or "name"
        if problem["type"] == "missing":
            sentences.append(f"A probe needs {name}, such as {name}: [16, 32].")
        elif problem["type"] != "extra_forbidden" and (len(problem["loc"]) > 1 or problem["loc"][:1] not in entries):
            sentences.append(f"Setting {name} is {problem['input']!r}: {_uncapitalised(problem['msg'])}.")
    return " ".join(sentences)


def _yaml_fault(error: BaseException) -> str:
    """What is wrong and where, without a word of the file: it may have been a file of facts."""
    text = one_line(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        text = f"{error.problem} at line {error.problem_mark.line + 1}"
    return re.sub("'.*'", "'...'", text)


def _uncapitalised(text: str) -> str:
    return text[:1].lower() + text[1:]
