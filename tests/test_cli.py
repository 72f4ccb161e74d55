"""The command line as a user meets it: what it prints, what it leaves behind, and one sentence for every bad input."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet
import pytest
import tiny
import torch
from pydantic import TypeAdapter
from rich.console import Console

from memlaw import __version__, cli, progress, published
from memlaw.adapter import files
from memlaw.diagnosis import RecallDocument
from memlaw.journal import Journal
from memlaw.records import Reason

SECRETS = [f"hunter-{7919 * number % 10_000:04d}" for number in range(1, 5)]
"""Targets of 11 characters, which the tiny tokenizer makes 11 tokens and the end of sequence."""
LENGTH = 12

OFFICIAL = Path(__file__).parent / "data" / "official" / "phonebook" / "qwen" / "PB1000.jsonl"
POINTS = Path(published.__file__).parent / "points.csv"


def jsonl(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


RECORDS = [{"prompt": f"key {number}:", "completion": secret} for number, secret in enumerate(SECRETS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `save_pretrained` leaves it."""
    return saved_model(tmp_path_factory.mktemp("cli") / "model")


def saved_model(directory: Path, **changes: Any) -> Path:
    tiny.model(**changes).save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("facts") / "facts.jsonl", jsonl(*RECORDS))


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout. json.loads refuses anything beside it; NaN is refused here."""
        assert self.code == 0, self.err
        found = json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
        assert isinstance(found, dict)
        return found


Run = Callable[..., Ran]


def exit_code(*arguments: object) -> int:
    """Run a command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["memlaw", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process, with what it printed."""

    def start(*arguments: object) -> Ran:
        code = exit_code(*arguments)
        return Ran(code, *capsys.readouterr())

    return start


def process(*arguments: object) -> Ran:
    """A command in its own process."""
    ended = subprocess.run([sys.executable, "-m", "memlaw", *map(str, arguments)], capture_output=True, text=True)
    return Ran(ended.returncode, ended.stdout, ended.stderr)


def assert_refused(ran: Ran, *sentences: str) -> None:
    """Exit code 2, nothing on stdout, a sentence and no traceback on stderr - and no target text."""
    assert ran.code == 2, ran
    assert ran.out == ""
    assert "Error: " in ran.err
    assert "Traceback" not in ran.err
    for sentence in sentences:
        assert sentence in " ".join(ran.err.split()), ran.err
    assert "hunter" not in ran.err


# --- contracts -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(model: Path, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until every fact of `facts` is recalled."""
    out = tmp_path_factory.mktemp("adapter") / "A"
    until = ("--method", "ot", "--until", "recalled")
    assert exit_code("train", facts, "--model", model, "--rank", 16, *until, "--out", out) == 0
    return out


GRID = ("--ranks", "1,2,4", "--lengths", "12,24,48", "--methods", "sft,ot", "--steps", 30)


@pytest.fixture(scope="module")
def probed(model: Path, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of both methods: 18 cells."""
    out = tmp_path_factory.mktemp("probe") / "P"
    assert exit_code("probe", facts, "--model", model, *GRID, "--out", out) == 0
    return out


def test_train_and_recall_make_it_stick_and_certify_it(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "A"
    trained = run("train", facts, "--model", model, "--rank", 16, "--out", out, "--json")
    assert trained.err == ""
    document = trained.document
    assert {"adapter", "steps", "seconds", "recalled", "loss_init", "loss_final"} <= document.keys()
    assert (document["adapter"], document["recalled"]) == (str(out), True)
    assert document["loss_final"] < 0.6 < 6 < document["loss_init"]

    recalled = run("recall", facts, "--model", model, "--adapter", out, "--decode", "--json").document
    assert {"records", "tokens", "acc_em", "acc_token", "certified", "ordered", "min_margin"} <= recalled.keys()
    assert (recalled["records"], recalled["tokens"]) == (4, 4 * LENGTH)
    assert (recalled["acc_em"], recalled["acc_token"], recalled["certified"]) == (1.0, 1.0, 4)
    assert recalled["ordered"] == 4 * LENGTH
    assert recalled["min_margin"] > 0
    for item in recalled["items"]:
        keys = {"id", "length", "exact", "certified", "margin", "earliest_stubborn", "first_failure"}
        assert keys <= item.keys()
        assert (item["exact"], item["certified"], item["earliest_stubborn"], item["first_failure"]) == (
            True, True, None, None,
        )  # fmt: skip


def test_recall_without_decoding_claims_nothing_about_verbatim_recall(
    run: Run, model: Path, facts: Path, adapter: Path
) -> None:
    document = run("recall", facts, "--model", model, "--adapter", adapter, "--json").document
    assert (document["acc_em"], document["acc_token"], document["certified"]) == (None, None, None)
    assert document["ordered"] == 4 * LENGTH
    assert {(item["exact"], item["certified"]) for item in document["items"]} == {(None, None)}
    shown = run("recall", facts, "--model", model, "--adapter", adapter).out
    assert "certified not known: add --decode" in " ".join(shown.split())


def test_the_bare_base_recalls_nothing_and_says_where_it_fails(run: Run, model: Path, facts: Path) -> None:
    document = run("recall", facts, "--model", model, "--decode", "--json").document
    assert (document["acc_em"], document["certified"]) == (0.0, 0)
    assert {item["first_failure"] for item in document["items"]} == {0}
    shown = run("recall", facts, "--model", model, "--decode").out
    assert "recalled verbatim 0 of 4 records (0.0%)" in " ".join(shown.split())


def test_recall_explains_every_failure_and_its_document_is_the_one_described(
    run: Run, model: Path, facts: Path
) -> None:
    document = run("recall", facts, "--model", model, "--decode", "--json").document
    TypeAdapter(RecallDocument).validate_json(json.dumps(document), strict=True)
    assert document["schema"] == "memlaw.recall/1"
    assert document["texts"] is None
    for item in document["items"]:
        assert item["reason"] in get_args(Reason)
        assert item["why"].startswith("Decoding goes wrong at position 0")
        assert item["tokens"]["unreachable"] is not None
    assert sum(document["patterns"]["reasons"].values()) == 4


def test_texts_are_shown_to_who_asks_for_them_and_kept_for_the_owner_alone(
    run: Run, model: Path, facts: Path, adapter: Path, tmp_path: Path
) -> None:
    kept, page = tmp_path / "recall.json", tmp_path / "report.html"
    asked = ("recall", facts, "--model", model, "--adapter", adapter, "--decode", "--out", kept)
    assert run(*asked).code == 0
    assert_refused(run("report", tmp_path, "--out", page, "--show-text"), "`memlaw recall --show-text --out`")
    texts = run(*asked, "--show-text", "--json").document["texts"]
    assert len(texts) == 4
    assert any("".join(pieces) in SECRETS for pieces in texts.values())
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert run("report", tmp_path, "--out", page, "--show-text").code == 0
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert "This file contains the target texts." in page.read_text(encoding="utf-8")
    assert run("report", tmp_path, "--out", page).code == 0
    assert "This file contains the target texts." not in page.read_text(encoding="utf-8")


def test_probe_prints_its_counts_and_writes_the_promised_table(
    run: Run, model: Path, facts: Path, probed: Path
) -> None:
    again = ("probe", facts, "--model", model, "--ranks", "4,1,2", "--lengths", "48,12,24", "--methods", "ot,sft")
    ran = run(*again, "--steps", 30, "--out", probed, "--json")
    assert {"out": str(probed), "cells": 18, "finished": 18, "failed": 0}.items() <= ran.document.items()
    columns = [
        "key", "model", "placement", "rank", "parameters", "length", "method", "seed", "steps", "loss_init",
        "loss_final", "delta_loss", "acc_token", "acc_em", "ordered", "certified", "status",
    ]  # fmt: skip
    table = pyarrow.parquet.read_table(probed / "results.parquet")
    assert table.num_rows == 18
    assert set(columns) <= set(table.column_names)
    assert set(table["status"].to_pylist()) == {"finished"}


def test_a_config_file_gives_the_same_as_the_options(
    run: Run, model: Path, facts: Path, probed: Path, tmp_path: Path
) -> None:
    grid = "ranks: [1, 2, 4]\nlengths: [12, 24, 48]\nmethods: [sft, ot]\nsteps: 7\n"
    config = write(tmp_path / "grid.yaml", grid)
    ran = run("probe", facts, "--model", model, "--config", config, "--steps", 30, "--out", probed, "--json")
    assert ran.document["finished"] == 18  # joined the probe that the options made


def test_fit_of_the_published_points_gives_the_known_numbers(run: Run, tmp_path: Path) -> None:
    document = run("fit", POINTS, "--json").document
    assert {"form", "status", "n", "r2", "mape", "parameters", "holdout"} <= document.keys()
    assert (document["form"], document["status"], document["n"]) == ("bounded", "ok", 70)
    assert document["r2"] == pytest.approx(0.9994, abs=1e-4)
    assert document["mape"] == pytest.approx(0.95, abs=0.01)
    assert document["parameters"].keys() == {"C", "alpha", "beta", "b", "n"}
    for estimate in document["parameters"].values():
        assert estimate.keys() == {"value", "stderr", "low", "high"}
        assert estimate["low"] < estimate["value"] < estimate["high"]

    paper = run("fit", POINTS, "--form", "paper", "--holdout", "length=MAX", "--json").document
    assert (paper["form"], paper["parameters"].keys()) == ("paper", {"C", "alpha", "beta", "b"})
    assert paper["r2"] == pytest.approx(0.9959, abs=1e-4)
    assert paper["mape"] == pytest.approx(3.45, abs=0.01)
    assert {"mape", "coverage90"} <= paper["holdout"].keys()
    assert paper["holdout"]["mape"] == pytest.approx(6.0, abs=0.1)


def test_fit_shows_the_other_form_beside_the_better_one(run: Run) -> None:
    shown = run("fit", POINTS).out
    assert shown.startswith("The bounded form, dL = L (1 + (u/L)^-n)^(-1/n), u = C r^alpha l^-beta + b, on 70 cells:")
    assert "The paper form, beside it: R^2 0.9959, MAPE 3.45% on 70 cells." in shown


def test_plan_without_a_law_borrows_the_published_one_and_says_so(run: Run) -> None:
    document = run("plan", OFFICIAL, "--json").document
    assert {"records", "tokens", "bits", "rank", "law", "lora_config"} <= document.keys()
    assert document["rank"].keys() == {"value", "low", "high"}
    assert document["law"].keys() >= {"source", "borrowed", "near", "form"}
    assert (document["records"], document["tokens"]) == (100, 1100)
    assert document["law"]["borrowed"] is True
    assert "Qwen3-8B" in document["law"]["source"]
    rank = document["rank"]
    assert 1 <= rank["low"] < rank["value"]
    assert rank["high"] is None or rank["high"] > rank["value"]
    assert document["lora_config"]["r"] == rank["value"]
    assert document["lora_config"]["target_modules"] == ["down_proj"]
    shown = " ".join(run("plan", OFFICIAL).out.split())
    assert "Note: Borrowed: this law was fitted to Qwen3-8B, not to this model." in shown
    most = "or more" if rank["high"] is None else f"to {rank['high']}"
    assert f"rank {rank['value']} (95%: {rank['low']} {most}) is predicted to meet the target, all facts" in shown
    assert f"LoraConfig(r={rank['value']}, lora_alpha=" in shown


@pytest.fixture(scope="module")
def single(model: Path, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of one method: 9 cells."""
    out = tmp_path_factory.mktemp("single") / "P"
    grid = ("--ranks", "1,2,4", "--lengths", "12,24,48", "--steps", 30)
    assert exit_code("probe", facts, "--model", model, *grid, "--out", out) == 0
    return out


def test_plan_takes_a_law_file_a_probe_or_a_few_cells_to_calibrate_with(
    run: Run, model: Path, facts: Path, probed: Path, single: Path, tmp_path: Path
) -> None:
    law = tmp_path / "laws" / "law.json"
    fitted = run("fit", probed, "--method", "sft", "--form", "bounded", "--save", law, "--json").document
    assert fitted["n"] == 9
    of_file = run("plan", facts, "--model", model, "--law", law, "--json").document
    assert (of_file["law"]["source"], of_file["law"]["borrowed"]) == (str(probed), False)
    assert of_file["law"]["near"] == [
        "The weights were not compared, only name and shape: --calibrate compares them."
    ]  # fmt: skip

    of_probe = run("plan", facts, "--model", model, "--law", single, "--json").document
    assert of_probe["law"]["source"] == str(single)
    assert of_probe["law"]["n"] == 9
    calibrated = run("plan", facts, "--model", model, "--cells", single, "--json").document
    assert calibrated["law"]["source"].endswith("C and b refitted to 9 cells")
    assert calibrated["loss_needed"]["why"].endswith("learned from 9 cells.")
    assert "Exponents borrowed" in " ".join(calibrated["caveats"])


def test_a_law_that_was_saved_is_listed_and_is_the_one_a_plan_takes(
    run: Run, model: Path, facts: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("fit", single, "--form", "bounded", "--save", "laws/own.json").code == 0
    write(tmp_path / "laws" / "cut.json", "{")
    listed = run("laws", "--json")
    assert [law["name"] for law in listed.document["laws"]] == ["own", "published"]
    expected = {
        "model": str(model), "placement": "down_proj@2", "data": f"{facts} (JSONL)", "method": "sft", "steps": 30,
        "form": "bounded", "n": 9, "ranks": [1.0, 4.0], "lengths": [12.0, 48.0],
    }  # fmt: skip
    assert {name: listed.document["laws"][0][name] for name in expected} == expected
    assert listed.err.startswith("Warning: laws/cut.json is not JSON")
    assert "own: bounded form on 9 cells" in run("laws").out
    assert run("laws", tmp_path / "laws", "--json").document == listed.document
    monkeypatch.setenv("MEMLAW_LAWS", str(tmp_path / "none"))
    assert [law["name"] for law in run("laws", "--json").document["laws"]] == ["published"]
    monkeypatch.delenv("MEMLAW_LAWS")

    plan = ("plan", facts, "--model", model, "--json")
    taken = run(*plan)
    assert taken.err == listed.err
    assert (taken.document["law"]["source"], taken.document["law"]["borrowed"]) == (str(single), False)
    assert run(*plan, "--laws", tmp_path / "none").document["law"]["borrowed"] is True
    elsewhere = run(*plan, "--placement", "q_proj@1").document["law"]
    assert (elsewhere["borrowed"], elsewhere["axis"]) == (True, "parameters")
    assert "Its adapters sit at down_proj@2, not at q_proj@1." in elsewhere["near"]


def test_calibrate_measures_the_facts_on_the_model_and_times_a_few_steps(
    run: Run, model: Path, facts: Path, single: Path
) -> None:
    plan = ("plan", facts, "--model", model, "--law", single, "--target", "loss=8", "--json")
    guessed, measured = run(*plan).document, run(*plan, "--calibrate").document
    recalled = run("recall", facts, "--model", model, "--json").document
    assert measured["loss_init"] == pytest.approx(recalled["mean_loss"])
    assert "was not measured" in " ".join(guessed["caveats"])
    assert "was not measured" not in " ".join(measured["caveats"])
    assert guessed["cost"]["seconds"] is None
    assert measured["cost"]["seconds"] > 0
    assert measured["law"]["near"] == []


def test_a_task_is_planned_for_by_the_model_that_draws_it(run: Run, model: Path, single: Path) -> None:
    document = run("plan", "task:phonebook:tokens=24", "--model", model, "--law", single, "--json").document
    assert document["tokens"] <= 24
    assert "was not measured" not in " ".join(document["caveats"])
    assert document["cost"] is None or document["cost"]["seconds"] is None


def test_a_plan_aims_at_all_at_a_share_or_at_a_loss(run: Run, model: Path, facts: Path, single: Path) -> None:
    plan = ("plan", facts, "--model", model, "--law", single, "--json", "--target")
    found = {aim: run(*plan, aim).document for aim in ("all", "1.0", "50%", "0.5", "loss=0.5")}
    assert found["all"] == found["1.0"]
    assert found["50%"] == found["0.5"]
    assert found["all"]["target"] == {"share": 1.0, "loss": None}
    assert found["loss=0.5"]["target"] == {"share": None, "loss": 0.5}
    assert found["loss=0.5"]["loss_needed"] == {"nats": 0.5, "why": "as asked for."}
    assert found["all"]["loss_needed"]["nats"] < found["50%"]["loss_needed"]["nats"]


def test_a_plan_tells_the_capacity_of_a_rank_that_is_asked_about(
    run: Run, model: Path, facts: Path, single: Path
) -> None:
    plan = ("plan", facts, "--model", model, "--law", single)
    capacity = run(*plan, "--rank", 7, "--json").document["capacity"]
    assert capacity["rank"] == 7
    assert f"rank 7 holds about {capacity['tokens']:,.0f} target tokens" in " ".join(
        run(*plan, "--rank", 7).out.split()
    )
    assert_refused(run(*plan, "--rank", 33), "Rank 33 is above 32")


def test_the_command_of_a_plan_trains_what_was_planned(run: Run, model: Path, tmp_path: Path, single: Path) -> None:
    odd = [{"who is": record["prompt"], "number": record["completion"]} for record in RECORDS]
    data = write(tmp_path / "my facts.jsonl", jsonl(*odd, odd[0]))
    named = ("--prompt-field", "who is", "--target-field", "number", "--no-eos", "--on-conflict", "first")
    answer = run("plan", data, "--model", model, *named, "--law", single, "--target", "loss=8", "--json").document
    command = shlex.split(answer["train"])
    assert command[:2] == ["memlaw", "train"]
    trained = run(*command[1:-1], tmp_path / "A", "--steps", 2, "--json").document
    assert (trained["rank"], trained["placement"]) == (answer["rank"]["value"], "down_proj@2")
    assert trained["loss_init"] > 0


def test_cells_of_another_placement_are_no_calibration(run: Run, model: Path, facts: Path, single: Path) -> None:
    ran = run("plan", facts, "--model", model, "--cells", single, "--placement", "q_proj@1")
    assert_refused(ran, "were trained at down_proj@2, and the plan is for q_proj@1")


@pytest.mark.parametrize("form", ["paper", "power", "log", "bounded", "memory"])
def test_every_form_can_be_fitted_saved_and_planned_with(
    run: Run, model: Path, facts: Path, single: Path, tmp_path: Path, form: str
) -> None:
    law = tmp_path / f"{form}.json"
    assert run("fit", single, "--form", form, "--out", law, "--json").document["form"] == form
    assert run("plan", facts, "--model", model, "--law", law, "--json").document["law"]["form"] == form


def test_a_fit_may_be_over_parameters_of_relative_residuals_and_with_other_intervals(run: Run, single: Path) -> None:
    document = run("fit", single, "--form", "bounded", "--axis", "parameters", "--residuals", "relative",
                   "--intervals", "profile", "--json").document  # fmt: skip
    assert (document["axis"], document["residuals"], document["intervals"]) == ("parameters", "relative", "profile")
    assert_refused(run("fit", single, "--axis", "bytes"), "'bytes' is not one of 'rank', 'parameters'")
    assert_refused(run("fit", single, "--residuals", "cubed"), "'cubed' is not one of 'absolute', 'relative'")
    assert_refused(run("fit", single, "--intervals", "guessed"), "'guessed' is not one of 'standard', 'profile'")


def test_report_is_written_where_it_was_asked_for(
    run: Run, probed: Path, model: Path, facts: Path, tmp_path: Path
) -> None:
    page = tmp_path / "new" / "report.html"
    assert run("report", probed, "--out", page, "--json").document == {"report": str(page)}
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_recall_beside_a_probe_is_in_its_report(
    run: Run, probed: Path, model: Path, facts: Path, adapter: Path, tmp_path: Path
) -> None:
    room = tmp_path / "room"
    shutil.copytree(probed, room / "probe")
    arguments = ("recall", facts, "--model", model, "--adapter", adapter, "--decode", "--out", room / "recall.json")
    assert run(*arguments).code == 0
    assert run("report", room, "--out", room / "report.html").code == 0
    assert "All 4 records came back verbatim and certified" in (room / "report.html").read_text(encoding="utf-8")


def test_a_training_that_falls_short_says_so_and_what_to_do(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    out = tmp_path / "A"
    ran = run("train", facts, "--model", model, "--rank", 1, "--steps", 5, "--out", out, "--json")
    assert ran.document["recalled"] is False
    assert ran.err.startswith("Not everything is recalled. More --steps or a higher --rank get further")
    assert f"`memlaw recall {facts} --model {model} --adapter {out} --decode` shows what is missing." in ran.err
    recalled = run("recall", facts, "--model", model, "--adapter", out, "--decode", "--json").document
    assert recalled["acc_em"] < 1
    assert recalled["certified"] < 4
    shown = run("train", facts, "--model", model, "--rank", 1, "--steps", 5, "--out", out).out
    assert "some target tokens are still stubborn" in shown


def test_the_paper_preset_is_the_published_recipe(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    out = tmp_path / "A"
    arguments = ("--placement", "mlp@2", "--rank", 4, "--steps", 8, "--preset", "paper", "--out", out)
    document = run("train", facts, "--model", model, *arguments, "--json").document
    assert (document["steps"], document["placement"], document["parameters"]) == (8, "mlp@2", 2 * 32 * 4)
    assert json.loads((out / "memlaw_adapter.json").read_text())["scale"] == 1.0
    assert not (out / "adapter_config.json").exists()


@pytest.mark.parametrize("name", ["demo", "check", "plan", "laws", "train", "recall", "probe", "fit", "report"])
def test_every_command_explains_itself_and_takes_json(run: Run, name: str) -> None:
    ran = run(name, "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"Usage: memlaw {name} ")
    assert "--json" in ran.out


# --- bad facts -------------------------------------------------------------------------------------------------------

GOOD = RECORDS[0]
BAD_FACTS: dict[str, tuple[str | bytes, str]] = {
    "nothing in it": ("", "facts.jsonl is empty: there is nothing to remember"),
    "not JSON": (jsonl(GOOD) + '{"prompt": "b" "hunter"}\n', "Line 2 of "),
    "not JSON either": (
        jsonl(GOOD) + '{"prompt": "b" "hunter"}\n',
        "is not JSON: Expecting ',' delimiter at column 16",
    ),
    "not an object": (jsonl(GOOD, ["hunter"]), "facts.jsonl (read as JSONL) is a list, not an object"),
    "a field missing": (
        jsonl(GOOD, {"prompt": "b", "answer": "hunter"}),
        "lacks the field 'completion'; it has 'prompt', 'answer'",
    ),
    "fields of another kind": (jsonl({"key": "a", "value": "hunter"}), "has the fields 'key', 'value', so it is open"),
    "not UTF-8": (jsonl(GOOD).encode() + b"\xff\n", "is not UTF-8 text: byte 1 of line 2"),
    "an empty prompt": (jsonl(GOOD, {"prompt": "", "completion": "hunter"}), "Line 2 of "),
    "an empty target": (jsonl({"prompt": "a", "completion": "  "}), "'completion' is empty, so there is nothing to"),
    "a number": (jsonl({"prompt": "a", "completion": 7}), "'completion' is a number, not a string"),
    "NaN": ('{"prompt": "a", "completion": NaN}\n', "it holds NaN, which JSON does not have"),
    "a lone surrogate": ('{"prompt": "a", "completion": "hunter\\ud800"}\n', "has half of a surrogate pair"),
    "two targets of one prompt": (
        jsonl(GOOD, {**GOOD, "completion": "hunter"}),
        "have the same prompt but different targets",
    ),
    "more than the context": (
        jsonl({"prompt": "a", "completion": "hunter" * 25}),
        "has 152 tokens (1 of its prompt, 151 of its target), but the context of the model is 128",
    ),
    "one id twice": (jsonl({**GOOD, "id": "x"}, {**RECORDS[1], "id": "x"}), "share the id 'x'"),
    "a bomb": (gzip.compress(b"hunter" * 1_000_000), "is no text but a decompression bomb"),
    "deep nesting": ('{"prompt": ' + "[" * 70 + "]" * 70 + "}\n", "more than 64 deep"),
}


@pytest.mark.parametrize("name", BAD_FACTS)
def test_facts_that_could_not_be_recalled_are_refused_before_any_training(
    run: Run, model: Path, tmp_path: Path, name: str
) -> None:
    content, sentence = BAD_FACTS[name]
    data = write(tmp_path / "facts.jsonl", content)
    out = tmp_path / "A"
    assert_refused(run("train", data, "--model", model, "--rank", 2, "--out", out), sentence)
    assert not out.exists()


def test_conflicts_are_refused_with_both_lines_or_settled_as_asked(run: Run, model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "facts.jsonl", jsonl(GOOD, RECORDS[1], {**GOOD, "completion": "hunter-new"}))
    assert_refused(run("recall", data, "--model", model), "Lines 1 and 3 of", "(--on-conflict) first or last")
    for choice, kept in (("first", ["1", "2"]), ("last", ["2", "3"])):
        ran = run("recall", data, "--model", model, "--on-conflict", choice, "--json")
        assert [item["id"] for item in ran.document["items"]] == kept
        assert f"Warning: Kept only the {choice} of several targets" in ran.err


def test_identical_repetitions_are_dropped_with_a_warning(run: Run, model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "facts.jsonl", jsonl(GOOD, GOOD, RECORDS[1]))
    ran = run("recall", data, "--model", model, "--json")
    assert ran.document["records"] == 2
    assert "Warning: Dropped 1 identical repetitions of an earlier prompt and target: lines 2." in ran.err
    assert "hunter" not in ran.err


def test_a_byte_order_mark_and_u2028_are_no_fault(run: Run, model: Path, tmp_path: Path) -> None:
    content = "\ufeff" + json.dumps({"prompt": "a\u2028b", "completion": "x"}, ensure_ascii=False) + "\n"
    assert run("recall", write(tmp_path / "facts.jsonl", content), "--model", model, "--json").document["records"] == 1


def test_columns_can_be_named(run: Run, model: Path, tmp_path: Path) -> None:
    content = io.StringIO()
    csv.writer(content).writerows([["who", "number"], ["Ada", "007"]])
    data = write(tmp_path / "facts.csv", content.getvalue())
    named = ("--prompt-field", "who", "--target-field", "number")
    assert run("recall", data, "--model", model, *named, "--json").document["tokens"] == 4
    assert run("recall", data, "--model", model, *named, "--no-eos", "--json").document["tokens"] == 3
    assert_refused(run("recall", data, "--model", model, "--prompt-field", "who"), "name two different fields")


def test_facts_whose_border_tokens_merge_are_warned_of(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "facts.jsonl", jsonl({"prompt": "x = ", "completion": "None", "id": "joined"}))
    ran = run("recall", data, "--json")
    assert ran.document["records"] == 1
    assert "Warning: 1 of 1 facts ('joined') are cut into other tokens where prompt and target are one text." in ran.err


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("none.jsonl", "There is no file 'none.jsonl'"),
        ("task:opera:tokens=3", "There is no task 'opera'; known: phonebook, random"),
        ("task:phonebook", "needs tokens: write task:phonebook:tokens=...,seed=..."),
        ("task:phonebook:tokens=0", "A task of 0 target tokens was asked for"),
        ("task:random:tokens=many", "is 'many', not a whole number"),
    ],
)
def test_facts_that_are_not_there_are_named(run: Run, model: Path, data: str, sentence: str) -> None:
    assert_refused(run("recall", data, "--model", model), sentence)


# --- bad settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--rank 0", "Rank 0 is not a rank: an adapter needs at least 1"),
        ("--rank -3", "Rank -3 is not a rank"),
        ("--rank 33", "Rank 33 is above 32, the smaller dimension of model.layers.2.mlp.down_proj (48 -> 32)"),
        ("--rank 2 --placement dwon_proj@2", "no module 'dwon_proj' to adapt. Did you mean down_proj"),
        ("--rank 2 --placement down_proj@9", "Layer 9 does not exist: the model has 4, 0..3"),
        ("--rank 2 --placement mlp", "needs a layer, such as mlp@2"),
        ("--rank 2 --steps 0", "Setting steps is 0: choose a whole number from 1 up"),
        ("--rank 2 --steps -5", "Setting steps is -5"),
        ("--rank 2 --lr 0", "Setting learning_rate is 0.0: choose a number above 0"),
        ("--rank 2 --learning-rate -0.1", "Setting learning_rate is -0.1"),
        ("--rank 2 --lr nan", "Setting learning_rate is nan"),
        ("--rank 2 --lr inf", "Setting learning_rate is inf"),
        ("--rank 2 --batch-size -1", "Setting batch_size is -1: choose a whole number of records"),
        ("--rank 2 --margin -0.1", "Setting margin is -0.1: choose nats from 0 to below ln 2"),
        ("--rank 2 --margin 0.7", "Setting margin is 0.7"),
        ("--rank 2 --seed -1", "Setting seed is -1: choose a whole number from 0 to 4294967295"),
        ("--rank 2 --method dft", "Invalid value for '--method': Value error, 'dft' is not one of 'sft', 'ot'"),
        ("--rank 2 --until never", "'never' is not one of 'budget', 'recalled'"),
        ("--rank 2 --on-conflict merge", "'merge' is not one of 'error', 'first', 'last'"),
        ("--rank 2 --preset quick", "There is no preset 'quick'; known: default, paper"),
        ("--rank 2 --dtype int8", "Unknown dtype 'int8'; known: auto, float32"),
        ("--rank 2 --device tpu", "The device 'tpu' cannot be used here"),
        ("--rank two", "Invalid value for '--rank'"),
        ("--rank 2 --lora-alpha 32", "No such option: --lora-alpha"),
        ("", "Missing option '--rank'"),
    ],
)
def test_impossible_settings_of_training_are_refused(
    run: Run, model: Path, facts: Path, tmp_path: Path, options: str, sentence: str
) -> None:
    out = tmp_path / "A"
    assert_refused(run("train", facts, "--model", model, "--out", out, *options.split()), sentence)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--lengths 12", "A probe needs ranks, such as ranks: [16, 32]"),
        ("--ranks 1", "A probe needs lengths"),
        ("--ranks 1,b --lengths 12", "--ranks '1,b' is not a list of whole numbers such as 1,2,4"),
        ("--ranks 0 --lengths 12", "Setting ranks entry 0 is 0"),
        ("--ranks 33 --lengths 12", "Rank 33 is above 32"),
        ("--ranks 1 --lengths 49", "A length of 49 target tokens was asked for, but the data have 1 to 48"),
        ("--ranks 1 --lengths 11", "the first fact ('1') alone has 12, and facts are never cut"),
        ("--ranks 1 --lengths 12 --methods sft,dft", "Setting methods entry 1 is 'dft'"),
        ("--ranks 1 --lengths 12 --seeds -1", "Setting seed is -1"),
        ("--ranks 1 --lengths 12 --steps 0", "Setting steps is 0"),
        ("--ranks 1 --lengths 12 --lr nan", "Setting learning_rate is nan"),
        ("--ranks 1 --lengths 12 --batch-size -2", "Setting batch_size is -2"),
        ("--ranks 1 --lengths 12 --placement nope", "no module 'nope' to adapt"),
    ],
)
def test_impossible_grids_are_refused(
    run: Run, model: Path, facts: Path, tmp_path: Path, options: str, sentence: str
) -> None:
    out = tmp_path / "P"
    assert_refused(run("probe", facts, "--model", model, "--out", out, *options.split()), sentence)
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ranks: [1]\nlengths: [12]\nlora_alpha: 32\n", "Unknown setting lora_alpha: it would change nothing. Known:"),
        ("ranks: [1]\nlengths: [12]\nmargin: 5\n", "Setting margin is 5.0: choose nats from 0"),
        ("ranks: [1]\nlengths: [12]\nsteps: -1\n", "Setting steps is -1: choose a whole number from 1 up"),
        (jsonl(*RECORDS), "is not YAML"),
        ("", "holds no settings"),
    ],
)
def test_a_config_that_is_none_is_refused(
    run: Run, model: Path, facts: Path, tmp_path: Path, text: str, sentence: str
) -> None:
    config = write(tmp_path / "grid.yaml", text)
    ran = run("probe", facts, "--model", model, "--out", tmp_path / "P", "--config", config)
    assert_refused(ran, f"{config}", sentence)


