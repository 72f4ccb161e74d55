"""What the adapters cost, as the template needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memlaw.report import figures
from memlaw.report.content import AdapterCost
from memlaw.report.figure import plot
from memlaw.report.words import DASH, MINUS, number, share


def harm_view(costs: Sequence[AdapterCost]) -> dict[str, Any] | None:
    """A table and, of several adapters, a figure; None if no side effects were measured."""
    if not costs:
        return None
    return {"rows": [_row(at, cost) for at, cost in enumerate(costs, start=1)], "figures": _figures(costs)}


def _row(at: int, cost: AdapterCost) -> dict[str, Any]:
    effects = cost.effects
    recalled = DASH if cost.recalled is None else f"{number(cost.recalled)} of {number(cost.records)}"
    near = DASH
    if effects.near_miss is not None:
        near = f"{number(round(effects.near_miss * effects.near_misses))} of {number(effects.near_misses)}"
    values = [
        recalled,
        f"{effects.loss_difference:+.3f}".replace("-", MINUS),
        number(effects.kl),
        share(effects.top1_agreement),
        near,
    ]
    return {"number": at, "name": cost.name, "place": cost.place, "values": values}


def _figures(costs: Sequence[AdapterCost]) -> list[dict[str, Any]]:
    shares = [None if cost.recalled is None or not cost.records else cost.recalled / cost.records for cost in costs]
    if sum(share is not None for share in shares) < 2:
        return []
    scatter = figures.harm_scatter([cost.effects.loss_difference for cost in costs], shares)
    caption = (
        "Facts recalled by each adapter, against the harm it does. Filled: no other adapter recalls as much for less "
        f"harm. The axis of harm is linear up to {figures.NO_HARM:g} nats. Numbers are those of the table."
    )
    return [plot(figures.sketch(figures.draw_harm, scatter), "harm", caption)]
