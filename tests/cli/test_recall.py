from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from helpers import sample
from helpers.commands import LENGTH, SECRETS, Run, assert_refused, saved_model
from helpers.words import words
from memlaw.adapter import peft
from memlaw.cli.output import SHOWN
from memlaw.cli.recall import recall_lines
from memlaw.core.recall import Reason, TokenRecall
from memlaw.diagnosis.documents import RecallDocument
from memlaw.diagnosis.verdicts import diagnose


def test_recall_without_decoding_claims_nothing_about_verbatim_recall(
    run: Run, model: Path, facts: Path, adapter: Path
) -> None:
    document = run("recall", facts, "--model", model, "--adapter", adapter, "--json").document
    assert (document["acc_em"], document["acc_token"], document["certified"]) == (None, None, None)
    assert document["ordered"] == 4 * LENGTH
    assert {(item["exact"], item["certified"]) for item in document["items"]} == {(None, None)}
    shown = run("recall", facts, "--model", model, "--adapter", adapter).out
    assert "certified unknown without --decode" in " ".join(shown.split())


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


def test_texts_are_written_on_request_and_readable_by_their_owner_only(
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


def test_an_adapter_of_another_base_is_refused(run: Run, facts: Path, adapter: Path, tmp_path: Path) -> None:
    other = saved_model(tmp_path / "other", seed=1)
    ran = run("recall", facts, "--model", other, "--adapter", adapter)
    assert_refused(ran, "was trained on another base", "On this one it would give other text without any error")


def test_damaged_and_missing_adapters_are_refused(
    run: Run, model: Path, facts: Path, adapter: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "A"
    shutil.copytree(adapter, copy)
    weights = copy / peft.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-8])
    assert_refused(run("recall", facts, "--model", model, "--adapter", copy), "is not the file that was saved")
    weights.unlink()
    assert_refused(run("recall", facts, "--model", model, "--adapter", copy), "holds no adapter_model.safetensors")
    torch.save({}, copy / "adapter_model.bin")
    assert_refused(run("recall", facts, "--model", model, "--adapter", copy), "a pickle that could run code")
    assert_refused(run("recall", facts, "--model", model, "--adapter", tmp_path / "none"), "none does not exist")


def test_a_recall_counts_records_tokens_and_certificates() -> None:
    told = words(recall_lines(sample.recall({"a": [0.1, 0.2], "b": [0.1, 0.9, 0.8]})))
    assert "2 records, 5 target tokens, measured in float32." in told
    assert "recalled verbatim 1 of 2 records (50.0%) by greedy decoding" in told
    assert "correct tokens 60.0%, position by position" in told
    assert "certified 1 of 2 records" in told
    assert "ordered 3 of 5 tokens have p > 1/2" in told
    assert "mean loss 0.4200 nats per token" in told
    assert "smallest margin -0.2069 nats" in told
    assert told.endswith(
        "b 2 of 3 tokens stubborn, the first at 1. Decoding goes wrong at position 1: the target's token has p = 0.407."
    )


def test_without_decoding_verbatim_recall_is_unknown() -> None:
    told = words(recall_lines(sample.recall({"a": [0.1], "b": [0.9]}, decoded=False)))
    assert "recalled verbatim unknown without --decode certified unknown without --decode" in told
    assert "1 record" not in told
    assert told.endswith("b 1 of 1 token stubborn, the first at 0")


def test_if_everything_is_recalled_no_record_is_listed() -> None:
    told = words(recall_lines(sample.recall({"a": [0.1]})))
    assert "1 record, 1 target token, measured" in told
    assert "Worst records" not in told


def test_a_record_that_only_decoding_gets_wrong_is_listed() -> None:
    tokens = TokenRecall((0.1, 0.2), (True, True), (True, False))
    told = words(recall_lines(diagnose([sample.fact("a", 2)], [tokens], tolerance=0.0, dtype="bfloat16")))
    assert "a no stubborn tokens. Decoding goes wrong at position 1, although teacher-forced" in told


def test_patterns_among_the_failures_are_printed() -> None:
    cases = [
        TokenRecall((0.1, 2.0, 0.1), (True, False, True), (True, False, False), mended=True, unreachable=()),
        TokenRecall((2.0, 0.1, 0.1), (False, True, True), (False, False, False), mended=False, unreachable=(0,)),
        TokenRecall((0.1, 0.1, 2.0), (True, True, False), (True, True, False), mended=True, unreachable=()),
    ]
    facts = [sample.fact(name, 3) for name in "abc"]
    told = words(recall_lines(diagnose(facts, cases, tolerance=0.0, dtype="float32")))
    assert "one token short 2 of 3 failures" in told
    assert "out of reach 1 of 3 stubborn tokens; the first wrong token of 1 record" in told
    assert (
        "first failure follows the earliest stubborn token with Spearman correlation 1.00 (95%: 1.00 to 1.00)" in told
    )


def test_advice_comes_last() -> None:
    told = words(recall_lines(sample.recall({"a": [0.1]}), advice=["Train longer.", "Then measure again."]))
    assert told.endswith("Train longer. Then measure again.")


def test_the_worst_records_are_listed_and_the_others_counted() -> None:
    report = sample.recall({f"record {number}": [1.0 + number] for number in range(SHOWN + 2)})
    lines = list(recall_lines(report))
    assert lines[-1] == "  ... and 2 more"
    listed = [line.split("  ")[1] for line in lines if line.startswith("  record ")]
    assert listed == [f"record {n}" for n in range(6, 1, -1)]


