"""Each lever of the advice fires from the command line: `memlaw train`, then `memlaw recall`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import memlaw
from helpers import tiny
from helpers.commands import POINTS, RECORDS, Run, assert_refused, exit_code, jsonl, write
from memlaw.adapter.info import INFO, WEIGHTS
from memlaw.core.config import ADAMW
from memlaw.model.base import load

Advised = Callable[..., list[str]]


@pytest.fixture
def advised(run: Run, model: Path, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Advised:
    """The advice of `recall` on an adapter trained with these options, in a directory without saved laws."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMLAW_LAWS", raising=False)

    def advice(*training: object, data: Path = facts, base: Path = model, recall: tuple[object, ...] = ()) -> list[str]:
        bare = ("--preset", "adamw", "--lr", 0.02, "--protect", 0)
        assert run("train", data, "--model", base, *bare, *training, "--out", tmp_path / "A").code == 0
        return judged(run, data, base, tmp_path / "A", *recall)

    return advice


def judged(run: Run, data: Path, base: Path, adapter: Path, *options: object) -> list[str]:
    document = run("recall", data, "--model", base, "--adapter", adapter, "--decode", *options, "--json").document
    advice: list[str] = document["advice"]
    return advice


@pytest.fixture(scope="module")
def small_law(model: Path, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the law of cells of 30 steps of AdamW, by which no rank holds the facts."""
    folder = tmp_path_factory.mktemp("small")
    grid = ("--ranks", "1,2,4", "--lengths", "12,24,48", "--optimizer", "adamw", "--steps", 30)
    assert exit_code("probe", facts, "--model", model, *grid, "--out", folder / "P") == 0
    assert exit_code("fit", folder / "P", "--form", "bounded", "--save", folder / "laws" / "own.json") == 0
    return folder / "laws"


def edit(adapter: Path, **changes: Any) -> None:
    info = json.loads((adapter / INFO).read_text())
    write(adapter / INFO, json.dumps(info | changes))


def test_data_an_end_of_sequence_inside_a_target_is_to_be_taken_out(advised: Advised, tmp_path: Path) -> None:
    broken = {"prompt": "key 9:", "completion": "12<eos>34"}
    data = write(tmp_path / "broken.jsonl", jsonl(*RECORDS, broken))
    first, *_ = advised("--rank", 16, data=data)
    assert first.startswith("Remove it from the text")
    assert "`memlaw check` reports errors (eos-inside) for 1 failing record, which training cannot fix." in first


def test_tokens_out_of_reach_of_the_head_are_to_be_reworded(advised: Advised, tmp_path: Path) -> None:
    weak = tiny.model()
    with torch.no_grad():
        weak.lm_head.weight.mul_(0.05)
    weak.save_pretrained(tmp_path / "weak")
    tiny.tokenizer().save_pretrained(tmp_path / "weak")
    (only,) = advised("--rank", 4, "--steps", 5, base=tmp_path / "weak")
    assert only.startswith("Reword those targets, or train the head as well")
    assert "cannot reach p > 1/2 with the frozen head" in only


def test_steps_are_missing_where_the_share_was_still_rising(advised: Advised) -> None:
    (only,) = advised("--rank", 16, "--steps", 20)
    assert only.startswith("Train for ")
    assert "The ordered share was still rising" in only
    assert "over the last fifth of 20 steps" in only


def test_method_a_few_stubborn_tokens_after_sft_call_for_memft(advised: Advised) -> None:
    first, *_ = advised("--rank", 8, "--steps", 60, "--method", "sft", "--until", "budget")
    assert first.startswith("Train only the tokens that are not recalled yet")


def test_rank_a_low_and_flat_share_calls_for_more_of_it(advised: Advised) -> None:
    (only,) = advised("--rank", 1, "--steps", 200)
    assert only.startswith("Train at rank 2. The ordered share is low and hardly rises")


def test_rank_a_saved_law_says_how_much(run: Run, advised: Advised, model: Path, facts: Path, tmp_path: Path) -> None:
    assert run("fit", POINTS, "--save", tmp_path / "laws" / "own.json").code == 0
    planned = run("plan", facts, "--model", model, "--json").document["rank"]
    many = [{"prompt": f"key {n}:", "completion": f"{n * 7919:09d}"} for n in range(150)]
    data = write(tmp_path / "many.jsonl", jsonl(*many))
    wanted = run("plan", data, "--model", model, "--calibrate", "--json").document["rank"]
    assert planned["value"] == 1 < wanted["value"]
    first, second, *_ = advised("--rank", 1, "--steps", 20, data=data)
    assert first.startswith("Train at rank ")
    assert f"The law asks for rank {wanted['value']} (95%: {wanted['low']} " in first
    assert "the adapter has 1" in first
    assert second.startswith("Split the 150 records over two adapters")


def test_placement_modules_that_hold_too_little_call_for_more_of_them(
    run: Run, advised: Advised, tmp_path: Path
) -> None:
    weak = ("--rank", 16, "--steps", 100, "--placement", "k_proj@3")
    without, *_ = advised(*weak)
    assert not without.startswith("Adapt more modules")
    assert run("fit", POINTS, "--save", tmp_path / "laws" / "own.json").code == 0
    first, *_ = advised(*weak)
    assert first.startswith("Adapt more modules: --placement all-linear")
    assert "Rank 16 is the highest these modules can use" in first


def test_split_a_set_that_no_rank_holds(advised: Advised, small_law: Path) -> None:
    placement, split = advised("--rank", 1, "--steps", 100, recall=("--laws", small_law))
    assert placement.startswith("Adapt more modules")
    assert split.startswith("Split the 4 records over two adapters of this rank")
    assert "No rank up to 32" in split


@pytest.mark.filterwarnings("always")
def test_a_law_that_cannot_be_used_here_costs_the_plan_and_not_the_advice(
    run: Run, advised: Advised, model: Path, facts: Path, small_law: Path, tmp_path: Path
) -> None:
    expected = advised("--rank", 1, "--steps", 100)
    law = json.loads((small_law / "own.json").read_text())
    law["origin"] |= {"placement": "q_proj@0", "parameters_per_rank": None}
    (tmp_path / "laws").mkdir()
    write(tmp_path / "laws" / "other.json", json.dumps(law))
    ran = run("recall", facts, "--model", model, "--adapter", tmp_path / "A", "--decode", "--json")
    assert ran.document["advice"] == expected
    assert "Warning: The advice does without a plan: The law of" in ran.err


def test_nothing_is_advised_on_what_is_recalled(run: Run, model: Path, facts: Path, adapter: Path) -> None:
    assert judged(run, facts, model, adapter) == []


def test_learning_rate_a_loss_above_its_start_calls_for_a_lower_one_and_not_for_rank(
    run: Run, advised: Advised, model: Path, facts: Path, tmp_path: Path
) -> None:
    advised("--rank", 1, "--steps", 5)
    edit(tmp_path / "A", loss_init=4.7, loss_final=36.0)
    (only,) = judged(run, facts, model, tmp_path / "A")
    assert only.startswith("Train with a quarter of the learning rate (--learning-rate 0.005).")
    assert "Training raised the loss from 4.7 to 36 nats per token." in only


def test_learning_rate_where_no_losses_were_recorded_they_are_measured(
    run: Run, advised: Advised, model: Path, facts: Path, tmp_path: Path
) -> None:
    """As for an adapter of PEFT's own, or of a memlaw that called a diverged training finished."""
    advised("--rank", 2, "--steps", 5)
    weights = load_file(tmp_path / "A" / WEIGHTS)
    uphill = {name: -10 * tensor if "lora_B" in name else tensor for name, tensor in weights.items()}
    save_file(uphill, tmp_path / "A" / WEIGHTS)
    (tmp_path / "A" / INFO).unlink()
    (only,) = judged(run, facts, model, tmp_path / "A")
    assert only.startswith("Train with a lower learning rate, a quarter of what it was or less.")
    assert "Training raised the loss from" in only


def test_a_merged_model_gets_advice_too(run: Run, advised: Advised, model: Path, facts: Path, tmp_path: Path) -> None:
    """Which model had an adapter merged into it cannot be seen, so any model that was judged without one is advised."""
    advised("--rank", 8, "--steps", 60, "--method", "sft", "--until", "budget")
    base = load(str(model))
    merged = PeftModel.from_pretrained(base.model, tmp_path / "A").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    base.tokenizer.save_pretrained(tmp_path / "merged")
    ran = run("recall", facts, "--model", tmp_path / "merged", "--decode", "--json").document
    assert ran["certified"] < ran["records"]
    assert ran["advice"][0].startswith("Train only the tokens that are not recalled yet")
    bare = run("recall", facts, "--model", model, "--decode", "--json").document["advice"]
    assert bare[0].startswith("Run `memlaw plan` to find the rank the set needs.")


def test_python_gives_the_advice_of_the_command_by_directory_and_by_result(
    advised: Advised, model: Path, facts: Path, tmp_path: Path
) -> None:
    by_command = advised("--rank", 16, "--steps", 20)
    base = load(str(model))
    held = memlaw.read(facts)
    config = replace(ADAMW, steps=20, learning_rate=0.02, protect=0.0)
    trained = memlaw.train(base.model, base.tokenizer, held, rank=16, config=config)
    report = memlaw.recall(base.model, base.tokenizer, held, adapter=tmp_path / "A")
    by_directory = memlaw.advise(base.model, base.tokenizer, held, report, adapter=tmp_path / "A")
    by_result = memlaw.advise(base.model, base.tokenizer, held, report, adapter=trained)
    assert [str(advice) for advice in by_directory] == [str(advice) for advice in by_result] == by_command
    unknown = memlaw.advise(base.model, base.tokenizer, held, report)
    assert "memlaw plan" in str(unknown[0])


@pytest.mark.filterwarnings("always")
def test_settings_of_a_later_memlaw_are_a_warning_here_and_a_finding_of_check(
    run: Run, advised: Advised, model: Path, facts: Path, tmp_path: Path
) -> None:
    expected = advised("--rank", 16, "--steps", 20)
    train = json.loads((tmp_path / "A" / INFO).read_text())["train"]
    edit(tmp_path / "A", train=train | {"warmup": 30, "averaging": "ema"})
    ran = run("recall", facts, "--model", model, "--adapter", tmp_path / "A", "--decode", "--json")
    assert ran.document["advice"] == expected
    assert "settings that this version of memlaw does not know, and ignores: averaging, warmup" in ran.err
    findings = run("check", facts, "--model", model, "--adapter", tmp_path / "A", "--json").document["findings"]
    (later,) = [finding for finding in findings if finding["code"] == "adapter-of-a-later-memlaw"]
    assert later["severity"] == "info"
    assert "averaging, warmup" in later["message"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": {"steps": -1}}, "cannot be used. Setting steps is -1: choose a whole number from 1 up."),
        ({"train": [1]}, "(train: input should be an object)"),
        ({"curve": [0.5, 1.5]}, "(curve: input should be less than or equal to 1)"),
        ({"curve": 3}, "(curve: input should be a valid array)"),
    ],
)
def test_a_history_that_cannot_be_is_refused_in_a_sentence(
    run: Run, advised: Advised, model: Path, facts: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    advised("--rank", 1, "--steps", 5)
    edit(tmp_path / "A", **changes)
    ran = run("recall", facts, "--model", model, "--adapter", tmp_path / "A", "--decode")
    assert_refused(ran, sentence, "rain the adapter again")


def test_an_adapter_from_before_the_curve_was_kept_is_advised_on_without_it(
    run: Run, advised: Advised, model: Path, facts: Path, tmp_path: Path
) -> None:
    advised("--rank", 16, "--steps", 20)
    info = json.loads((tmp_path / "A" / INFO).read_text())
    del info["curve"]
    write(tmp_path / "A" / INFO, json.dumps(info))
    (only,) = judged(run, facts, model, tmp_path / "A")
    assert only.startswith("Train at rank 32. At rank 16, ")


def test_an_adapter_of_other_prompts_is_named_before_any_other_advice(
    run: Run, model: Path, facts: Path, adapter: Path, tmp_path: Path
) -> None:
    dated = [record | {"prompt": f"28 Nov: {record['prompt']}"} for record in RECORDS]
    other = write(tmp_path / "dated.jsonl", jsonl(*dated))
    asked = ("--model", model, "--adapter", adapter, "--decode")
    ran = run("recall", other, *asked, "--json")
    assert ran.document["same_facts"] is False
    assert ran.document["acc_em"] < 1
    first = ran.document["advice"][0]
    assert first.startswith("The adapter was trained on other prompts or targets: recall exactly the facts")
    assert ran.err.strip() == f"Warning: {first}"
    shown = " ".join(run("recall", other, *asked).out.split())
    assert first in shown

    base = load(str(model))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        memlaw.recall(base.model, base.tokenizer, other, adapter=adapter)
    assert first in [str(warning.message) for warning in caught]


def test_a_part_of_the_facts_that_comes_back_needs_no_warning(
    run: Run, model: Path, facts: Path, adapter: Path, tmp_path: Path
) -> None:
    part = write(tmp_path / "part.jsonl", jsonl(*RECORDS[:2]))
    ran = run("recall", part, "--model", model, "--adapter", adapter, "--decode", "--json")
    assert (ran.document["same_facts"], ran.document["certified"], ran.document["advice"]) == (False, 2, [])
    assert ran.err == ""
    same = run("recall", facts, "--model", model, "--adapter", adapter, "--decode", "--json").document
    assert (same["same_facts"], same["certified"]) == (True, 4)
    bare = run("recall", facts, "--model", model, "--json").document
    assert bare["same_facts"] is None