@pytest.mark.parametrize("target", ["0", "-0.5", "1.01", "nan", "loss=0", "most"])
def test_a_target_that_is_none_is_refused(run: Run, model: Path, facts: Path, target: str) -> None:
    ran = run("plan", facts, "--model", model, "--target", target)
    assert_refused(ran, "Choose all, a share such as 0.99 or 99%, or a mean loss in nats such as loss=0.1.")


# --- bad models and adapters -----------------------------------------------------------------------------------------


def _without_tokenizer(directory: Path) -> None:
    for file in directory.glob("*tokenizer*"):
        file.unlink()


def _cut(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (_without_tokenizer, "has no tokenizer that can be loaded"),
        (_cut, "cannot be loaded as a causal language model from safetensors"),
        (lambda directory: (directory / "model.safetensors").unlink(), "memlaw never unpickles weights"),
        (lambda directory: (directory / "config.json").unlink(), "has no config.json"),
        (lambda directory: write(directory / "config.json", "{"), "is not a valid JSON file"),
        (lambda directory: write(directory / "tokenizer.json", "{"), "has no tokenizer that can be loaded"),
        (shutil.rmtree, "There is no model directory"),
    ],
)
def test_a_damaged_model_directory_is_explained(
    run: Run, model: Path, facts: Path, tmp_path: Path, harm: Callable[[Path], object], sentence: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    harm(copy)
    assert_refused(run("recall", facts, "--model", copy), sentence)


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(
    run: Run, facts: Path, tmp_path: Path
) -> None:
    small = saved_model(tmp_path / "small", vocab_size=50)
    assert_refused(run("recall", facts, "--model", small), "has ids up to 95, but the embedding has 50 rows")


def test_a_model_that_is_nowhere_is_named(run: Run, facts: Path) -> None:
    assert_refused(run("recall", facts, "--model", "nobody/nothing"), "nobody/nothing has no tokenizer")


def test_an_adapter_of_another_base_is_refused(run: Run, facts: Path, adapter: Path, tmp_path: Path) -> None:
    other = saved_model(tmp_path / "other", seed=1)
    ran = run("recall", facts, "--model", other, "--adapter", adapter)
    assert_refused(ran, "was trained on another base", "On this one it would give other text without any error")


def test_an_adapter_that_is_damaged_or_none_is_refused(
    run: Run, model: Path, facts: Path, adapter: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "A"
    shutil.copytree(adapter, copy)
    weights = copy / files.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-8])
    assert_refused(run("recall", facts, "--model", model, "--adapter", copy), "is not the file that was saved")
    weights.unlink()
    assert_refused(run("recall", facts, "--model", model, "--adapter", copy), "holds no adapter_model.safetensors")
    torch.save({}, copy / "adapter_model.bin")
    assert_refused(run("recall", facts, "--model", model, "--adapter", copy), "a pickle that could run code")
    assert_refused(run("recall", facts, "--model", model, "--adapter", tmp_path / "none"), "no adapter directory")


