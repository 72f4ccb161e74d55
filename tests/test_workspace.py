"""What a directory of results holds is read back whole, or refused in words."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import sample

from memlaw import __version__, published
from memlaw.diagnosis import report_to_dict
from memlaw.errors import ConfigError, DataError, FitError, JournalError
from memlaw.journal import Journal, ProbeSpec
from memlaw.law import calibrate, compare, fit_law, points_from_results
from memlaw.plan import default_law
from memlaw.records import CellResult, TrainConfig, canonical_json
from memlaw.report import render
from memlaw.workspace import KnownLaw, content, keep, known_law, law_points, observed, probe_results

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
    journal.claim(ProbeSpec(identity={"grid": data}, packs=(), about={"model": "tiny", "data": data}))
    for result in results:
        journal.publish(result)
    return directory


# --- laws ------------------------------------------------------------------------------------------------------------


def test_without_a_source_the_law_is_the_borrowed_one() -> None:
    assert known_law(None) == KnownLaw(default_law(), ())


def test_a_law_file_is_the_law_that_was_written(tmp_path: Path) -> None:
    law = fit_law(published.points(), "bounded")
    keep(tmp_path / "law.json", law.to_json())
    assert known_law(tmp_path / "law.json") == KnownLaw(law, ())


def test_a_probe_gives_the_better_form_and_what_its_cells_say_of_recall(tmp_path: Path) -> None:
    known = known_law(a_probe(tmp_path / "P", grid()))
    results = Journal(tmp_path / "P").results()
    assert known.law == compare(points_from_results(results), source=str(tmp_path / "P")).best
    assert sorted(known.observed) == sorted((result.loss_final, result.acc_token) for result in results)


def test_cells_of_the_facts_calibrate_the_law_and_say_which_loss_recall_needs(tmp_path: Path) -> None:
    few = grid()[:5]
    known = known_law(None, a_probe(tmp_path / "P", few))
    expected = calibrate(default_law(), points_from_results(Journal(tmp_path / "P").results()))
    assert known.law == expected
    assert len(known.observed) == 5
    assert known.law.parameters["alpha"].value == default_law().parameters["alpha"].value


def test_cells_that_did_not_finish_calibrate_nothing(tmp_path: Path) -> None:
    probe = a_probe(tmp_path / "P", [sample.diverged(1, 16)])
    with pytest.raises(FitError, match="P has no finished cell to calibrate a law with"):
        known_law(None, probe)


def test_the_share_recalled_is_of_records_or_of_the_tokens_of_one_long_target() -> None:
    one, many = sample.cell(1, 16, 0.5, acc_token=0.75), sample.cell(2, 16, 0.1, acc_token=0.9, acc_em=0.25, records=8)
    assert observed([one, many, sample.diverged(4, 16)]) == ((0.5, 0.75), (0.1, 0.25))


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
    with pytest.raises(ConfigError, match=r"--method ot --out law\.json`, whose file `memlaw plan` takes too"):
        known_law(probe)
    with pytest.raises(ConfigError, match="cells of the methods"):
        known_law(None, probe)
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


def test_a_probe_is_shown_with_both_forms_of_its_law(tmp_path: Path) -> None:
    shown = content(a_probe(tmp_path / "P", grid()))
    assert len(shown.cells) == len(RANKS) * len(LENGTHS)
    assert sorted(law.summary["form"] for law in shown.fits) == ["bounded", "paper"]
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
    assert [law.summary["status"].startswith("All cells") for law in alone.fits] == [True, True]
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
