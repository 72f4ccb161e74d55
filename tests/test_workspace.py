"""What a directory of results holds is read back whole, or refused in words."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import sample

from memlaw import __version__, published
from memlaw.diagnosis import report_to_dict
from memlaw.errors import ConfigError, DataError, FitError, JournalError
from memlaw.journal import Journal, ProbeSpec
from memlaw.law import Origin, calibrate, compare, fit_law, points_from_results
from memlaw.laws import KnownLaw, Use, nearest
from memlaw.plan import CellRecall, default_law
from memlaw.records import CellResult, TrainConfig, canonical_json
from memlaw.report import render
from memlaw.workspace import (
    content,
    keep,
    known_law,
    law_chooser,
    law_points,
    probe_results,
    recalled,
    with_origin,
)

RANKS, LENGTHS = (1, 2, 4, 8), (16, 64, 256)


def grid(**changes: object) -> list[CellResult]:
    """Finished cells on the law of `sample`, with a little scatter."""
    law = sample.PowerLaw()
    found = []
    for number, (rank, length) in enumerate((rank, length) for rank in RANKS for length in LENGTHS):
        gain = min(law.predict(rank, length) * (1 + 0.01 * (number % 3 - 1)), 9.9)
        share = float(gain > 9)
        found.append(sample.cell(rank, length, 10.0 - gain, acc_token=share, **changes))
    return found


def a_probe(directory: Path, results: Iterable[CellResult], *, data: str = "codes") -> Path:
    """A probe's directory that holds these results."""
    journal = Journal(directory)
    journal.claim(
        ProbeSpec(identity={"grid": data}, packs=(), about={"model": "tiny", "outline": "o" * 64, "data": data})
    )
    for result in results:
        journal.publish(result)
    return directory


# --- laws ------------------------------------------------------------------------------------------------------------

USE = Use("tiny", "o" * 64, "mlp@3", 200, tokenizer_fingerprint="t" * 64, model_fingerprint="m" * 64)
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
    keep(tmp_path / "law.json", named.to_json())
    assert law_chooser(tmp_path / "law.json", shelf=[own])(USE).law == named


def test_a_law_file_is_the_law_that_was_written(tmp_path: Path) -> None:
    law = fit_law(published.points(), "bounded")
    keep(tmp_path / "law.json", law.to_json())
    assert known_law(tmp_path / "law.json") == KnownLaw(law)
    own = known_law(a_probe(tmp_path / "P", grid()))
    keep(tmp_path / "own.json", own.to_json())
    assert known_law(tmp_path / "own.json") == own


def test_a_probe_gives_the_better_form_where_it_comes_from_and_what_its_cells_say_of_recall(tmp_path: Path) -> None:
    known = known_law(a_probe(tmp_path / "P", grid()))
    results = Journal(tmp_path / "P").results()
    best = compare(points_from_results(results), source=str(tmp_path / "P")).best_to_plan
    assert replace(known.law, origin=None) == best
    assert known.law.origin == Origin(
        model="tiny", model_fingerprint="m" * 64, outline="o" * 64, tokenizer_fingerprint="t" * 64, placement="mlp@3",
        parameters_per_rank=256.0, data="codes", data_fingerprint="d" * 64, method="sft", steps=1000, dtype="float32",
        date=datetime.date.today().isoformat(), version=__version__,
    )  # fmt: skip
    assert known.cells == recalled(results)


def test_a_law_of_a_table_has_no_origin_and_no_cells(tmp_path: Path) -> None:
    law = fit_law(published.points(), "bounded")
    assert with_origin(law, tmp_path / "points.csv") == KnownLaw(law)


def test_cells_of_several_placements_have_no_placement_and_no_parameters_of_a_rank(tmp_path: Path) -> None:
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


def test_cells_of_the_facts_calibrate_the_law_and_say_which_loss_recall_needs(tmp_path: Path) -> None:
    few = grid()[:5]
    known = law_chooser(None, a_probe(tmp_path / "P", few))(USE)
    expected = calibrate(default_law(), points_from_results(Journal(tmp_path / "P").results()))
    assert known.law == expected
    assert known.cells == recalled(Journal(tmp_path / "P").results())
    assert len(known.cells) == 5
    assert known.law.parameters["alpha"].value == default_law().parameters["alpha"].value


def test_cells_that_did_not_finish_calibrate_nothing(tmp_path: Path) -> None:
    probe = a_probe(tmp_path / "P", [sample.diverged(1, 16)])
    with pytest.raises(FitError, match="P has no finished cell to calibrate a law with"):
        law_chooser(None, probe)


