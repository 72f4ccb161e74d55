"""The published numbers of arXiv 2605.30260. README.md says how they were read, how accurately, and their licence.

points()    70 cells (rank, length, dL) of the law's figure, Qwen3-8B on random tokens
heatmap()   208 cells of final loss and token accuracy of the same sweep
ACCURACY    the accuracy tables: methods against ranks, on three benchmarks
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from memlaw.core.points import LawPoint
from memlaw.law.reading import points_from_text

SOURCE = "the 70 cells of arXiv 2605.30260's main figure (Qwen3-8B, one adapter beside one MLP, random tokens)"

ORIGIN: dict[str, Any] = {
    "model": "Qwen3-8B",
    "placement": "mlp@24",
    "data": "random tokens",
    "method": "sft",
    "optimizer": "adamw",
    "steps": 2000,
}
"""How its cells were trained, as the fields of a `memlaw.law.Origin`."""

RANKS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32, 48, 64, 128, 256, 512)
"""Ranks of the paper's sweep."""

VOCABULARY = 151_936
"""Logits of Qwen3-8B."""

PARAMETERS_PER_RANK = 2 * 4096
"""The paper's adapter on Qwen3-8B: hidden -> rank -> hidden, at one layer."""


def points() -> tuple[LawPoint, ...]:
    """The 70 unsaturated cells, dL within 0.05% of the figure, with the parameters of the paper's adapter."""
    table = points_from_text(_text("points.csv"), name="points.csv")
    return tuple(replace(point, parameters=PARAMETERS_PER_RANK * point.rank) for point in table)


@dataclass(frozen=True)
class HeatmapCell:
    """One cell of the figure's two heatmaps, read from its colour."""

    rank: int
    length: int
    final_loss: float
    """Nats; 0.020 stands for anything below 0.05."""
    final_loss_error: float
    token_accuracy: float | None
    """Share of positions that greedy decoding gets right; None if the figure is blank there."""
    token_accuracy_error: float | None
    final_loss_from_delta: float | None
    """L_init - dL if the cell is also one of `points()`: more accurate than the colour."""


def heatmap() -> tuple[HeatmapCell, ...]:
    """All 208 cells, saturated ones included."""

    def number(text: str) -> float | None:
        return float(text) if text else None

    return tuple(
        HeatmapCell(
            int(row["rank"]),
            int(row["length"]),
            float(row["final_loss"]),
            float(row["final_loss_unc"]),
            number(row["token_accuracy"]),
            number(row["token_accuracy_unc"]),
            number(row["final_loss_from_delta"]),
        )
        for row in csv.DictReader(_text("heatmaps.csv").splitlines())
    )


def _text(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class AccuracyCurve:
    """One line of a published table: accuracy against rank."""

    benchmark: str
    metric: str
    model: str
    method: str
    """SFT, OT, SW; MemFT where the table does not say which variant."""
    ranks: tuple[int, ...]
    percent: tuple[float, ...]


def _table(benchmark: str, metric: str, model: str, ranks: str, rows: dict[str, str]) -> tuple[AccuracyCurve, ...]:
    where = tuple(map(int, ranks.split()))
    return tuple(
        AccuracyCurve(benchmark, metric, model, method, where, tuple(map(float, percent.split())))
        for method, percent in rows.items()
    )


ACCURACY: tuple[AccuracyCurve, ...] = (
    *_table("long-context", "token accuracy", "Llama-3.1-8B", "1 2 4 6 8 10 12 14 16", {
        "SFT": "27.4 28.5 43.6 45.9 54.9 69.5 78.2 86.3 94.7",
        "OT": "27.3 36.4 45.6 54.7 63.6 70.5 85.4 94.7 100",
        "SW": "32.5 37.5 46.0 52.3 56.0 63.4 69.1 76.6 81.1",
    }),
    *_table("long-context", "token accuracy", "Qwen3-8B", "1 2 4 8 16 32 64 128 256", {
        "SFT": "17.9 24.2 27.8 31.7 33.1 39.8 40.2 40.0 47.7",
        "OT": "19.2 23.6 29.8 38.5 47.5 56.1 91.1 100 100",
        "SW": "24.7 29.3 32.0 39.4 52.5 74.6 93.5 94.4 94.4",
    }),
    *_table("phonebook", "exact match", "Llama-3.1-8B", "1 2 4 8 16 32 64", {
        "SFT": "0.50 3.85 18.7 28.0 37.8 47.0 59.3",
        "OT": "1.00 11.2 31.4 53.9 61.0 73.9 87.0",
        "SW": "1.84 15.0 34.0 45.7 70.7 96.1 100",
    }),
    *_table("phonebook", "exact match", "Qwen3-8B", "1 2 4 8 16 32 64", {
        "SFT": "2.32 17.4 37.5 55.5 84.8 99.5 100",
        "OT": "5.78 19.1 36.2 57.4 86.1 98.6 100",
        "SW": "8.45 19.7 37.8 58.8 86.5 99.5 100",
    }),
    *_table("linear-rule", "generalization", "Qwen3-8B", "1 2 4 8 16", {
        "SFT": "19 38 46 39 41",
        "MemFT": "34 47 53 49 54",
    }),
)  # fmt: skip
"""Percent, as printed in the paper."""
