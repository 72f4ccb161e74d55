"""A ledger as one HTML document: what became of every fact, version by version."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memlaw.core.errors import ConfigError
from memlaw.ledger.audit import Forgetting
from memlaw.report import figures
from memlaw.report import ledger_words as words
from memlaw.report.figure import plot
from memlaw.report.ledger import LedgerContent
from memlaw.report.ledger_map import WORDS, Row, map_data, map_rows, weakest
from memlaw.report.page import fill, save
from memlaw.report.words import nats, number

WEAKEST = 25
"""Facts in the table that stands for the map on paper and without the script."""


def write_ledger(content: LedgerContent, path: str | os.PathLike[str], *, show_text: bool = False) -> None:
    """Render `content` into the file `path`, which is replaced whole or not at all.

    With `show_text` the file holds prompts and targets, so its mode is 0600 from its first byte. Raises JournalError if
    the file cannot be written, ConfigError as `render_ledger`.
    """
    page = render_ledger(content, show_text=show_text)
    save(page, Path(path), private=show_text, command="memlaw ledger report")


def render_ledger(content: LedgerContent, *, show_text: bool = False) -> str:
    """`content` as one HTML document; the same content gives the same bytes.

    Raises ConfigError for `show_text` of a content that was collected without texts, and the other way round.
    """
    if show_text != (content.texts is not None):
        raise ConfigError("show_text must be what the content was collected with: collect_ledger(path, show_text=...).")
    table, rows = content.matrix, map_rows(content.columns)
    summaries = words.by_version(table)
    return fill(
        "ledger",
        title=f"The ledger {content.name}",
        answers=words.answers(content),
        key_numbers=words.key_numbers(content),
        data=map_data(content, rows, table, summaries) if rows else None,
        facts=len(rows),
        measured=words.measured_when(content),
        weakest=[_weak(row) for row in weakest(rows, WEAKEST)],
        figures=_figures(content, summaries),
        versions=words.version_table(content, summaries),
        aside=content.aside,
        costs=words.cost_table(table),
        made=content.made,
        shows_text=show_text,
    )


def _weak(row: Row) -> dict[str, Any]:
    shown = "" if row.margin is None else nats(row.margin)
    return {
        "id": row.id, "state": row.states[-1], "verdict": WORDS[row.states[-1]], "margin": shown,
        "tokens": number(row.tokens), "since": row.since[-1],
    }  # fmt: skip


def _figures(content: LedgerContent, summaries: Sequence[Forgetting]) -> list[dict[str, Any]]:
    """What came back, harm and room by version; figures of fewer than two values are left out."""
    columns, numbers = content.columns, [column.version.number for column in content.columns]
    shares: Mapping[str, list[float | None]] = {
        "not recalled": [None if one.accuracy is None else 100 * (1 - one.accuracy) for one in summaries],
        "backward transfer": [_percent(one.backward_transfer) for one in summaries],
        "forgetting": [_percent(one.forgetting) for one in summaries],
    }
    harm = [None if one.side_effects is None else one.side_effects.loss_difference for one in columns]
    room = [one.version.room for one in columns]
    drawn = []
    if len(numbers) > 1:
        caption = "Not recalled (100 % minus accuracy), backward transfer and forgetting after each version."
        lines = figures.lines(numbers, dict(shares), "%")
        drawn.append(plot(figures.sketch(figures.draw_lines, lines), "learning", caption))
    if sum(value is not None for value in harm) > 1:
        caption = "Harm: by how much the loss on neutral text rose under each version."
        lines = figures.lines(numbers, {"harm": harm}, "nats a token")
        drawn.append(plot(figures.sketch(figures.draw_lines, lines), "harm", caption))
    if sum(one is not None for one in room) > 1:
        caption = "Target tokens held, and the room left for more like them, with its 95% interval."
        triples = [None if one is None else (one.tokens, one.low, one.high) for one in room]
        curve = figures.room_curve(numbers, [one.version.tokens for one in columns], triples)
        drawn.append(plot(figures.sketch(figures.draw_room, curve), "room", caption))
    return drawn


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
