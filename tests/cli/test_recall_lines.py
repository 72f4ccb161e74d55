from __future__ import annotations

from helpers import sample
from helpers.words import words
from memlaw.cli.output import SHOWN
from memlaw.cli.recall import recall_lines
from memlaw.core.recall import TokenRecall
from memlaw.diagnosis.verdicts import diagnose


def test_a_recall_counts_records_tokens_and_certificates() -> None:
    told = words(recall_lines(sample.recall({"a": [0.1, 0.2], "b": [0.1, 0.9, 0.8]})))
    assert "2 records, 5 target tokens, judged in float32." in told
    assert "recalled verbatim 1 of 2 records (50.0%) by greedy decoding" in told
    assert "decoded right 60.0% of the tokens" in told
    assert "certified 1 of 2 records" in told
    assert "ordered 3 of 5 tokens have p > 1/2" in told
    assert "mean loss 0.4200 nats a token" in told
    assert "smallest margin -0.2069 nats" in told
    assert told.endswith(
        "b 2 of 3 tokens stubborn, the first at 1. Decoding goes wrong at position 1: the target's token has p = 0.407."
    )


def test_a_recall_without_decoding_says_that_it_does_not_know() -> None:
    told = words(recall_lines(sample.recall({"a": [0.1], "b": [0.9]}, decoded=False)))
    assert "recalled verbatim not known: add --decode certified not known: add --decode" in told
    assert "1 record" not in told
    assert told.endswith("b 1 of 1 token stubborn, the first at 0")


def test_where_everything_is_recalled_nothing_is_listed() -> None:
    told = words(recall_lines(sample.recall({"a": [0.1]})))
    assert "1 record, 1 target token, judged" in told
    assert "Furthest" not in told


def test_a_record_that_decoding_misses_in_spite_of_its_probabilities_is_listed() -> None:
    tokens = TokenRecall((0.1, 0.2), (True, True), (True, False))
    told = words(recall_lines(diagnose([sample.fact("a", 2)], [tokens], tolerance=0.0, dtype="bfloat16")))
    assert "a no token stubborn. Decoding goes wrong at position 1, where teacher-forced" in told


def test_what_the_failures_have_in_common_is_told() -> None:
    cases = [
        TokenRecall((0.1, 2.0, 0.1), (True, False, True), (True, False, False), mended=True, unreachable=()),
        TokenRecall((2.0, 0.1, 0.1), (False, True, True), (False, False, False), mended=False, unreachable=(0,)),
        TokenRecall((0.1, 0.1, 2.0), (True, True, False), (True, True, False), mended=True, unreachable=()),
    ]
    facts = [sample.fact(name, 3) for name in "abc"]
    told = words(recall_lines(diagnose(facts, cases, tolerance=0.0, dtype="float32")))
    assert "one token short 2 of 3 failures" in told
    assert "out of reach 1 of 3 stubborn tokens; the first wrong token of 1 record" in told
    assert "first failure follows the earliest stubborn token with Spearman 1.00 (95%: 1.00 to 1.00)" in told


def test_advice_comes_last() -> None:
    told = words(recall_lines(sample.recall({"a": [0.1]}), advice=["Train longer.", "Then measure again."]))
    assert told.endswith("Train longer. Then measure again.")


def test_only_the_worst_records_are_listed_and_the_others_counted() -> None:
    report = sample.recall({f"record {number}": [1.0 + number] for number in range(SHOWN + 2)})
    lines = list(recall_lines(report))
    assert lines[-1] == "  ... and 2 more"
    listed = [line.split("  ")[1] for line in lines if line.startswith("  record ")]
    assert listed == [f"record {n}" for n in range(6, 1, -1)]


def test_ids_cannot_command_the_terminal() -> None:
    told = "\n".join(recall_lines(sample.recall({"\x1b[2Jé": [1.0], "né": [1.0]})))
    assert "\x1b" not in told
    assert r"'\x1b[2J\xe9'" in told
    assert "né" in told
