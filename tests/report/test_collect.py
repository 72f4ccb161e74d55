from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers import sample
from helpers.adapters import recorded
from helpers.paths import FIXTURES
from helpers.result_directories import LENGTHS, RANKS, a_probe, grid
from memlaw import __version__
from memlaw.core.canonical import canonical_json
from memlaw.core.cells import CellResult
from memlaw.core.config import TrainConfig
from memlaw.core.errors import AdapterError, DataError, JournalError
from memlaw.core.files import write_text
from memlaw.diagnosis.documents import report_to_dict
from memlaw.law import compare
from memlaw.report import render
from memlaw.report.collect import collect
from memlaw.sweep.journal import Journal, ProbeSpec


def test_a_probe_is_shown_with_the_best_form_of_its_law_and_the_papers_beside_it(tmp_path: Path) -> None:
    shown = collect(a_probe(tmp_path / "P", grid()))
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


def test_a_directory_of_probes_is_shown_with_its_plan_and_recall(tmp_path: Path) -> None:
    a_probe(tmp_path / "a", grid(), data="codes")
    a_probe(tmp_path / "b", grid(data="e" * 64)[:4], data="names")
    report = sample.recall({"x": [0.1], "y": [0.9]})
    write_text(tmp_path / "recall.json", canonical_json(report_to_dict(report)))
    write_text(tmp_path / "plan.json", canonical_json({"records": 2, "tokens": 2, "bits": 3.0, "rank": {"value": 1}}))
    write_text(tmp_path / "commands.json", canonical_json({"commands": ["memlaw demo"]}))
    shown = collect(tmp_path)
    assert len(shown.cells) == len(RANKS) * len(LENGTHS) + 4
    assert shown.recall == report
    assert shown.plan is not None
    assert shown.plan["rank"] == {"value": 1}
    assert shown.commands == ["memlaw demo"]
    assert set(shown.sources.values()) == {"codes", "names"}
    assert {(law.label, len(law.points)) for law in shown.fits} == {("codes", len(RANKS) * len(LENGTHS))}


def test_a_page_does_not_say_where_files_are_on_its_authors_machine(tmp_path: Path) -> None:
    home = "/home/ada/secret project"
    failed = sample.diverged(1, 16, f"No space left: '{home}/x'")
    probe = a_probe(tmp_path / "P", [*grid(), failed], data=f"{home}/codes.jsonl (JSONL)")
    spec = json.loads((probe / "probe.json").read_text())
    write_text(
        tmp_path / "recall.json",
        canonical_json(
            report_to_dict(sample.recall({"x": [0.1], "y": [0.9]}), advice=[f"Run memlaw plan '{home}/codes.jsonl'."])
        ),
    )
    plan = {"records": 2, "tokens": 2, "bits": 3.0, "rank": {"value": 1}, "law": {"source": f"{home}/law.json"}}
    write_text(tmp_path / "plan.json", canonical_json(plan))
    write_text(tmp_path / "commands.json", canonical_json({"commands": [f"memlaw probe '{home}/codes.jsonl'"]}))
    page = render(collect(tmp_path))
    assert str(spec).count("secret project")
    assert "codes.jsonl" in page
    assert "/home" not in page
    assert "secret project" not in page
    assert str(tmp_path) not in page


@pytest.mark.parametrize("setting", [{"method": "ot"}, {"placement": "down_proj@1"}, {"data": "e" * 64}])
def test_the_law_of_a_page_is_that_of_its_largest_family(tmp_path: Path, setting: dict[str, str]) -> None:
    others = [sample.cell(rank, length, 9.0, **setting) for rank in RANKS for length in (16, 64)]
    shown = collect(a_probe(tmp_path / "P", [*grid(), *others]))
    assert {len(law.points) for law in shown.fits} == {len(RANKS) * len(LENGTHS)}


def test_cells_of_other_seeds_are_of_the_same_family(tmp_path: Path) -> None:
    shown = collect(a_probe(tmp_path / "P", [*grid(), *grid(seed=1)]))
    assert {(law.label, len(law.points)) for law in shown.fits} == {("", 2 * len(RANKS) * len(LENGTHS))}


def test_two_probes_that_differ_in_steps_get_a_heatmap_each(tmp_path: Path) -> None:
    a_probe(tmp_path / "short", [_trained(sample.cell(2, 16, 4.0), steps=20)])
    a_probe(tmp_path / "long", [_trained(sample.cell(2, 16, 1.0), steps=2000)])
    page = render(collect(tmp_path))
    maps = re.findall(r'<svg role="img" aria-label="Mean final loss.*?</svg>', page, flags=re.DOTALL)
    assert len(maps) == 2
    assert [re.findall(r">(\d\.\d\d)</text>", each) for each in maps] == [["1.00"], ["4.00"]]
    names = re.findall(r"<h3><bdi>(.*?)</bdi></h3>", page)
    assert names == ["codes, sft, mlp@3, float32, 2,000 steps", "codes, sft, mlp@3, float32, 20 steps"]


def test_the_law_of_one_family_among_several_is_named_by_what_sets_it_apart(tmp_path: Path) -> None:
    a_probe(tmp_path / "short", [_trained(result, steps=20) for result in grid()[:6]])
    a_probe(tmp_path / "long", [_trained(result, steps=2000) for result in grid()])
    assert {law.label for law in collect(tmp_path).fits} == {"codes, 2,000 steps"}


