"""The settings and packs that a probe directory belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from memlaw.core.canonical import canonical_json, digest
from memlaw.core.config import ADDED, TrainConfig

PROBE = "probe.json"


@dataclass(frozen=True)
class ProbeSpec:
    """The content of probe.json: what determines the results of a grid, and which cells train together."""

    identity: dict[str, Any]
    """JSON values; another run may use the directory only if all of them are equal, or if it extends the grid."""
    packs: tuple[tuple[str, ...], ...]
    """Keys of the cells that train as one stack; fixed, so that a cell's bits do not depend on when it was trained. The
    cells that extend a grid get packs of their own behind these."""
    about: dict[str, Any] = field(default_factory=dict)
    """Names of model and data, for people; they may differ between runs of the same probe."""

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> ProbeSpec:
        """Inverse of `dataclasses.asdict`. Raises ValidationError for the content of another version."""
        return _SPECS.validate_python(body)


_SPECS = TypeAdapter(ProbeSpec)


def pack_name(keys: Sequence[str]) -> str:
    """The name of a pack's folder of checkpoints."""
    return digest(list(keys))


AXES = {"rank": "ranks", "length": "lengths", "method": "methods", "seed": "seeds"}
"""Field of a cell -> field of an identity with its values in the grid."""

_ABSENT = "nothing"

_BEFORE = {name: getattr(TrainConfig, name) for name in ADDED}
"""What a grid whose identity lacks a setting was trained with."""


def extends(here: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    """Whether the grid `here` is the grid `there` with more values along its axes, and nothing else differs."""
    axes = set(AXES.values())
    same = all(here.get(name) == there.get(name) for name in (here.keys() | there.keys()) - axes)
    return same and all(set(there.get(axis, ())) <= set(here.get(axis, ())) for axis in axes)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The fields in which two identities differ, such as `steps (there 20, here 100)`."""
    there, here = _BEFORE | dict(there), _BEFORE | dict(here)
    names = sorted(there.keys() | here.keys())
    pairs = [(name, there.get(name, _ABSENT), here.get(name, _ABSENT)) for name in names]
    return [f"{name} (there {_brief(old)}, here {_brief(new)})" for name, old, new in pairs if old != new]


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 60 else f"{text[:24]}...{text[-8:]}"
