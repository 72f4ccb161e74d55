from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import get_args

import torch
from pydantic import TypeAdapter

from helpers.commands import LENGTH, SECRETS, Run, assert_refused, saved_model
from memlaw.adapter import peft
from memlaw.core.recall import Reason
from memlaw.diagnosis.documents import RecallDocument


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


def test_an_adapter_of_another_base_is_refused(run: Run, facts: Path, adapter: Path, tmp_path: Path) -> None:
    other = saved_model(tmp_path / "other", seed=1)
    ran = run("recall", facts, "--model", other, "--adapter", adapter)
    assert_refused(ran, "was trained on another base", "On this one it would give other text without any error")


def test_an_adapter_that_is_damaged_or_none_is_refused(
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
    ran = run("recall", facts, "--model", model, "--adapter", tmp_path / "none")
    assert_refused(ran, "The adapter directory", "does not exist")
