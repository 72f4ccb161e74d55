"""Classes of settings that check themselves, with type, range and meaning beside each field and nowhere else.

A class decorated with `settings` is a frozen dataclass that pydantic validates. The annotation of a field holds its
range, with `Choose` for the range in words, and the string below it its meaning. `memlaw --help`, readers of YAML and
JSON, and error messages all take them from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, TypeVar, cast, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as validated

from memlaw.core.errors import ConfigError, suggest

_RULES = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

T = TypeVar("T")


@dataclass(frozen=True)
class Choose:
    """The range of a setting in words, as in "choose a number above 0"."""

    words: str
    unit: str = ""
    """For `--help`; empty for a setting without unit."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass that raises ConfigError for values out of range."""
    made: Any = validated(frozen=True, kw_only=True, config=_RULES)(cls)
    validate: Callable[..., None] = made.__init__

    def __init__(self: Any, **given: Any) -> None:  # noqa: N807
        try:
            validate(self, **given)
        except ValidationError as error:
            raise ConfigError(_message(made, error)) from None

    made.__init__ = __init__
    return cast("type[T]", made)


def names(cls: type) -> list[str]:
    """The names of the settings, in order of definition."""
    return [field.name for field in fields(cls)]


def meaning(cls: type, name: str) -> str:
    """What a setting means: the string below its definition, in `cls` or the class that it inherits it from."""
    owner = next(base for base in cls.__mro__ if name in vars(base).get("__annotations__", {}))
    description = owner.__pydantic_fields__[name].description  # type: ignore[attr-defined]
    return " ".join((description or "").split())


def choices(cls: type, name: str) -> str:
    """The values to choose from, in words; empty for a setting whose type says it all."""
    return _choices_of(cls.__pydantic_fields__[name])  # type: ignore[attr-defined]


def unit(cls: type, name: str) -> str:
    """The unit of a setting; empty if it has none."""
    choose = _choose_in(cls.__pydantic_fields__[name].metadata)  # type: ignore[attr-defined]
    return choose.unit if choose else ""


def default(cls: type, name: str) -> Any:
    """The default of a setting; None if it has none."""
    value = next(field.default for field in fields(cls) if field.name == name)
    return None if value is MISSING else value


def split_unknown(cls: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values of settings that `cls` has, and the names of all others, which a later version may have written."""
    known = set(names(cls))
    return {name: value for name, value in values.items() if name in known}, sorted(values.keys() - known)


def _message(cls: type, error: ValidationError) -> str:
    """One sentence for each setting that is wrong."""
    problems = error.errors()
    entries = {problem["loc"][0] for problem in problems if len(problem["loc"]) > 1}
    unknown = sorted(str(problem["loc"][0]) for problem in problems if problem["type"] == "unexpected_keyword_argument")
    sentences = []
    if unknown:
        known = names(cls)
        near = "".join(suggest(name, known) for name in unknown)
        sentences.append(
            f"Unknown setting {', '.join(unknown)}: it would change nothing. {near}Known: {', '.join(known)}."
        )
    for problem in problems:
        name, *inside = problem["loc"] or ("",)
        if isinstance(raised := problem.get("ctx", {}).get("error"), ConfigError):  # from a __post_init__
            sentences.append(str(raised))
        elif problem["type"] == "missing":
            sentences.append(f"Setting {name} is missing. {meaning(cls, str(name))}".strip())
        elif name not in unknown and (inside or name not in entries):
            place = "".join(f" entry {entry}" for entry in inside)
            sentences.append(f"Setting {name}{place} is {problem['input']!r}: {_remedy(cls, str(name), problem)}")
    return " ".join(dict.fromkeys(sentences))


def _remedy(cls: type, name: str, problem: Any) -> str:
    words = choices(cls, name)
    if not words:
        message = str(problem["msg"])
        return f"{message[:1].lower()}{message[1:]}."
    known = problem["ctx"]["expected"].split("'")[1::2] if problem["type"] == "literal_error" else ()
    return f"choose {words}. {suggest(problem['input'], known)}".rstrip()


def _choices_of(field: Any) -> str:
    if choose := _choose_in(field.metadata):
        return choose.words
    kind = field.annotation
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        known = get_args(kind)
        return f"{', '.join(known[:-1])} or {known[-1]}"
    return ""


def _choose_in(metadata: Any) -> Choose | None:
    return next((item for item in metadata if isinstance(item, Choose)), None)