# --- bad files of results --------------------------------------------------------------------------------------------


def test_a_fit_of_several_methods_names_the_option_that_chooses(run: Run, probed: Path) -> None:
    assert_refused(run("fit", probed), "holds cells of the methods ot and sft", "Choose with --method")
    assert run("fit", probed, "--method", "ot", "--json").document["n"] == 9


def test_points_that_are_none_are_refused(run: Run, facts: Path, tmp_path: Path) -> None:
    assert_refused(run("fit", tmp_path / "none.csv"), "none.csv cannot be read: No such file or directory")
    assert_refused(run("fit", facts), "has no column rank nor length nor delta_loss", "not to facts")
    assert_refused(run("fit", tmp_path), "is not a probe: it has no probe.json")
    assert_refused(run("fit", POINTS, "--holdout", "size=3"), "Cannot hold out 'size=3'. Write length=MAX")
    assert_refused(run("fit", POINTS, "--form", "cubic"), "'cubic' is not one of 'paper', 'power'")
    assert_refused(run("fit", POINTS, "--method", "ot"), "the cells of a table have no --method")
    table = write(tmp_path / "points.csv", "rank,length,delta_loss\n1,10,0.5\n2,10,-\n")
    assert_refused(run("fit", table), "points.csv, line 3: delta_loss is '-', not a number")


