"""The published numbers are complete, agree with each other, and say where they come from."""

from importlib.resources import files

import numpy as np
import pytest

from memlaw.law import published
from memlaw.law.published import ACCURACY, PARAMETERS_PER_RANK, heatmap, points


def curve(benchmark: str, model: str, method: str) -> dict[int, float]:
    (found,) = (c for c in ACCURACY if (c.benchmark, c.model, c.method) == (benchmark, model, method))
    return dict(zip(found.ranks, found.percent, strict=True))


def test_seventy_cells_of_the_law():
    cells = points()
    assert len(cells) == 70
    assert len({(p.rank, p.length) for p in cells}) == 70
    assert (cells[0].rank, cells[0].length, cells[0].delta_loss, cells[0].final_loss) == (1, 200, 12.092, 1.421)
    assert all(p.final_loss > 0.69 for p in cells)
    assert all(p.parameters == 8192 * p.rank for p in cells)
    assert PARAMETERS_PER_RANK == 8192


def test_l_init_does_not_depend_on_the_rank():
    """Nothing is trained yet: within a length, what two panels of the figure say of it must agree."""
    by_length: dict[float, list[float]] = {}
    for p in points():
        by_length.setdefault(p.length, []).append(p.loss_init)
    assert all(max(values) - min(values) < 0.002 for values in by_length.values())
    assert all(12.2 < np.mean(values) < 12.5 for length, values in by_length.items() if length > 200)


def test_the_heatmap_agrees_with_the_points_read_from_another_panel():
    cells = heatmap()
    assert len(cells) == 208
    final = {(p.rank, p.length): p.final_loss for p in points()}
    both = [c for c in cells if c.final_loss_from_delta is not None]
    assert {(c.rank, c.length) for c in both} == final.keys() - {(1, 200)}
    assert all(c.final_loss_from_delta == pytest.approx(final[c.rank, c.length], abs=1e-3) for c in both)
    differences = [abs(c.final_loss - c.final_loss_from_delta) for c in both]
    assert np.mean(differences) == pytest.approx(0.023, abs=0.001)
    assert max(differences) == pytest.approx(0.072, abs=0.001)


def test_blank_cells_of_the_figure_are_none():
    blank = [(c.rank, c.length) for c in heatmap() if c.token_accuracy is None]
    assert blank == [(32, 10000), (48, 10000)]
    assert all(c.token_accuracy_error is None for c in heatmap() if (c.rank, c.length) in blank)
    assert all(0 <= c.token_accuracy <= 1 for c in heatmap() if c.token_accuracy is not None)


def test_loss_falls_with_rank_and_rises_with_length():
    loss = {(c.rank, c.length): (c.final_loss, c.final_loss_error) for c in heatmap()}
    for (rank, length), (value, error) in loss.items():
        for (more_rank, more_length), (other, other_error) in loss.items():
            if more_length == length and more_rank > rank:
                assert other <= value + 2 * (error + other_error)
            if more_rank == rank and more_length > length:
                assert other >= value - 2 * (error + other_error)


def test_the_accuracy_tables():
    assert len(ACCURACY) == 14
    assert all(len(c.ranks) == len(c.percent) == len(set(c.ranks)) for c in ACCURACY)
    assert all(0 <= percent <= 100 for c in ACCURACY for percent in c.percent)
    assert curve("long-context", "Llama-3.1-8B", "SFT")[16] == 94.7
    assert curve("long-context", "Qwen3-8B", "OT")[64] == 91.1
    assert curve("long-context", "Qwen3-8B", "SW") == dict(
        zip((1, 2, 4, 8, 16, 32, 64, 128, 256), (24.7, 29.3, 32.0, 39.4, 52.5, 74.6, 93.5, 94.4, 94.4), strict=True)
    )
    assert curve("phonebook", "Llama-3.1-8B", "SW")[64] == 100
    assert curve("phonebook", "Qwen3-8B", "SFT")[1] == 2.32
    assert curve("linear-rule", "Qwen3-8B", "MemFT") == {1: 34, 2: 47, 4: 53, 8: 49, 16: 54}


def test_memft_beats_sft_on_the_phone_book_of_llama_at_every_rank():
    sft, ot = (curve("phonebook", "Llama-3.1-8B", method) for method in ("SFT", "OT"))
    assert all(ot[rank] > sft[rank] for rank in sft)


def test_source_and_licence_travel_with_the_data():
    text = files(published).joinpath("README.md").read_text(encoding="utf-8")
    for claim in (
        "arXiv 2605.30260",
        "zjunlp/ParametricMemoryLaw",
        "1103b2f",
        "MIT License",
        "Copyright (c) 2026 ZJUNLP",
    ):
        assert claim in text
    assert "2605.30260" in published.SOURCE
