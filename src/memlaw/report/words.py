"""Numbers and estimates in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DASH = "\N{EN DASH}"
"""Stands for an unknown value."""

MINUS = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits and separated thousands; a dash for an unknown value."""
    if value is None or not math.isfinite(value):
        return DASH
    if isinstance(value, int) or 10**digits <= abs(value) < 1e9:
        return f"{value:,.0f}".replace("-", MINUS)
    return f"{value:#.{digits}g}".rstrip(".").replace("e-0", "e-").replace("e+", "e").replace("-", MINUS)


def nats(value: float | None) -> str:
    """A loss in a column of losses."""
    return DASH if value is None else f"{value:.3f}".replace("-", MINUS)


def share(value: float | None) -> str:
    """A share in percent; only 0 and 1 themselves become 0 % and 100 %."""
    if value is None:
        return DASH
    return f"{100 * value:.0f} %" if value in (0, 1) else f"{min(max(100 * value, 0.1), 99.9):.1f} %"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def interval(estimate: Mapping[str, Any]) -> str:
    """The 95% interval of an estimate, or nothing; an interval without an upper end is open."""
    low, high = estimate.get("low"), estimate.get("high")
    if low is None:
        return ""
    return f" (95 %: {number(low)} {'or more' if high is None else f'to {number(high)}'})"


def plan_target(target: Any) -> str:
    """The target of a plan; earlier versions wrote the share alone."""
    if not isinstance(target, Mapping):
        target = {"share": target}
    if target.get("loss") is not None:
        return f"a mean loss of {number(target['loss'])} nats per token"
    if target.get("share") is None:
        return ""
    return "all facts, verbatim" if target["share"] == 1 else f"{share(target['share'])} of the facts, verbatim"


def plan_size(plan: Mapping[str, Any]) -> str:
    return f"{count(plan['records'], 'record')}, {count(plan['tokens'], 'target token')}"