def test_an_unfinished_probe_is_counted_by_its_grid() -> None:
    shown = collect(FIXTURES / "before_the_move" / "probe_interrupted")
    assert (len(shown.cells), shown.grid) == (2, 4)
    assert "<dt>cells finished</dt><dd>2<small>of 4</small></dd>" in render(shown)


def test_a_probe_that_was_stopped_before_its_first_cell_is_counted_by_its_grid(tmp_path: Path) -> None:
    Journal(tmp_path).claim(ProbeSpec(identity={}, packs=(("a", "b"), ("c",))))
    shown = collect(tmp_path)
    assert (shown.cells, shown.grid) == ([], 3)
    assert "<dt>cells finished</dt><dd>0<small>of 3</small></dd>" in render(shown)


def test_cells_that_allow_no_fit_are_shown_without_a_law(tmp_path: Path) -> None:
    alone = collect(a_probe(tmp_path / "alone", [sample.cell(1, 16), sample.cell(2, 16)]))
    assert [law.summary["status"].startswith("All cells") for law in alone.fits] == [True]
    assert "All cells" in render(alone)
    assert collect(a_probe(tmp_path / "diverged", [sample.diverged(1, 16)])).fits == ()
    assert collect(a_probe(tmp_path / "none", [])).fits == ()


def test_cells_that_stopped_early_are_shown_but_not_fitted(tmp_path: Path) -> None:
    early = [_trained(result, until="recalled") for result in grid()]
    shown = collect(a_probe(tmp_path / "early", early))
    assert (len(shown.cells), shown.fits) == (len(early), ())
    both = collect(a_probe(tmp_path / "both", [*early, *grid()[:6]]))
    assert {len(law.points) for law in both.fits} == {6}


def _trained(result: CellResult, **settings: Any) -> CellResult:
    cell = dataclasses.replace(result.cell, train=TrainConfig(**settings))
    return dataclasses.replace(result, cell=cell)


@pytest.mark.parametrize("name", ["plan.json", "recall.json", "commands.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    a_probe(tmp_path / "P", grid())
    (tmp_path / "P" / name).write_bytes(b'{"records": 1')
    with pytest.raises(JournalError, match=rf"{name} is not JSON .* damaged or cut short\. Create it again"):
        collect(tmp_path / "P")
    (tmp_path / "P" / name).write_bytes(b"\xff\xfe")
    with pytest.raises(JournalError, match=rf"{name} is not UTF-8 text \(byte 0\)"):
        collect(tmp_path / "P")


def test_a_certificate_that_was_edited_is_refused(tmp_path: Path) -> None:
    document = report_to_dict(sample.recall({"x": [0.9]}))
    document["items"][0]["certified"] = True
    write_text(tmp_path / "recall.json", json.dumps(document))
    with pytest.raises(DataError, match="so the file was edited"):
        collect(tmp_path)


def test_a_directory_with_nothing_to_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"contains neither a probe \(probe\.json\) nor recall\.json"):
        collect(tmp_path)


class TestWhatAdaptersCost:
    """Of the adapters in a directory, as recorded beside each, and of a recall."""

    def test_every_adapter_with_side_effects_is_listed(self, tmp_path: Path) -> None:
        recorded(tmp_path / "b", rank=8, side_effects=sample.EFFECTS, recalled=11)
        recorded(tmp_path / "a", rank=2, side_effects=dataclasses.replace(sample.EFFECTS, kl=2.0))
        recorded(tmp_path / "of an earlier version", rank=4)
        (one, two) = collect(tmp_path).costs
        assert (one.name, one.place, one.recalled, one.records) == ("a", "rank 2 at down_proj@4", None, 12)
        assert (two.name, two.recalled, two.effects) == ("b", 11, sample.EFFECTS)
        assert "What it cost" in render(collect(tmp_path))

    def test_an_adapter_alone_is_a_report(self, tmp_path: Path) -> None:
        recorded(tmp_path / "mine", rank=8, side_effects=sample.EFFECTS, recalled=12)
        (cost,) = collect(tmp_path / "mine").costs
        assert (cost.name, cost.effects) == ("mine", sample.EFFECTS)

    def test_those_of_a_recall_are_listed_unless_they_are_those_of_an_adapter_beside_it(self, tmp_path: Path) -> None:
        report = sample.recall({"x": [0.1], "y": [0.9]})
        document = report_to_dict(report, side_effects=sample.EFFECTS)
        write_text(tmp_path / "recall.json", canonical_json(document))
        (cost,) = collect(tmp_path).costs
        assert (cost.name, cost.recalled, cost.records, cost.effects) == ("memlaw recall", 1, 2, sample.EFFECTS)
        recorded(tmp_path / "a", rank=8, side_effects=sample.EFFECTS)
        assert [cost.name for cost in collect(tmp_path).costs] == ["a"]

    def test_an_adapter_whose_record_is_damaged_is_named(self, tmp_path: Path) -> None:
        recorded(tmp_path / "a", rank=8, side_effects=sample.EFFECTS)
        (tmp_path / "a" / "memlaw_adapter.json").write_text("{")
        with pytest.raises(AdapterError, match="is not JSON"):
            collect(tmp_path)