def test_ids_cannot_control_the_terminal() -> None:
    told = "\n".join(recall_lines(sample.recall({"\x1b[2Jé": [1.0], "né": [1.0]})))
    assert "\x1b" not in told
    assert r"'\x1b[2J\xe9'" in told
    assert "né" in told


def test_half_an_adapter_is_refused_and_once_allowed_the_result_says_so(
    run: Run, model: Path, facts: Path, adapter: Path, tmp_path: Path
) -> None:
    tensors = load_file(adapter / peft.WEIGHTS)
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(adapter / peft.PEFT_CONFIG, half)
    tensors = {name.replace("lora_A", "lora_C"): tensor for name, tensor in tensors.items()}
    save_file(tensors, half / peft.WEIGHTS, metadata={"format": "pt"})
    asked = ("recall", facts, "--model", model, "--adapter", half)
    assert_refused(run(*asked), "Only a part of the adapter", "--allow-partial")
    ran = run(*asked, "--allow-partial", "--json")
    assert "Warning: Only a part of the adapter" in " ".join(ran.err.split())
    (fault,) = ran.document["adapter_faults"]
    assert fault.startswith("Only a part of the adapter")
    assert run("recall", facts, "--model", model, "--adapter", adapter, "--json").document["adapter_faults"] == []


def test_an_adapter_on_another_base_can_be_judged_and_the_result_says_so(
    run: Run, facts: Path, adapter: Path, tmp_path: Path
) -> None:
    other = saved_model(tmp_path / "other", seed=1)
    ran = run("recall", facts, "--model", other, "--adapter", adapter, "--allow-other-base", "--json")
    assert "was trained on another base" in " ".join(ran.err.split())
    assert "was trained on another base" in ran.document["adapter_faults"][0]
    checked = run("check", facts, "--model", other, "--adapter", adapter, "--allow-other-base", "--json").document
    assert ("warning", "adapter-of-another-base") in {(f["severity"], f["code"]) for f in checked["findings"]}


class TestSideEffects:
    """Asked for, they are measured beside the recall."""

    def test_they_are_in_the_document_as_described_and_printed(
        self, run: Run, model: Path, facts: Path, adapter: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "neutral.txt").write_text("A text about nothing in particular. " * 30)
        asked = ("recall", facts, "--model", model, "--adapter", adapter, "--side-effects")
        document = run(*asked, "--neutral", tmp_path / "neutral.txt", "--json").document
        TypeAdapter(RecallDocument).validate_json(json.dumps(document), strict=True)
        assert document["side_effects"]["texts"] == {"file": document["side_effects"]["loss_difference"]}
        assert "next-token choices unchanged" in " ".join(run(*asked).out.split())

    def test_without_them_the_document_says_null(self, run: Run, model: Path, facts: Path, adapter: Path) -> None:
        assert run("recall", facts, "--model", model, "--adapter", adapter, "--json").document["side_effects"] is None

    def test_a_merged_model_needs_its_base(self, run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
        merged = saved_model(tmp_path / "merged", seed=1)
        asked = ("recall", facts, "--model", merged, "--side-effects")
        assert_refused(run(*asked), "compare a model with its base, and here is none", "(--base)")
        assert run(*asked, "--base", model, "--json").document["side_effects"]["kl"] > 0
        assert (
            run("recall", facts, "--model", model, "--side-effects", "--base", model, "--json").document[
                "side_effects"
            ]["kl"]
            == 0
        )

    def test_options_without_effect_are_refused(self, run: Run, model: Path, facts: Path) -> None:
        for option in ("--neutral", "--base"):
            assert_refused(run("recall", facts, "--model", model, option, "x"), f"{option} is for side effects")


def test_several_adapters_are_a_mixture_and_said_to_be_one(run: Run, model: Path, facts: Path, adapter: Path) -> None:
    both = ("recall", facts, "--model", model, "--adapter", adapter, "--adapter", adapter, "--decode")
    half = run(*both, "--weights", "0.5,0.5", "--json")
    alone = run("recall", facts, "--model", model, "--adapter", adapter, "--decode", "--json").document
    assert half.document["certified"] == alone["certified"] == 4  # half and half of one adapter
    assert half.document["min_margin"] == pytest.approx(alone["min_margin"], abs=1e-4)
    assert (half.document["mixture"], alone["mixture"]) == (
        [{"adapter": str(adapter), "weight": 0.5}] * 2, None,
    )  # fmt: skip
    assert half.document["same_facts"] is None
    assert "This is a mixture" in half.err
    doubled = run(*both)
    assert doubled.out.startswith(f"Mixture: 1 x {adapter} + 1 x {adapter}\n")
    assert "This is a mixture" in doubled.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--weights", "0.5"), "0 adapters and 1 weights"),
        (("--weights", "half"), "'half' is not a list of numbers"),
        (("--as", "q4"), "'q4' is not a precision in which recall can be judged"),
    ],
)
def test_weights_without_adapters_and_unknown_precisions_are_refused(
    run: Run, model: Path, facts: Path, options: tuple[str, str], sentence: str
) -> None:
    assert_refused(run("recall", facts, "--model", model, *options), sentence)
