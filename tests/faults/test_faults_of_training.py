"""Rows 24 to 29 of the fault matrix: a fault in training costs only the cells it strikes."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import memlaw
from helpers import tiny
from helpers.faulty import CELLS, FACTS, probed
from memlaw.core.cache import VARIABLE
from memlaw.core.cells import CellResult
from memlaw.core.errors import TrainError
from memlaw.sweep.engines.base import Resources
from memlaw.sweep.engines.isolated import Isolated
from memlaw.sweep.journal import Journal
from memlaw.training.engine import Engine
from memlaw.training.optimizers.muon import StackedMuon
from memlaw.training.state import State
from memlaw.training.step import Step


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert probed(out).finished == CELLS
    return out


def by_rank(out: Path) -> dict[int, list[CellResult]]:
    results = Journal(out).results()
    return {rank: [result for result in results if result.cell.rank == rank] for rank in (1, 3)}


def assert_only_rank_3_was_struck(out: Path, undisturbed: Path, status: str) -> None:
    assert {result.status for result in by_rank(out)[3]} == {status}
    assert {result.status for result in by_rank(out)[1]} == {"finished"}
    assert [result.delta_loss for result in by_rank(out)[1]] == pytest.approx(
        [result.delta_loss for result in by_rank(undisturbed)[1]], rel=1e-4
    )


def spoil(monkeypatch: pytest.MonkeyPatch, cls: type, change: Callable[..., Any]) -> None:
    """`of.step` as it is, but for `change(original, self, *arguments)` around it."""
    original = cls.step  # type: ignore[attr-defined]
    monkeypatch.setattr(cls, "step", lambda *arguments: change(original, *arguments))


def test_24_nan_loss(tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_step_3(step: Callable[..., Step], engine: Engine, state: State) -> Step:
        taken = step(engine, state)
        if state.step == 3:
            taken.loss[[engine.runs[run].rank == 3 for run in state.runs]] = math.nan
        return taken

    spoil(monkeypatch, Engine, at_step_3)
    summary = probed(tmp_path / "out")
    assert (summary.finished, summary.failed, summary.diverged) == (2, 2, 2)
    assert_only_rank_3_was_struck(tmp_path / "out", undisturbed, "diverged")
    assert "no longer a finite number at step 3" in by_rank(tmp_path / "out")[3][0].message


def test_25_divergence(tmp_path: Path) -> None:
    """The tiny base is normalised everywhere, so that a step size of 1 does it no harm; one that overflows does."""
    summary = probed(tmp_path / "out", optimizer="adamw", learning_rate=1e38)
    assert (summary.finished, summary.failed, summary.diverged) == (0, CELLS, CELLS)
    for result in Journal(tmp_path / "out").results():
        assert 0 < result.steps < 10
        assert result.loss_final is None
        assert "use a lower learning rate" in result.message


def test_26_nan_weights(tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def after_3_steps(step: Callable[..., None], optimizer: StackedMuon, tensors: list[Any], *rest: Any) -> None:
        step(optimizer, tensors, *rest)
        if optimizer.updates == 3:
            with torch.no_grad():
                tensors[1][-1, 0, 0] = math.nan  # the last of a stack has the highest rank

    spoil(monkeypatch, StackedMuon, after_3_steps)
    probed(tmp_path / "out")
    assert_only_rank_3_was_struck(tmp_path / "out", undisturbed, "diverged")


def without_input(layer: int) -> Any:
    """A base in which nothing reaches the place of the adapter."""
    base = tiny.base()
    with torch.no_grad():
        base.model.model.layers[layer].mlp.up_proj.weight.zero_()
    return base


def test_27_gradient_constantly_zero(tmp_path: Path) -> None:
    base = without_input(2)
    summary = probed(tmp_path / "out", base=base, placement="down_proj@2")
    assert (summary.finished, summary.failed, summary.diverged) == (0, CELLS, 0)
    for result in Journal(tmp_path / "out").results():
        assert "its gradient was zero at every step" in result.message
        assert result.delta_loss is None
    assert probed(tmp_path / "beside", base=base, placement="down_proj@1").failed == 0
    trained = memlaw.train(
        base.model, base.tokenizer, FACTS, rank=1, placement="down_proj@2", steps=3, out=tmp_path / "A"
    )
    assert trained.status == "failed"
    assert not (tmp_path / "A").exists()


def out_of_memory_above(adapters: int) -> Callable[..., None]:
    def check(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled() and len(arguments[0]) > adapters:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return check


def test_28_out_of_memory(tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))  # where nothing that protects the model is kept yet
    base = tiny.base()
    fits_one_row_at_a_time = base.model.model.layers[-1].register_forward_pre_hook(out_of_memory_above(1))
    with pytest.warns(UserWarning, match="do not fit in memory: continuing with"):
        assert probed(tmp_path / "smaller", base=base).failed == 0
    for ours, theirs in zip(Journal(tmp_path / "smaller").results(), Journal(undisturbed).results(), strict=True):
        assert (ours.cell, ours.steps) == (theirs.cell, theirs.steps)
        assert ours.delta_loss == pytest.approx(theirs.delta_loss, rel=1e-4)
    fits_one_row_at_a_time.remove()
    base.model.model.layers[-1].register_forward_pre_hook(out_of_memory_above(0))
    unfit = pytest.raises(TrainError, match="One adapter with one row of the facts")
    with pytest.warns(match="rows at once"), pytest.warns(match="What protects the model does not fit"), unfit:
        memlaw.train(base.model, base.tokenizer, FACTS, rank=1)


def test_29_a_hang() -> None:
    """A pack that hangs is stopped at its limit of time, reported as an error of its own, and the next pack runs."""
    hung, well = Isolated(minutes=1 / 60).run(time.sleep, deque([3600.0, 0.0]), Resources())
    assert "was stopped at its time limit of" in str(hung.error)
    assert well.error is None
