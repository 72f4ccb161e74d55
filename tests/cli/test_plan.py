from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from helpers.commands import OFFICIAL, RECORDS, Run, assert_refused, jsonl, write


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


def test_plan_takes_a_law_file_a_probe_or_a_few_cells_to_calibrate_with(
    run: Run, model: Path, facts: Path, probed: Path, single: Path, tmp_path: Path
) -> None:
    law = tmp_path / "laws" / "law.json"
    fitted = run("fit", probed, "--method", "sft", "--form", "bounded", "--save", law, "--json").document
    assert fitted["n"] == 9
    of_file = run("plan", facts, "--model", model, "--law", law, "--json").document
    assert (of_file["law"]["source"], of_file["law"]["borrowed"]) == (str(probed), False)
    assert of_file["law"]["near"] == [
        "Only the model's name and shape were compared: add --calibrate to compare the weights."
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
    assert found["loss=0.5"]["loss_needed"] == {"nats": 0.5, "why": "as requested."}
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


@pytest.mark.parametrize("target", ["0", "-0.5", "1.01", "nan", "loss=0", "most"])
def test_a_target_that_is_none_is_refused(run: Run, model: Path, facts: Path, target: str) -> None:
    ran = run("plan", facts, "--model", model, "--target", target)
    assert_refused(ran, "Choose all, a share such as 0.99 or 99%, or a mean loss in nats such as loss=0.1.")


def test_laws_that_are_none_are_refused(run: Run, model: Path, facts: Path, probed: Path, tmp_path: Path) -> None:
    plan = ("plan", facts, "--model", model)
    assert_refused(run(*plan, "--law", tmp_path / "none"), "none cannot be read: No such file or directory")
    assert_refused(run(*plan, "--law", facts), "is not JSON (line 2). Write it with `memlaw fit --save`")
    assert_refused(run(*plan, "--law", write(tmp_path / "law", b"\xff")), "is not UTF-8 text (byte 0)")
    assert_refused(run(*plan, "--law", write(tmp_path / "law", "{}")), "is JSON, but not a law of memlaw")
    assert_refused(run(*plan, "--law", probed), "--method ot --save law.json`, whose file `memlaw plan` takes.")
    assert_refused(run(*plan, "--cells", tmp_path), "is not a probe: it has no probe.json")
