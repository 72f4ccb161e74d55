"""How a command takes a few records instead of dozens of parameters, and where the help of a setting comes from."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_origin, get_type_hints

import typer

from memlaw.core.settings import choices, default, meaning, unit


def setting(
    cls: type,
    name: str,
    *flags: str,
    metavar: str | None = None,
    presets: Mapping[str, object] | None = None,
    parser: Callable[[str], Any] | None = None,
) -> Any:
    """The option of a setting, with the help that stands beside it in `cls`: meaning, range, unit and default.

    `presets`, records of settings by name, replace the default of `cls`; the first is the one that applies unless
    `--preset` chooses another. `parser` reads what is typed, where it is not simply a value of the setting's type.
    """
    brief, _, _ = meaning(cls, name).partition(". ")
    range_in_words = "" if _lists_its_choices(cls, name) else choices(cls, name)
    bounds, _, _ = range_in_words.partition(", since ")  # a reason belongs in an error message, not in help
    notes = "; ".join(note for note in (bounds.removeprefix("a "), _default_note(cls, name, presets)) if note)
    return typer.Option(
        *flags,
        help=f"{brief.rstrip('.')}." + (f"  [{notes}]" if notes else ""),
        metavar=metavar or unit(cls, name).upper() or None,
        show_default=False,
        parser=parser,
    )


def _lists_its_choices(cls: type, name: str) -> bool:
    return get_origin(get_type_hints(cls)[name]) is Literal


def _default_note(cls: type, name: str, presets: Mapping[str, object] | None) -> str:
    if presets is None:
        values = {"default": default(cls, name)}
    else:
        values = {preset: getattr(config, name) for preset, config in presets.items()}
    usual = next(iter(values.values()))
    if usual is None or isinstance(usual, bool):
        return ""
    different = [f"{preset}: {_short(value)}" for preset, value in values.items() if value != usual]
    return "; ".join([f"default: {_short(usual)}", *different])


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def expand_records(run: Callable[..., None]) -> Callable[..., None]:
    """`run`, with the fields of each record among its parameters as options of their own: typer reads flat signatures.

    A record is a parameter whose type is a dataclass; its fields carry `typer.Option` or `typer.Argument`.
    """
    hints = get_type_hints(run, include_extras=True)
    records: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    flat: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(run).parameters.items():
        inside = inspect.signature(records[name]).parameters if name in records else {name: parameter}
        types = get_type_hints(records[name], include_extras=True) if name in records else hints
        flat |= {option: given.replace(annotation=types[option]) for option, given in inside.items()}

    @functools.wraps(run)
    def command(**given: Any) -> None:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            for name, kind in records.items()
        }
        run(**made, **given)

    command.__annotations__ = {name: parameter.annotation for name, parameter in flat.items()}
    command.__signature__ = inspect.Signature(list(flat.values()))  # type: ignore[attr-defined]
    return command
