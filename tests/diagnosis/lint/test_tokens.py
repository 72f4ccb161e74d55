from __future__ import annotations

import json
from pathlib import Path

from helpers.checks import GOOD, facts, findings_of, other_base, the_one
from helpers.slow_data import byte_level, letters
from memlaw.api import check, check_on
from memlaw.model.base import Base


def test_a_fact_longer_than_the_context_names_both_numbers(base: Base) -> None:
    finding = the_one(check_on(base, facts(("ab", "x" * 126), ("cd", "y" * 125))), "too-long")
    assert (finding.record, finding.severity) == ("1", "error")
    assert "has 129 tokens (2 in its prompt, 127 in its target), but the model's context holds 128" in finding.message


def test_end_of_sequence_that_is_not_stored_is_told_and_for_one_long_target_only_mentioned(base: Base) -> None:
    assert the_one(check_on(base, facts(*GOOD, eos=False)), "no-eos").severity == "warning"
    assert the_one(check_on(base, facts(GOOD[0], eos=False)), "no-eos").severity == "info"


def test_a_tokenizer_without_end_of_sequence_or_padding() -> None:
    base = other_base(byte_level(eos=False))
    base.model.generation_config.eos_token_id = None
    finding = the_one(check_on(base, facts(*GOOD)), "no-eos-token")
    assert finding.severity == "error"
    assert "--no-eos" in finding.fix
    assert not findings_of(check_on(base, facts(*GOOD, eos=False)), "no-eos-token")
    assert the_one(check_on(base, facts(*GOOD)), "no-pad-token").severity == "info"


def test_padding_with_the_end_of_sequence_loses_it_in_other_trainers() -> None:
    tokenizer = byte_level()
    tokenizer.pad_token = tokenizer.eos_token
    report = check_on(other_base(tokenizer), facts(*GOOD))
    assert "also mask the end of every target" in the_one(report, "pad-is-eos").message


def test_end_of_sequence_inside_a_target_names_where_decoding_stops(base: Base) -> None:
    finding = the_one(check_on(base, facts(("a", "hunter<eos>2"))), "eos-inside")
    assert finding.positions == (6,)
    assert "first at position 6 of 9" in finding.message
    at_the_end = the_one(check_on(base, facts(("a", "hunter<eos>"))), "eos-inside")
    assert at_the_end.positions == (6,)
    assert not findings_of(check_on(base, facts(("a", "hunter<eos>"), eos=False)), "eos-inside")


def test_characters_the_tokenizer_does_not_know_are_lost(base: Base) -> None:
    finding = the_one(check_on(base, facts(("a", "1\u20ac2\u20ac"))), "unknown-token")
    assert finding.positions == (1, 3)
    assert "2 of its 5 target tokens are the tokenizer's unknown token, first at position 1" in finding.message


def test_a_prompt_or_target_without_tokens() -> None:
    base = other_base(letters())
    report = check_on(base, facts(("abc", "123"), ("456", "abc"), ("ab", "cd")))
    assert [(f.record, f.message.split()[1]) for f in findings_of(report, "no-tokens")] == [
        ("1", "target"),
        ("2", "prompt"),
    ]
    assert (report.records, report.tokens) == (3, 3)
    assert check_on(base, facts(("123", "abc"))).tokens == 0


def test_a_start_that_others_will_double_is_a_warning_and_one_doubled_in_the_text_an_error() -> None:
    base = other_base(byte_level(bos=True))
    report = check_on(base, facts(("<s>ask", "a"), ("<s><s>demand", "b"), ("plain", "c")))
    assert [(f.record, f.severity) for f in findings_of(report, "doubled-bos")] == [("2", "error"), ("1", "warning")]
    unadded = check_on(other_base(byte_level()), facts(("<s>ask", "a"), ("plain", "c")))
    assert not findings_of(unadded, "doubled-bos")


def test_a_merge_across_the_border_is_found_once_also_where_reading_has_warned_of_it(tmp_path: Path) -> None:
    base = other_base(byte_level())
    report = check_on(base, facts(("say t", "he"), ("say", " the")))
    assert the_one(report, "border-merge").record == "1"
    path = tmp_path / "facts.jsonl"
    rows = [{"prompt": "say t", "completion": "he"}, {"prompt": "say", "completion": " it"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[1]]))
    report = check(base.model, base.tokenizer, path)
    assert the_one(report, "border-merge").record == "1"
    assert the_one(report, "reading").message.startswith("Dropped 1 identical repetitions")
