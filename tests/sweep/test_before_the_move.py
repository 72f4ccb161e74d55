"""Probes written before the code moved into rooms (commit e862545) are read, continued and never trained again.

`probe` was finished by that commit; `probe_interrupted` is the same grid, stopped after two of four steps of its second
pack. Both ran on the bundled base.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from helpers.paths import FIXTURES
from helpers.probes import SECRETS
from memlaw.core.facts import Fact, MemorySet
from memlaw.model.base import Base, load
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.journal import Journal, PackCounts, rebuild, status, verify
from memlaw.sweep.laws import probe_results
from memlaw.sweep.probe import probe
from memlaw.sweep.scheduler import ProbeProgress, ProbeRun
from memlaw.training.result import StackProgress

FINISHED, INTERRUPTED = FIXTURES / "before_the_move" / "probe", FIXTURES / "before_the_move" / "probe_interrupted"

FACTS = MemorySet(
    tuple(Fact(f"key {number}:", secret, f"f{number}") for number, secret in enumerate(SECRETS)),
    eos=False,
    source="codes",
)

CONFIG = ProbeConfig(ranks=[1, 2], lengths=[10, 20], steps=4, optimizer="adamw")


def copy_of(directory: Path, to: Path) -> Path:
    return Path(shutil.copytree(directory, to / directory.name))


@pytest.fixture(scope="module")
def base() -> Base:
    torch.set_num_threads(1)
    return load("memlaw/base")


@pytest.fixture(autouse=True)
def libraries_of_then(monkeypatch):
    """The versions that trained the cells are part of their keys, and those of today may be others."""
    libraries = Journal(FINISHED).spec().identity["libraries"]
    monkeypatch.setattr("memlaw.sweep.grid.libraries_used", lambda: libraries)


def test_every_cell_is_read_under_the_key_that_names_its_file():
    results = Journal(FINISHED).results_by_key()
    assert set(results) == {path.stem for path in (FINISHED / "cells").iterdir()}
    assert all(result.cell.key == key for key, result in results.items())
    assert {(result.cell.rank, result.cell.length, result.status) for result in results.values()} == {
        (rank, length, "finished") for rank in (1, 2) for length in (10, 20)
    }
    assert all(result.delta_loss > 0 and result.certified_tokens is not None for result in results.values())


def test_a_finished_probe_is_intact_and_its_table_current():
    report = verify(FINISHED)
    assert report.intact
    assert (report.finished, report.table) == (4, "current")
    assert (report.damaged, report.unreadable, report.quarantined, report.leftovers) == ((), (), (), ())
    assert len(probe_results(FINISHED)) == 4


def test_the_table_rebuilt_from_its_cells_is_the_same(tmp_path):
    out = copy_of(FINISHED, tmp_path)
    (out / "results.parquet").unlink()
    assert rebuild(out).rows == 4
    assert verify(out).table == "current"


def test_an_interrupted_probe_shows_what_is_left_and_where_its_checkpoint_stands():
    state = status(INTERRUPTED)
    assert (state.cells, state.finished, state.waiting, state.failed) == (4, 2, 2, 0)
    assert state.packs == PackCounts(done=1, partly=0, waiting=1)
    assert [(checkpoint.pack, checkpoint.step) for checkpoint in state.checkpoints] == [(2, 1)]
    assert verify(INTERRUPTED).intact
    assert len(probe_results(INTERRUPTED)) == 2


def test_the_same_probe_trains_nothing_again(base, tmp_path):
    out = copy_of(FINISHED, tmp_path)
    events: list[ProbeProgress] = []
    summary = probe(base, FACTS, CONFIG, out, ProbeRun(on_progress=events.append))
    assert events == []
    assert (summary.cells, summary.finished, summary.warnings) == (4, 4, ())


def test_an_interrupted_probe_resumes_from_its_checkpoint(base, tmp_path):
    out = copy_of(INTERRUPTED, tmp_path)
    steps: list[tuple[int, int]] = []

    def note(event: ProbeProgress) -> None:
        if isinstance(event.news, StackProgress):
            steps.append((event.pack, event.news.step))

    assert probe(base, FACTS, CONFIG, out, ProbeRun(on_progress=note)).finished == 4
    assert {pack for pack, _ in steps} == {2}
    assert min(step for _, step in steps) > 1
    expected = Journal(FINISHED).results_by_key()
    for key, result in Journal(out).results_by_key().items():
        assert result.delta_loss == pytest.approx(expected[key].delta_loss, rel=1e-4)
