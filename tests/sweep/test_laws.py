"""Laws and results are read from a directory whole, or refused with a message."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import sample
from helpers.result_directories import LENGTHS, RANKS, a_probe, grid
from memlaw import __version__
from memlaw.core.cells import CellResult
from memlaw.core.errors import ConfigError, FitError, JournalError
from memlaw.core.files import write_text
from memlaw.law import Origin, calibrate, compare, fit_law, points_from_results, published
from memlaw.planning import CellRecall, default_law
from memlaw.planning.library import KnownLaw, PlanContext, nearest
from memlaw.sweep.journal import Journal
from memlaw.sweep.laws import cell_recalls, known_law, law_chooser, law_points, probe_results, with_origin

USE = PlanContext("tiny", "o" * 64, "mlp@3", 200, tokenizer_fingerprint="t" * 64, model_fingerprint="m" * 64)
"""What the cells of `grid` were measured on."""


def test_without_a_source_or_a_shelf_the_law_is_the_borrowed_one() -> None:
    assert law_chooser(None)(USE) == nearest((), USE)
    assert law_chooser(None)(USE).law == default_law()


def test_without_a_source_the_law_is_the_nearest_on_the_shelf(tmp_path: Path) -> None:
    own = known_law(a_probe(tmp_path / "P", grid()))
    elsewhere = known_law(a_probe(tmp_path / "Q", grid(placement="down_proj@1")))
    assert law_chooser(None, shelf=[elsewhere, own])(USE).law == own.law
    assert law_chooser(None, shelf=[elsewhere])(USE).law.caveat.startswith("This law was fitted at down_proj@1")


def test_a_law_that_is_named_comes_before_any_on_the_shelf(tmp_path: Path) -> None:
    own, named = known_law(a_probe(tmp_path / "P", grid())), fit_law(published.points(), "bounded")
    write_text(tmp_path / "law.json", named.to_json())
    assert law_chooser(tmp_path / "law.json", shelf=[own])(USE).law == named


def test_a_law_file_is_the_law_that_was_written(tmp_path: Path) -> None:
    law = fit_law(published.points(), "bounded")
    write_text(tmp_path / "law.json", law.to_json())
    assert known_law(tmp_path / "law.json") == KnownLaw(law)
    own = known_law(a_probe(tmp_path / "P", grid()))
    write_text(tmp_path / "own.json", own.to_json())
    assert known_law(tmp_path / "own.json") == own


def test_a_probe_gives_the_better_form_with_its_origin_and_recall(tmp_path: Path) -> None:
    known = known_law(a_probe(tmp_path / "P", grid()))
    results = Journal(tmp_path / "P").results()
    best = compare(points_from_results(results), source=str(tmp_path / "P")).best_to_plan
    assert replace(known.law, origin=None) == best
    assert known.law.origin == Origin(
        model="tiny", model_fingerprint="m" * 64, outline="o" * 64, tokenizer_fingerprint="t" * 64, placement="mlp@3",
        parameters_per_rank=256.0, data="codes", data_fingerprint="d" * 64, method="sft", optimizer="adamw",
        steps=1000, dtype="float32", date=datetime.date.today().isoformat(), version=__version__,
    )  # fmt: skip
    assert known.cells == cell_recalls(results)


def test_a_law_of_a_table_has_no_origin_and_no_cells(tmp_path: Path) -> None:
    law = fit_law(published.points(), "bounded")
    assert with_origin(law, tmp_path / "points.csv") == KnownLaw(law)


def test_cells_of_several_placements_have_no_common_placement(tmp_path: Path) -> None:
    two = [*grid(), *(replace_parameters(result, 512) for result in grid(placement="down_proj@1"))]
    probe = a_probe(tmp_path / "P", two)
    law = fit_law(law_points(probe, axis="parameters"), "bounded", axis="parameters")
    origin = with_origin(law, probe).law.origin
    assert origin is not None
    assert (origin.placement, origin.parameters_per_rank) == (None, None)
    for placement in ("mlp@3", "down_proj@1"):
        known = law_chooser(None, shelf=[with_origin(law, probe)])(dataclasses.replace(USE, placement=placement))
        assert known.law == with_origin(law, probe).law


def replace_parameters(result: CellResult, per_rank: int) -> CellResult:
    return dataclasses.replace(result, parameters=per_rank * result.cell.rank)


def test_cells_of_the_facts_calibrate_the_law_and_the_loss_for_recall(tmp_path: Path) -> None:
    few = grid()[:5]
    known = law_chooser(None, a_probe(tmp_path / "P", few))(USE)
    expected = calibrate(default_law(), points_from_results(Journal(tmp_path / "P").results()))
    assert known.law == expected
    assert known.cells == cell_recalls(Journal(tmp_path / "P").results())
    assert len(known.cells) == 5
    assert known.law.parameters["alpha"].value == default_law().parameters["alpha"].value


def test_a_law_and_the_cells_that_calibrate_it_say_if_another_optimizer_will_train(tmp_path: Path) -> None:
    adamw, muon = a_probe(tmp_path / "A", grid()), a_probe(tmp_path / "M", grid(optimizer="muon"))
    will_train = dataclasses.replace(USE, optimizer="muon", data_fingerprint="d" * 64)
    known = [law_chooser(law, cells)(will_train).near for law in (adamw, muon) for cells in (adamw, muon)]
    of_law = "Its cells were trained with adamw, not with muon."
    of_cells = "The cells that calibrate it were trained with adamw, not with muon."
    assert known == [(of_law, of_cells), (of_law,), (of_cells,), ()]


def test_cells_of_two_optimizers_never_share_a_law(tmp_path: Path) -> None:
    both = a_probe(tmp_path / "P", [*grid(), *grid(optimizer="muon")])
    with pytest.raises(FitError, match=r"differ in optimizer \(adamw, muon\), and a law holds for one optimizer only"):
        known_law(both)
    with pytest.raises(FitError, match="differ in optimizer"):
        law_points(both)


def test_cells_that_did_not_finish_calibrate_nothing(tmp_path: Path) -> None:
    probe = a_probe(tmp_path / "P", [sample.diverged(1, 16)])
    with pytest.raises(FitError, match="P has no finished cell to calibrate a law with"):
        law_chooser(None, probe)


def test_cells_of_another_placement_calibrate_nothing(tmp_path: Path) -> None:
    choose = law_chooser(None, a_probe(tmp_path / "P", grid()))
    with pytest.raises(
        FitError, match=r"P were trained at mlp@3, but the plan is for down_proj@1, where the same rank holds"
    ):
        choose(dataclasses.replace(USE, placement="down_proj@1"))


@pytest.mark.parametrize("named", ["outline", "model_fingerprint", "tokenizer_fingerprint"])
def test_cells_of_another_model_or_tokenizer_calibrate_nothing(tmp_path: Path, named: str) -> None:
    choose = law_chooser(None, a_probe(tmp_path / "P", grid()))
    with pytest.raises(FitError, match=r"on another model or tokenizer \(there tiny, here tiny\)"):
        choose(dataclasses.replace(USE, **{named: "x" * 64}))
    assert choose(dataclasses.replace(USE, model_fingerprint=None, tokenizer_fingerprint=None)).cells


def test_cells_give_the_records_recalled_at_their_loss() -> None:
    one, many = sample.cell(1, 16, 0.5, acc_token=0.75), sample.cell(2, 16, 0.1, acc_token=0.9, acc_em=0.25, records=8)
    assert cell_recalls([one, many, sample.diverged(4, 16)]) == (CellRecall(0.5, 0, 1, 16), CellRecall(0.1, 2, 8, 16))


def test_points_come_from_a_table_or_from_the_finished_cells_of_a_probe(tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    table.write_text("rank,length,delta_loss\n1,10,0.5\n")
    [point] = law_points(table)
    assert (point.rank, point.length, point.delta_loss) == (1, 10, 0.5)
    probe = a_probe(tmp_path / "P", [*grid(), sample.diverged(16, 16)])
    assert len(law_points(probe)) == len(RANKS) * len(LENGTHS)


def test_cells_of_several_methods_have_to_be_chosen_from(tmp_path: Path) -> None:
    probe = a_probe(tmp_path / "P", [*grid(), *grid(method="ot")])
    with pytest.raises(
        ConfigError, match=r"cells of the methods ot and sft.*Choose it with --method: `memlaw fit .*P --"
    ):
        law_points(probe)
    with pytest.raises(ConfigError, match=r"--method ot --save law\.json`, then pass the file to `memlaw plan`\."):
        known_law(probe)
    with pytest.raises(ConfigError, match="cells of the methods"):
        law_chooser(None, probe)
    assert len(law_points(probe, "ot")) == len(RANKS) * len(LENGTHS)


def test_a_method_without_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"P has no cell of the method ot\. Its methods: sft"):
        law_points(a_probe(tmp_path / "P", grid()), "ot")
    with pytest.raises(ConfigError, match=r"E has no cell of the method ot\. Its methods: none"):
        law_points(a_probe(tmp_path / "E", []), "ot")
    with pytest.raises(ConfigError, match="the points of a table have no method"):
        law_points(tmp_path / "points.csv", "ot")


def test_a_directory_without_a_probe_is_refused(tmp_path: Path) -> None:
    for read in (law_points, probe_results, known_law):
        with pytest.raises(JournalError, match=r"is not a probe directory: it has no probe\.json"):
            read(tmp_path)
