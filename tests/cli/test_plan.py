from __future__ import annotations

import dataclasses
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from helpers import tiny
from helpers.commands import OFFICIAL, RECORDS, Run, assert_refused, jsonl, write
from helpers.words import words
from memlaw.adapter.on_model import placement_on
from memlaw.cli.output import WIDTH
from memlaw.cli.plan import plan_lines
from memlaw.law import fit_law, published
from memlaw.planning import (
    Capacity,
    Cost,
    KnownLaw,
    MeasuredSet,
    PlanRequest,
    RankChance,
    RankRange,
    Target,
    TrainingWork,
    plan,
)


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


def test_a_plan_uses_a_law_file_a_probe_or_cells_to_calibrate_with(
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


def test_a_saved_law_is_listed_and_used_by_plans(
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


def test_a_plan_for_a_task_loads_the_model_that_draws_it(run: Run, model: Path, single: Path) -> None:
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


def test_a_plan_reports_the_capacity_of_a_given_rank(run: Run, model: Path, facts: Path, single: Path) -> None:
    plan = ("plan", facts, "--model", model, "--law", single)
    capacity = run(*plan, "--rank", 7, "--json").document["capacity"]
    assert capacity["rank"] == 7
    assert f"rank 7 holds about {capacity['tokens']:,.0f} target tokens" in " ".join(
        run(*plan, "--rank", 7).out.split()
    )
    assert_refused(run(*plan, "--rank", 33), "Rank 33 is above 32")


def test_the_printed_training_command_trains_the_planned_adapter(
    run: Run, model: Path, tmp_path: Path, single: Path
) -> None:
    odd = [{"who is": record["prompt"], "number": record["completion"]} for record in RECORDS]
    data = write(tmp_path / "my facts.jsonl", jsonl(*odd, odd[0]))
    named = ("--prompt-field", "who is", "--target-field", "number", "--no-eos", "--on-conflict", "first")
    named = (*named, "--turns", "last")
    answer = run("plan", data, "--model", model, *named, "--law", single, "--target", "loss=8", "--json").document
    command = shlex.split(answer["train"])
    assert command[:2] == ["memlaw", "train"]
    assert command[command.index("--turns") + 1] == "last"
    trained = run(*command[1:-1], tmp_path / "A", "--steps", 2, "--json").document
    assert (trained["rank"], trained["placement"]) == (answer["rank"]["value"], "down_proj@2")
    assert trained["loss_init"] > 0


def test_cells_of_another_placement_cannot_calibrate(run: Run, model: Path, facts: Path, single: Path) -> None:
    ran = run("plan", facts, "--model", model, "--cells", single, "--placement", "q_proj@1")
    assert_refused(ran, "were trained at down_proj@2, but the plan is for q_proj@1")


@pytest.mark.parametrize("target", ["0", "-0.5", "1.01", "nan", "loss=0", "most"])
def test_impossible_targets_are_refused(run: Run, model: Path, facts: Path, target: str) -> None:
    ran = run("plan", facts, "--model", model, "--target", target)
    assert_refused(ran, "Choose all, a share such as 0.99 or 99%, or a mean loss in nats such as loss=0.1.")


def test_files_that_hold_no_law_are_refused(run: Run, model: Path, facts: Path, probed: Path, tmp_path: Path) -> None:
    plan = ("plan", facts, "--model", model)
    assert_refused(run(*plan, "--law", tmp_path / "none"), "none cannot be read: No such file or directory")
    assert_refused(run(*plan, "--law", facts), "is not JSON (line 2). Write it with `memlaw fit --save`")
    assert_refused(run(*plan, "--law", write(tmp_path / "law", b"\xff")), "is not UTF-8 text (byte 0)")
    assert_refused(run(*plan, "--law", write(tmp_path / "law", "{}")), "is JSON, but not a law of memlaw")
    assert_refused(run(*plan, "--law", probed), "--method ot --save law.json`, then pass the file to `memlaw plan`.")
    assert_refused(run(*plan, "--cells", tmp_path), "is not a probe directory: it has no probe.json")


def planned(placement: str, tokens: int = 400, **changes: Any) -> list[str]:
    base = tiny.base()
    law = fit_law(published.points(), "bounded", source="some cells")
    known = KnownLaw(law, tuple(changes.pop("cells", ())), changes.pop("near", ()))
    request, work = PlanRequest(changes.pop("target", Target())), changes.pop("work", None)
    facts = MeasuredSet(records=40, tokens=tokens, loss_init=11.0)
    answer = plan(known, facts, placement_on(placement, base.model), request, work=work)
    lines = list(plan_lines(dataclasses.replace(answer, **changes)))
    assert max(map(len, lines)) <= WIDTH
    return lines


def test_a_plan_prints_a_rank_with_its_interval_and_a_config_to_paste() -> None:
    lines = planned("down_proj@2")
    told = words(lines)
    assert told.startswith("40 records, 400 target tokens: about 6,348 bits, at 11.00 nats per token.")
    assert "is predicted to meet the target, all facts; 95% sure at" in told
    assert "brings the mean loss below ln 2" in told
    assert "largest rank 32, the most these modules can use" in told
    assert "rule of thumb 5, one adapter parameter per target token (for comparison)" in told
    assert "nats, to recall all facts verbatim: from memlaw's experiments" in told
    assert "law bounded form on 70 cells (R^2 0.9994): some cells" in told
    pasted = "\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith("LoraConfig(")) :])
    from peft import LoraConfig

    config = eval(pasted, {"LoraConfig": LoraConfig})
    assert f"rank {config.r} (95%" in told
    assert config.target_modules == {"down_proj"}


def test_a_plan_lists_the_ranks_at_which_the_chances_rise() -> None:
    chances = ((1, 0.0), (2, 0.004), (4, 0.12), (6, 0.15), (8, 0.55), (10, 0.95), (12, 0.97), (16, 0.992), (24, 1.0))
    some = tuple(RankChance(*chance) for chance in chances)
    assert "chances 4: 12%, 8: 55%, 10: 95%, 16: 99% halfway" in words(planned("down_proj@2", probabilities=some))
    assert "chances 2: 0% halfway" in words(planned("down_proj@2", probabilities=some[:2]))
    sure = (RankChance(1, 0.999), RankChance(2, 1.0))
    assert "chances 1: 100% halfway" in words(planned("down_proj@2", probabilities=sure))
    assert "chances" not in words(planned("down_proj@2", probabilities=()))


def test_the_chances_fit_on_one_line() -> None:
    for factor in range(1, 40):
        rising = tuple(
            RankChance(rank, 1 - math.exp(-rank / factor)) for rank in (1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32, 48, 64)
        )
        lines = planned("down_proj@2", probabilities=rising)
        (row,) = (number for number, line in enumerate(lines) if line.startswith("  chances"))
        assert lines[row + 1].startswith("  halfway")


def test_a_plan_prints_the_capacity_of_its_rank() -> None:
    told = words(planned("down_proj@2", capacity=Capacity(3, 812.4, 401.0, 1600.9, 1203.0)))
    assert (
        "rank 3 holds about 812 target tokens of this kind (95%: 401 to 1,601); its mean loss stays below ln 2 up to "
        "1,203" in told
    )
    assert "its mean loss stays" not in words(planned("down_proj@2", capacity=Capacity(3, 8.0, 4.0, 16.0, None)))


def test_without_a_rank_a_plan_says_why_and_suggests_several_adapters() -> None:
    told = words(planned("down_proj@2", tokens=100_000))
    assert "rank No rank up to 32, the most these modules can use, is predicted" in told
    assert re.search(r"several \d+ adapters of rank \d+ would do, each storing [\d,]+ target tokens", told)
    assert "LoraConfig" not in told
    assert "Note: Outside the measured range" in told


def test_a_plan_names_its_target_and_how_its_law_differs() -> None:
    told = words(planned("down_proj@2", near=("Its model is another.", "Its cells stored codes.")))
    assert "differences Its model is another. Its cells stored codes." in told
    assert "differences" not in words(planned("down_proj@2"))
    assert "the target, 0.9 of the facts" in words(planned("down_proj@2", target=Target(0.9)))
    asked = words(planned("down_proj@2", target=Target(None, 0.5)))
    assert "the target, a mean loss of 0.5 nats" in asked
    assert "loss needed 0.5 nats, as requested." in asked


def test_a_plan_estimates_the_cost_of_training() -> None:
    work = TrainingWork(2_000_000, tokens_per_step=500, steps=100)
    lines = planned("down_proj@2", work=work)
    assert "training at most 100 steps, 6.0e+11 FLOP" in words(lines)
    timed = dataclasses.replace(work, seconds_per_step=12.5)
    assert "training at most 100 steps, 6.0e+11 FLOP, 1,250 s on this machine" in words(
        planned("down_proj@2", work=timed)
    )
    assert "  training" not in "\n".join(planned("down_proj@2"))


@pytest.mark.parametrize(
    ("parameters", "told"), [(640, "2.6 kB in float32; 7.7 kB"), (10**6, "4.00 MB in float32; 12.00 MB")]
)
def test_sizes_are_printed_in_suitable_units(parameters: int, told: str) -> None:
    lines = planned("down_proj@2", cost=Cost.from_parameters(parameters, None))
    assert f"adapter {parameters:,} parameters, {told} more in training" in words(lines)


def test_the_training_command_can_be_pasted_and_its_lines_fit() -> None:
    short = "memlaw train facts.jsonl --rank 4 --out adapter"
    assert planned("down_proj@2", train=short)[-1] == short
    command = shlex.join(
        ["memlaw", "train", "my facts.jsonl", "--model", "an organisation/a model", "--prompt-field", "who's\u2028is",
         "--rank", "12", "--placement", "q_proj,v_proj@1+2", "--out", "adapter"]
    )  # fmt: skip
    lines = planned("down_proj@2", train=command)
    start = next(number for number, line in enumerate(lines) if line.startswith("memlaw train"))
    assert len(lines) - start > 1
    assert shlex.split("\n".join(lines[start:]).replace("\\\n", "")) == shlex.split(command)
    assert all(line.lstrip().startswith("--") for line in lines[start + 1 :])


def test_an_interval_may_be_open_or_absent() -> None:
    assert "rank 3 (95%: 2 or more) is predicted" in words(planned("down_proj@2", rank=RankRange(3, 2, None)))
    assert "rank 3 is predicted" in words(planned("down_proj@2", rank=RankRange(3, None, None)))
