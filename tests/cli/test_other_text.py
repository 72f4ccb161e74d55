"""A target that the tokenizer changes: said by train, before training and after it, by recall and by check."""

from __future__ import annotations

from pathlib import Path

from tokenizers import normalizers

from helpers import tiny
from helpers.commands import Run, jsonl, process, write
from helpers.texts import character_tokenizer


def test_the_command_line_says_it_before_training_after_it_and_in_json(run: Run, tmp_path: Path) -> None:
    model, out = tmp_path / "M", tmp_path / "A"
    tiny.model().save_pretrained(model)
    character_tokenizer(normalizer=normalizers.Lowercase()).save_pretrained(model)
    data = write(tmp_path / "lower.jsonl", jsonl({"id": "1", "prompt": "Code A:", "completion": " PS-22K"}))
    trained = process("train", data, "--model", model, "--rank", 8, "--out", out, "--json")
    assert (trained.document["recalled"], trained.document["other_text"]) == (False, ["1"])
    before, after = [line for line in trained.err.splitlines() if "facts" in line or "fact " in line]
    assert before.startswith("Warning: 1 of 1 facts ('1') cannot come back verbatim")
    assert after.startswith("1 fact cannot come back verbatim, since the tokenizer changes the target; `memlaw check")
    asked = ("recall", data, "--model", model, "--adapter", out, "--decode")
    recalled = run(*asked, "--json")
    assert "Warning: 1 of 1 facts ('1') cannot come back verbatim" in recalled.err
    document = recalled.document
    assert (document["acc_em"], document["acc_token"], document["certified"]) == (0.0, 1.0, 0)
    assert document["patterns"]["reasons"] == {"other_text": 1}
    assert document["items"][0]["tokens"]["faithful"] is False
    assert document["advice"][0].startswith("Write the target with the letter case that the tokenizer returns")
    shown = " ".join(run(*asked).out.split())
    assert "recalled verbatim 0 of 1 record (0.0%)" in shown
    assert "1 no stubborn tokens. The tokenizer changes this target: its tokens decode to another text" in shown
    checked = run("check", data, "--model", model).out
    assert "error: other-text: 1" in checked
    for text in (trained.err, recalled.err, shown, checked):
        assert "22k" not in text.lower()
