"""What a probe directory is the probe of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memlaw.core.canonical import canonical_json, digest

PROBE = "probe.json"


@dataclass(frozen=True)
class ProbeSpec:
    """What a probe directory is for: the settings that set its cells apart, and which of them train together."""

    identity: dict[str, Any]
    """Plain JSON values; another run may share the directory only if all of them are equal."""
    packs: tuple[tuple[str, ...], ...]
    """Keys of the cells that train as one stack, fixed once so that a cell's bits do not depend on when it ran."""
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    """For people: the names of model and data, which may differ between runs of the same probe."""

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> ProbeSpec:
        """Inverse of `dataclasses.asdict`. Raises KeyError or TypeError for what another version wrote."""
        return cls(body["identity"], tuple(map(tuple, body["packs"])), body["about"])


def name_of_pack(keys: Sequence[str]) -> str:
    """The name of a pack's files."""
    return digest(list(keys))


_ABSENT = "nothing"


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The fields in which two identities differ, in words."""
    names = sorted(there.keys() | here.keys())
    pairs = [(name, there.get(name, _ABSENT), here.get(name, _ABSENT)) for name in names]
    return [f"{name} (there {_brief(old)}, here {_brief(new)})" for name, old, new in pairs if old != new]


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 60 else f"{text[:24]}...{text[-8:]}"