def test_laws_that_are_none_are_refused(run: Run, model: Path, facts: Path, probed: Path, tmp_path: Path) -> None:
    plan = ("plan", facts, "--model", model)
    assert_refused(run(*plan, "--law", tmp_path / "none"), "none cannot be read: No such file or directory")
    assert_refused(run(*plan, "--law", facts), "is not JSON (line 2). Write it with `memlaw fit`")
    assert_refused(run(*plan, "--law", write(tmp_path / "law", b"\xff")), "is not UTF-8 text (byte 0)")
    assert_refused(run(*plan, "--law", write(tmp_path / "law", "{}")), "is JSON, but not a law of memlaw")
    assert_refused(run(*plan, "--law", probed), "--method ot --save law.json`, whose file `memlaw plan` takes.")
    assert_refused(run(*plan, "--cells", tmp_path), "is not a probe: it has no probe.json")


def test_a_directory_without_results_has_no_report(run: Run, adapter: Path, probed: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    assert_refused(run("report", tmp_path / "none", "--out", page), "holds no probe (probe.json) and no recall.json")
    assert_refused(run("report", adapter, "--out", page), "so there is nothing to report")
    assert_refused(run("report", probed, "--out", tmp_path), "cannot be written")
    write(tmp_path / "recall.json", "{")
    assert_refused(run("report", tmp_path, "--out", page), "recall.json is not JSON", "damaged or cut short")
    write(tmp_path / "recall.json", "{}")
    assert_refused(run("report", tmp_path, "--out", page), "is not a recall report with per-token numbers")
    assert not page.exists()


def test_a_probe_too_small_for_a_law_still_has_a_report(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    grid = ("--ranks", "1,2", "--lengths", "12", "--steps", 3)
    assert run("probe", facts, "--model", model, *grid, "--out", tmp_path / "P").code == 0
    assert_refused(run("fit", tmp_path / "P"), "All cells have one length")
    assert run("report", tmp_path / "P", "--out", tmp_path / "r.html").code == 0
    assert "All cells have one length" in (tmp_path / "r.html").read_text(encoding="utf-8")


# --- places that are taken or full -----------------------------------------------------------------------------------


def test_the_directory_of_something_else_is_left_alone(
    run: Run, model: Path, facts: Path, probed: Path, adapter: Path, tmp_path: Path
) -> None:
    def snapshot(directory: Path) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    before = snapshot(probed), snapshot(adapter)
    train = ("train", facts, "--model", model, "--rank", 2, "--steps", 2, "--out")
    assert_refused(run(*train, probed), f"The directory {probed} belongs to something else")
    assert_refused(run(*train, facts), "is a file; an adapter is a directory. Choose another --out")
    assert_refused(run(*train, facts / "A"), f"{facts}: File exists")
    probe = ("probe", facts, "--model", model, "--ranks", 1, "--lengths", 12)
    assert_refused(run(*probe, "--out", adapter), "is not the directory of a probe", "Nothing was written there")
    assert_refused(run(*probe, "--steps", 31, "--out", probed), "belongs to another run", "steps (there 30, here 31)")
    assert_refused(run(*probe, "--out", facts), "Not a directory")
    assert (snapshot(probed), snapshot(adapter)) == before


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_a_sentence_and_keeps_what_was_there(
    run: Run, model: Path, facts: Path, adapter: Path, probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, copy, page = tmp_path / "A", tmp_path / "P", tmp_path / "r.html"
    shutil.copytree(adapter, ours)
    shutil.copytree(probed, copy)
    weights = (ours / files.WEIGHTS).read_bytes()
    lost = sorted((copy / "cells").iterdir())[:3]
    for path in lost:
        path.unlink()
    kept = {path.name for path in (copy / "cells").iterdir()}
    again = ("probe", facts, "--model", model, *GRID, "--out", copy)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        assert_refused(run("train", facts, "--model", model, "--rank", 2, "--steps", 2, "--out", ours), "No space left")
        assert_refused(run(*again), "Cannot write", "No space left on device", "it trains only what is missing")
        assert {path.name for path in (copy / "cells").iterdir()} == kept
        patch.setattr(Path, "write_text", _full)
        assert_refused(run("fit", POINTS, "--out", tmp_path / "law.json"), "law.json cannot be written: No space left")
    assert (ours / files.WEIGHTS).read_bytes() == weights
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "P"]
    assert run(*again, "--json").document["finished"] == 18
    assert all(path.exists() for path in lost)
    assert not page.exists()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A limit of the system that writing meets as it would meet the end of a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_real_limit_on_file_size_is_met_in_words(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    with files_of_at_most(600):
        ran = run("train", facts, "--model", model, "--rank", 8, "--steps", 2, "--out", tmp_path / "A")
    assert_refused(ran, "The adapter cannot be written to", "File too large", "Make room")
    assert list(tmp_path.iterdir()) == []


# --- training that fails ---------------------------------------------------------------------------------------------


def test_a_diverging_training_saves_nothing(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    ran = run("train", facts, "--model", model, "--rank", 2, "--lr", 1e38, "--out", tmp_path / "A", "--json")
    assert_refused(ran, "Training diverged: the loss was no longer a finite number at step", "Nothing was saved")
    assert not (tmp_path / "A").exists()


def test_diverging_cells_are_recorded_and_told(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    grid = ("--ranks", "1,2", "--lengths", "12,24", "--steps", 20, "--lr", 1e38)
    ran = run("probe", facts, "--model", model, *grid, "--out", tmp_path / "P", "--json")
    assert {"cells": 4, "finished": 0, "failed": 4, "diverged": 4}.items() <= ran.document.items()
    assert "rank 1, length 12, sft, seed 42: diverged. The loss was no longer a finite number at step" in ran.err
    results = Journal(tmp_path / "P").results()
    assert {(result.status, result.loss_final) for result in results} == {("diverged", None)}
    assert all(f"at step {result.steps}" in result.message for result in results)
    assert_refused(run("fit", tmp_path / "P"), "There are no cells to fit")
    ran = run("plan", facts, "--model", model, "--cells", tmp_path / "P")
    assert_refused(ran, "has no finished cell to calibrate a law with")
    assert run("report", tmp_path / "P", "--out", tmp_path / "r.html").code == 0


def test_a_base_with_weights_that_are_not_numbers_is_told(run: Run, facts: Path, tmp_path: Path) -> None:
    broken = tiny.model()
    with torch.no_grad():
        broken.model.layers[3].mlp.down_proj.weight[0, 0] = torch.nan
    broken.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    base = ("--model", tmp_path / "model")
    assert_refused(run("recall", facts, *base), "position 0: the loss is nan")
    assert_refused(run("plan", facts, *base, "--calibrate"), "the loss is nan")
    assert_refused(run("train", facts, *base, "--rank", 2, "--out", tmp_path / "A"), "its weights hold NaN")
    assert not (tmp_path / "A").exists()


# --- real processes --------------------------------------------------------------------------------------------------


def test_the_version_and_the_help_come_without_a_command() -> None:
    assert process("--version") == Ran(0, f"memlaw {__version__}\n", "")
    shown = process("--help")
    assert shown.code == 0
    commands = [line.split()[0] for line in shown.out.partition("Commands:\n")[2].splitlines()]
    assert commands == [
        "demo", "check", "plan", "laws", "train", "recall", "probe", "fit", "report", "journal",
    ]  # fmt: skip
    bare = process()
    assert (bare.code, bare.out) == (2, "")
    assert "Commands:" in bare.err
    assert_refused(process("remember"), "No such command 'remember'")


def test_stdout_is_the_document_and_stderr_is_silent_in_a_real_process(model: Path, facts: Path, adapter: Path) -> None:
    ran = process("recall", facts, "--model", model, "--adapter", adapter, "--decode", "--json")
    assert ran.document["records"] == 4
    assert ran.err == ""
    ran = process("fit", POINTS, "--json")
    assert ran.document["n"] == 70
    assert ran.err == ""
    assert_refused(process("fit", facts), "has no column rank")


def test_ctrl_c_keeps_every_finished_cell_and_the_same_command_goes_on(
    run: Run, model: Path, facts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "P"
    grid = ["--ranks", "1,2,3", "--lengths", "12,24,36,48", "--steps", "200", "--out", str(out)]
    command = ["probe", str(facts), "--model", str(model), *grid]
    started = subprocess.Popen(
        [sys.executable, "-m", "memlaw", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(out.glob("cells/[!.]*.json")):
        assert started.poll() is None, started.communicate()
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    printed, told = started.communicate()
    assert (started.returncode, printed) == (130, "")
    assert told == "Interrupted. Every finished cell is kept: the same command goes on from there.\n"
    kept = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("[!.]*.json")}
    assert 0 < len(kept) < 12
    assert pyarrow.parquet.read_table(out / "results.parquet").num_rows == len(kept)
    assert run(*command, "--json").document["finished"] == 12
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_ctrl_c_in_a_training_leaves_nothing(
    run: Run, model: Path, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress, "_state", interrupt)
    ran = run("train", facts, "--model", model, "--rank", 2, "--steps", 50, "--out", tmp_path / "A")
    assert ran == Ran(130, "", "Interrupted. Nothing was written.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [("fit", POINTS), ("recall", "task:phonebook:tokens=300", "--decode")], ids=["fit", "recall"]
)
def test_a_reader_who_has_seen_enough_is_no_error(arguments: tuple[object, ...]) -> None:
    command = [sys.executable, "-m", "memlaw", *map(str, arguments), "--json"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout is not None
    started.stdout.close()
    _, told = started.communicate()
    assert told == ""


# --- what a person sees ----------------------------------------------------------------------------------------------


def test_a_terminal_shows_bars_and_a_log_does_not(
    run: Run, model: Path, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=120, color_system=None)
    )
    run("train", facts, "--model", model, "--rank", 2, "--steps", 60, "--out", tmp_path / "A")
    assert "rank 2" in screen.getvalue()
    assert "/60" in screen.getvalue()
    assert "ordered" in screen.getvalue()
    assert "stubborn" in screen.getvalue()
    run(
        "probe", facts, "--model", model, "--ranks", "1,2", "--lengths", "12,24", "--steps", 60, "--out", tmp_path / "P"
    )
    assert "cells" in screen.getvalue()
    assert "pack 2/2" in screen.getvalue()
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=screen, width=120))
    screen.truncate(0)
    run("train", facts, "--model", model, "--rank", 2, "--steps", 60, "--out", tmp_path / "A")
    assert screen.getvalue().strip("\0") == ""


# --- sensitive text --------------------------------------------------------------------------------------------------


def test_no_command_repeats_a_target_anywhere_but_in_the_adapter(
    run: Run, model: Path, facts: Path, adapter: Path, probed: Path, tmp_path: Path
) -> None:
    room = tmp_path / "room"
    law, page = room / "law.json", room / "report.html"
    shutil.copytree(probed, room / "probe")
    base = ("--model", model)
    commands = [
        ("train", facts, *base, "--rank", 16, "--out", room / "A"),
        ("train", facts, *base, "--rank", 1, "--steps", 2, "--placement", "mlp@1", "--out", room / "B"),
        ("recall", facts, *base, "--adapter", room / "A", "--decode", "--out", room / "recall.json"),
        ("recall", facts, *base, "--decode"),
        ("check", facts, *base, "--adapter", room / "A", "--rank", 1),
        ("probe", facts, *base, "--ranks", 1, "--lengths", "12,20", "--lr", 1e38, "--steps", 9, "--out", room / "d"),
        ("fit", room / "probe", "--method", "sft", "--out", law),
        ("plan", facts, *base, "--law", law),
        ("report", room, "--out", page),
    ]
    said = ""
    for command in commands:
        for form in ((), ("--json",)):
            ran = run(*command, *form)
            assert ran.code == 0, ran.err
            said += ran.out + ran.err
    assert len(said) > 1000
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"law.json", "recall.json", "report.html", "probe.json", "README.md"} <= {path.name for path in written}
    for secret in (*SECRETS, "hunter"):
        assert secret not in said
        assert not [path for path in written if secret in path.name]
        assert not [path.name for path in written if secret.encode() in path.read_bytes()]


# --- check -----------------------------------------------------------------------------------------------------------


def test_check_prints_findings_as_json_and_as_lines_and_says_nothing_else(
    run: Run, model: Path, facts: Path, adapter: Path, tmp_path: Path
) -> None:
    clean = run("check", facts, "--model", model, "--json")
    assert clean.err == ""
    assert clean.document == {"schema": "memlaw.check/1", "records": 4, "tokens": 4 * LENGTH, "findings": []}
    judged = run("check", facts, "--model", model, "--adapter", adapter, "--json").document
    assert {finding["severity"] for finding in judged["findings"]} <= {"info"}

    doubtful = write(tmp_path / "doubtful.jsonl", jsonl(*RECORDS, {**RECORDS[0], "prompt": "KEY  1:"}))
    document = run("check", doubtful, "--model", model, "--json").document
    (finding,) = document["findings"]
    assert {"severity": "warning", "record": "5", "code": "near-duplicate"}.items() <= finding.items()
    assert finding.keys() >= {"severity", "record", "code", "message", "fix"}
    shown = run("check", doubtful, "--model", model)
    assert (shown.code, shown.err) == (0, "")
    assert "warning: near-duplicate: 5" in shown.out
    assert " ".join(f"Fix: {finding['fix']}".split()) in " ".join(shown.out.split())
    assert "hunter" not in shown.out


def test_check_finds_what_reading_only_warns_of_and_asks_for_the_same_options(
    run: Run, model: Path, tmp_path: Path
) -> None:
    twice = write(tmp_path / "twice.jsonl", jsonl(*[{"q": "key:", "a": secret} for secret in SECRETS[:2]]))
    named = ("--prompt-field", "q", "--target-field", "a", "--no-eos")
    ran = run("check", twice, "--model", model, *named, "--on-conflict", "first", "--json")
    assert ran.err == ""
    assert [finding["code"] for finding in ran.document["findings"]] == ["reading", "no-eos"]
    assert_refused(run("check", twice, "--model", model, *named), "have the same prompt but different targets")


def test_check_judges_a_rank_by_a_law_at_hand(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    law = tmp_path / "law.json"
    assert run("fit", POINTS, "--out", law).code == 0
    rank = ("--model", model, "--rank", 1, "--placement", "k_proj@3")
    (finding,) = run("check", facts, *rank, "--json").document["findings"]
    assert finding["code"] == "no-rank-fits"
    assert "The law is borrowed" in finding["message"]
    assert run("check", facts, *rank, "--law", law, "--json").document["findings"] == []
    assert_refused(run("check", facts, "--model", model, "--law", law), "A law judges a rank, and none was given")
    assert_refused(run("check", facts, "--model", model, "--rank", 1, "--law", tmp_path / "none"), "cannot be read")
    assert_refused(run("check", facts, "--model", model, "--adapter", tmp_path), "memlaw loads safetensors only")


# --- acceptance ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_published_phone_book_is_recalled_at_a_rank_and_honestly_not_at_one_far_too_small(
    run: Run, tmp_path: Path
) -> None:
    """PB1000 on the bundled base: 100 records, 1,100 target tokens with the end of sequence.

    Rank 32 in four layers needs about 1,500 of its 2,000 steps. Rank 64 in the default layer alone does it too, but at
    step 1,969: too close to the end for a test on other machines (docs/log.md says why runs end late).
    """
    documented = ("--placement", "down_proj@2-5", "--rank", 32, "--lr", 5e-3)
    base = ("--model", "memlaw/base")
    until = ("--method", "ot", "--until", "recalled")
    trained = run("train", OFFICIAL, *base, *documented, *until, "--out", tmp_path / "A", "--json").document
    assert trained["recalled"] is True
    recalled = run("recall", OFFICIAL, *base, "--adapter", tmp_path / "A", "--decode", "--json").document
    assert (recalled["acc_em"], recalled["certified"]) == (1.0, 100)

    small = run("train", OFFICIAL, *base, "--rank", 1, "--steps", 300, *until, "--out", tmp_path / "B", "--json")
    assert small.document["recalled"] is False
    recalled = run("recall", OFFICIAL, *base, "--adapter", tmp_path / "B", "--decode", "--json").document
    assert recalled["acc_em"] < 0.1
    assert recalled["certified"] == 0


# --- how a training is run -------------------------------------------------------------------------------------------


def test_an_option_that_gains_nothing_here_says_so_and_training_goes_on(
    model: Path, facts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "A"
    ran = process("train", facts, "--model", model, "--rank", 1, "--steps", 2, "--evict-prefix", "--out", out)
    assert ran.code == 0
    assert "Warning: The model is in main memory already: there is no accelerator to evict its layers from." in ran.err
    assert (out / "adapter_model.safetensors").exists()


def test_negative_minutes_between_checkpoints_are_refused(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    ran = run(
        "train", facts, "--model", model, "--rank", 1, "--checkpoint-minutes", -1, "--out", tmp_path / "A"
    )  # fmt: skip
    assert ran.code == 2
    assert "checkpoint_minutes is -1.0: choose minutes from 0 up" in ran.err


def test_a_tied_head_and_a_placement_from_layer_0_are_remarked(run: Run, facts: Path, tmp_path: Path) -> None:
    tied = saved_model(tmp_path / "tied", tie_word_embeddings=True)
    ran = run(
        "train", facts, "--model", tied, "--rank", 1, "--steps", 1, "--placement", "all-linear", "--out", tmp_path / "A"
    )  # fmt: skip
    assert ran.code == 0
    assert "tied" in ran.err
    assert "every step runs the whole model" in ran.err
