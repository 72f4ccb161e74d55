"""How an adapter was trained, read from what memlaw wrote beside it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from memlaw.core.config import TrainConfig
from memlaw.core.errors import AdapterError, ConfigError
from memlaw.core.settings import split_unknown

Share = Annotated[float, Field(ge=0, le=1)]
Curve = tuple[Share | None, ...]

_CURVE: TypeAdapter[Curve] = TypeAdapter(Curve)


@dataclass(frozen=True)
class History:
    """How an adapter was trained, as far as known."""

    rank: int | None = None
    placement: str | None = None
    config: TrainConfig | None = None
    steps: int | None = None
    """Steps taken; None: as many as `curve` has values."""
    curve: Curve = ()
    """Share of the target tokens with p > 1/2 at evenly spaced steps; None where it was not recorded."""
    unknown: tuple[str, ...] = ()
    """Settings that this version of memlaw does not know, since a later one wrote them."""

    @classmethod
    def from_info(cls, info: Mapping[str, Any] | None, file: str) -> History:
        """From `memlaw_adapter.json`, or None where memlaw did not write one. `file` is what errors call it.

        Raises AdapterError for values that no training can have had.
        """
        if info is None:
            return cls()
        values = info.get("train") or {}
        try:
            known, unknown = split_unknown(TrainConfig, values)
            config = TrainConfig(**known) if known else None
            curve = _CURVE.validate_python(info.get("curve", ()))
        except ConfigError as error:
            raise AdapterError(f"{file} holds settings that no training can have had. {error} {_DAMAGED}") from None
        except (AttributeError, ValidationError):
            raise AdapterError(
                f"{file} does not describe a training: its entry `train` is not a set of settings, or its entry "
                f"`curve` is not a list of shares from 0 to 1. {_DAMAGED}"
            ) from None
        steps = None if config is None else config.steps
        return cls(info["rank"], info["placement"], config, steps, curve, tuple(unknown))

    @property
    def warning(self) -> str | None:
        """What to tell the user about settings of a later version; None where every setting is known."""
        if not self.unknown:
            return None
        return (
            f"The adapter was trained by a later version of memlaw, with settings this one does not know: "
            f"{', '.join(self.unknown)}. They are ignored; update memlaw for advice that takes them into account."
        )


_DAMAGED = "The file was damaged or edited: train the adapter again."