def test_cells_of_another_placement_calibrate_nothing(tmp_path: Path) -> None:
    choose = law_chooser(None, a_probe(tmp_path / "P", grid()))
    with pytest.raises(FitError, match=r"P were trained at mlp@3, and the plan is for down_proj@1, where a rank holds"):
        choose(dataclasses.replace(USE, placement="down_proj@1"))


@pytest.mark.parametrize("named", ["outline", "model_fingerprint", "tokenizer_fingerprint"])
def test_cells_of_another_model_or_tokenizer_calibrate_nothing(tmp_path: Path, named: str) -> None:
    choose = law_chooser(None, a_probe(tmp_path / "P", grid()))
    with pytest.raises(FitError, match=r"on another model or with another tokenizer \(theirs was tiny\)"):
        choose(dataclasses.replace(USE, **{named: "x" * 64}))
    assert choose(dataclasses.replace(USE, model_fingerprint=None, tokenizer_fingerprint=None)).cells


def test_cells_say_how_many_records_came_back_at_which_loss() -> None:
    one, many = sample.cell(1, 16, 0.5, acc_token=0.75), sample.cell(2, 16, 0.1, acc_token=0.9, acc_em=0.25, records=8)
    assert recalled([one, many, sample.diverged(4, 16)]) == (CellRecall(0.5, 0, 1, 16), CellRecall(0.1, 2, 8, 16))


# --- points ----------------------------------------------------------------------------------------------------------


def test_points_come_from_a_table_or_from_the_finished_cells_of_a_probe(tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    table.write_text("rank,length,delta_loss\n1,10,0.5\n")
    [point] = law_points(table)
    assert (point.rank, point.length, point.delta_loss) == (1, 10, 0.5)
    probe = a_probe(tmp_path / "P", [*grid(), sample.diverged(16, 16)])
    assert len(law_points(probe)) == len(RANKS) * len(LENGTHS)


def test_cells_of_several_methods_have_to_be_chosen_from(tmp_path: Path) -> None:
    probe = a_probe(tmp_path / "P", [*grid(), *grid(method="ot")])
    with pytest.raises(ConfigError, match=r"cells of the methods ot and sft.*Choose with --method: `memlaw fit .*P --"):
        law_points(probe)
    with pytest.raises(ConfigError, match=r"--method ot --save law\.json`, whose file `memlaw plan` takes\."):
        known_law(probe)
    with pytest.raises(ConfigError, match="cells of the methods"):
        law_chooser(None, probe)
    assert len(law_points(probe, "ot")) == len(RANKS) * len(LENGTHS)


def test_a_method_that_no_cell_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="P holds no cell of the method ot; it has sft"):
        law_points(a_probe(tmp_path / "P", grid()), "ot")
    with pytest.raises(ConfigError, match="E holds no cell of the method ot; it has none"):
        law_points(a_probe(tmp_path / "E", []), "ot")
    with pytest.raises(ConfigError, match="the cells of a table have no --method"):
        law_points(tmp_path / "points.csv", "ot")


def test_a_directory_that_is_no_probe_is_named(tmp_path: Path) -> None:
    for read in (law_points, probe_results, known_law):
        with pytest.raises(JournalError, match=r"is not a probe: it has no probe\.json"):
            read(tmp_path)


# --- what a report shows ---------------------------------------------------------------------------------------------


def test_a_probe_is_shown_with_the_best_form_of_its_law_and_the_papers_beside_it(tmp_path: Path) -> None:
    shown = content(a_probe(tmp_path / "P", grid()))
    assert len(shown.cells) == len(RANKS) * len(LENGTHS)
    best = compare(shown.fits[0].points, source="codes").best
    assert best.form != "paper"
    assert [law.summary["form"] for law in shown.fits] == [best.form, "paper"]
    assert shown.fits[0].predictor == best
    assert shown.title == "Parametric memory of tiny"
    assert shown.sources == {"d" * 64: "codes"}
    assert shown.made["memlaw"] == __version__
    assert (shown.plan, shown.recall, shown.commands) == (None, None, ())
    assert "codes" in render(shown)


