"""What memlaw records beside an adapter: `memlaw_adapter.json`, read, checked and added to. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from memlaw.core import files
from memlaw.core.canonical import to_dict
from memlaw.core.config import TrainConfig
from memlaw.core.errors import AdapterError, ConfigError
from memlaw.core.settings import split_unknown
from memlaw.core.side_effects import SideEffects

INFO = "memlaw_adapter.json"
WEIGHTS = "adapter_model.safetensors"

Share = Annotated[float, Field(ge=0, le=1)]
Curve = tuple[Share | None, ...]
"""Share of the target tokens with p > 1/2 at evenly spaced steps of a training; None where it was not recorded."""

DEEPER = "adapter-one-folder-deeper"
"""Code of the fault of a directory whose subdirectory is the adapter."""

FORMAT = 1
"""Raised once an older memlaw would misread the file; a key that it may ignore leaves the number as it is."""


class AdapterFaultError(AdapterError):
    """An adapter that cannot be judged as it is: `memlaw check` lists it under `code`, everything else raises it."""

    def __init__(self, code: str, message: str, fix: str):
        super().__init__(f"{message} {fix}")
        self.code, self.message, self.fix = code, message, fix


@dataclass(frozen=True)
class AdapterInfo:
    """The contents of `memlaw_adapter.json`: the base, the place and the training that an adapter belongs to."""

    __pydantic_config__ = ConfigDict(strict=True, extra="ignore")

    base: str
    """Name or path of the base model."""
    base_fingerprint: str
    placement: str
    rank: Annotated[int, Field(ge=1)]
    scale: Annotated[float, Field(gt=0, lt=1e9)]
    """The factor before x A B."""
    weights_sha256: str
    base_digests: Mapping[str, str] | None = None
    """What else identifies the base, in any precision (`memlaw.model.base.digests`)."""
    format: int = FORMAT
    facts_fingerprint: str | None = None
    records: int | None = None
    """Facts trained."""
    tokens: int | None = None
    """Target tokens trained."""
    loss_init: float | None = None
    """Mean loss before the first step, nats per target token."""
    loss_final: float | None = None
    """Mean loss after the last step, nats per target token."""
    train: Mapping[str, Any] | None = None
    """Fields of TrainConfig; `recorded_training` reads them."""
    curve: Curve = ()
    side_effects: SideEffects | None = None
    """What it does to the base elsewhere, if that was measured."""
    recalled: int | None = None
    """Facts of those trained whose every token had p > 1/2 when the side effects were measured."""


@dataclass(frozen=True)
class _Version:
    __pydantic_config__ = ConfigDict(strict=True, extra="ignore")

    format: int = FORMAT


_READER = TypeAdapter(AdapterInfo)
_VERSION = TypeAdapter(_Version)


def load_info(directory: Path) -> AdapterInfo | None:
    """Read `memlaw_adapter.json` of an adapter; None where memlaw did not write it.

    Keys it does not know are ignored. Raises AdapterError for a directory that holds no adapter, and for a file that is
    damaged or has a later format.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise AdapterError(f"The adapter directory {directory} does not exist.")
    if not (directory / WEIGHTS).exists():
        _refuse_one_folder_too_high(directory)
        pickled = [p.name for p in directory.glob("*.bin")]
        reason = f"only {pickled[0]}, a pickle that could run code" if pickled else f"no {WEIGHTS}"
        raise AdapterError(f"The adapter {directory} holds {reason}; memlaw loads safetensors only.")
    path = directory / INFO
    if not path.exists():
        return None
    content = path.read_bytes()
    try:
        version = _VERSION.validate_json(content).format
        if version > FORMAT:  # before the rest, which a later format may have changed
            raise AdapterError(
                f"{path} has format {version}, and this version of memlaw reads up to format {FORMAT}: the adapter was "
                "saved by a later one. Upgrade memlaw."
            )
        return _READER.validate_json(content)
    except ValidationError as error:
        raise AdapterError(f"{path} {_fault(error)}") from None


def _refuse_one_folder_too_high(directory: Path) -> None:
    """PEFT saves an adapter with a name of its own, and Trainer every checkpoint, one folder deeper."""
    deeper = sorted(path.parent for path in directory.glob(f"*/{WEIGHTS}"))
    if deeper:
        others = f", one of {len(deeper)}" if len(deeper) > 1 else ""
        raise AdapterFaultError(
            DEEPER,
            f"The adapter {directory} holds no {WEIGHTS}, but its folder {deeper[-1].name} does{others}.",
            f"Use {deeper[-1]}.",
        )


def _fault(error: ValidationError) -> str:
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return f"is not JSON ({problem['ctx']['error']}): the adapter was damaged or cut short. Copy it again."
    name = f"{problem['loc'][0]}: " if problem["loc"] else ""
    return (
        f"is not a file that memlaw writes beside an adapter ({name}{problem['msg'].lower()}): it was damaged or made "
        "by another tool. Train the adapter again; one that PEFT saved is loaded without this file."
    )


def record_side_effects(directory: Path, effects: SideEffects, recalled: int) -> None:
    """Add side effects, and the facts recalled for them, to the `memlaw_adapter.json` of an adapter that memlaw saved.

    Raises AdapterError.
    """
    path = directory / INFO
    try:
        recorded = json.loads(path.read_bytes()) | {"side_effects": to_dict(effects), "recalled": recalled}
        files.write(path, (json.dumps(recorded, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise AdapterError(
            f"The side effects cannot be written to {path}: {error.strerror or error}. The adapter itself is safe."
        ) from error


def recorded_training(info: AdapterInfo) -> tuple[TrainConfig | None, list[str]]:
    """The settings an adapter was trained with, if they were recorded, and warnings about settings that are ignored.

    A later version may have recorded settings that this one does not know; what it can read still serves advice.
    Raises AdapterError for values out of range.
    """
    if not info.train:
        return None, []
    known, unknown = split_unknown(TrainConfig, info.train)
    try:
        config = TrainConfig(**known)
    except ConfigError as error:
        raise AdapterError(
            f"The training settings in the adapter's {INFO} cannot be used. {error} The file was edited or damaged, or "
            "a later version of memlaw wrote it: upgrade memlaw, or train the adapter again."
        ) from error
    if not unknown:
        return config, []
    names = ", ".join(unknown)
    return config, [f"{INFO} has training settings that this version of memlaw does not know, and ignores: {names}."]