def test_a_directory_of_probes_is_shown_with_what_lies_beside_them(tmp_path: Path) -> None:
    a_probe(tmp_path / "a", grid(), data="codes")
    a_probe(tmp_path / "b", grid(data="e" * 64)[:4], data="names")
    report = sample.recall({"x": [0.1], "y": [0.9]})
    keep(tmp_path / "recall.json", canonical_json(report_to_dict(report)))
    keep(tmp_path / "plan.json", canonical_json({"records": 2, "tokens": 2, "bits": 3.0, "rank": {"value": 1}}))
    keep(tmp_path / "commands.json", canonical_json({"commands": ["memlaw demo"]}))
    shown = content(tmp_path)
    assert len(shown.cells) == len(RANKS) * len(LENGTHS) + 4
    assert shown.recall == report
    assert shown.plan is not None
    assert shown.plan["rank"] == {"value": 1}
    assert shown.commands == ["memlaw demo"]
    assert set(shown.sources.values()) == {"codes", "names"}
    assert {(law.label, len(law.points)) for law in shown.fits} == {("codes", len(RANKS) * len(LENGTHS))}


@pytest.mark.parametrize("setting", [{"method": "ot"}, {"placement": "down_proj@1"}, {"data": "e" * 64}])
def test_the_law_of_a_page_is_that_of_its_largest_family(tmp_path: Path, setting: dict[str, str]) -> None:
    others = [sample.cell(rank, length, 9.0, **setting) for rank in RANKS for length in (16, 64)]
    shown = content(a_probe(tmp_path / "P", [*grid(), *others]))
    assert {len(law.points) for law in shown.fits} == {len(RANKS) * len(LENGTHS)}


def test_cells_of_other_seeds_are_of_the_same_family(tmp_path: Path) -> None:
    shown = content(a_probe(tmp_path / "P", [*grid(), *grid(seed=1)]))
    assert {(law.label, len(law.points)) for law in shown.fits} == {("", 2 * len(RANKS) * len(LENGTHS))}


def test_what_no_law_can_be_fitted_to_is_shown_without_one(tmp_path: Path) -> None:
    alone = content(a_probe(tmp_path / "alone", [sample.cell(1, 16), sample.cell(2, 16)]))
    assert [law.summary["status"].startswith("All cells") for law in alone.fits] == [True]
    assert "All cells" in render(alone)
    assert content(a_probe(tmp_path / "diverged", [sample.diverged(1, 16)])).fits == ()
    assert content(a_probe(tmp_path / "none", [])).fits == ()


def test_cells_that_stopped_early_are_shown_but_not_fitted(tmp_path: Path) -> None:
    early = [_until_recalled(result) for result in grid()]
    shown = content(a_probe(tmp_path / "early", early))
    assert (len(shown.cells), shown.fits) == (len(early), ())
    both = content(a_probe(tmp_path / "both", [*early, *grid()[:6]]))
    assert {len(law.points) for law in both.fits} == {6}


def _until_recalled(result: CellResult) -> CellResult:
    cell = dataclasses.replace(result.cell, train=TrainConfig(until="recalled"))
    return dataclasses.replace(result, cell=cell)


@pytest.mark.parametrize("name", ["plan.json", "recall.json", "commands.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    a_probe(tmp_path / "P", grid())
    (tmp_path / "P" / name).write_bytes(b'{"records": 1')
    with pytest.raises(JournalError, match=rf"{name} is not JSON .* damaged or cut short\. Write it again"):
        content(tmp_path / "P")
    (tmp_path / "P" / name).write_bytes(b"\xff\xfe")
    with pytest.raises(JournalError, match=rf"{name} is not UTF-8 text \(byte 0\)"):
        content(tmp_path / "P")


def test_a_certificate_that_was_edited_is_refused(tmp_path: Path) -> None:
    document = report_to_dict(sample.recall({"x": [0.9]}))
    document["items"][0]["certified"] = True
    keep(tmp_path / "recall.json", json.dumps(document))
    with pytest.raises(DataError, match="so the file was changed after it was written"):
        content(tmp_path)


def test_a_directory_with_nothing_to_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"holds no probe \(probe\.json\) and no recall\.json"):
        content(tmp_path)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_kept_whole_in_folders_that_are_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "law.json"
    keep(path, "one")
    keep(path, "two é")
    assert path.read_text(encoding="utf-8") == "two é"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "law.json"
    keep(path, "one")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(JournalError, match=r"law\.json cannot be written: No space"):
            keep(path, "two")
    assert path.read_text(encoding="utf-8") == "one"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(JournalError, match=r"x cannot be written: .*make room or choose another --out"):
        keep(path / "x", "two")
