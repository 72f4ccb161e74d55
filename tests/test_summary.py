"""What a person reads: the numbers of the record, in words, and nothing a terminal would obey."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import sample
import tiny

from memlaw import published
from memlaw.adapter import parse_placement
from memlaw.diagnosis import diagnose
from memlaw.law import compare, fit_law, holdout
from memlaw.plan import RankRange, plan
from memlaw.records import Estimate, TokenRecall, TrainConfig
from memlaw.summary import (
    SHOWN,
    WIDTH,
    comparison_lines,
    failure_lines,
    fit_lines,
    plan_lines,
    recall_lines,
    train_lines,
)
from memlaw.training import Trained, train_stack


def words(lines: Any) -> str:
    """The text without its layout."""
    return " ".join(" ".join(lines).split())


# --- recall ----------------------------------------------------------------------------------------------------------


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


# --- law -------------------------------------------------------------------------------------------------------------


def test_a_law_is_shown_with_its_doubts() -> None:
    points = published.points()
    told = words(fit_lines(fit_law(points, "paper"), holdout(points, "paper", "length=MAX")))
    assert told.startswith("The paper form, dL = C r^alpha l^-beta + b, on 70 cells: value +- 95% interval C ")
    assert "R^2 0.9959, MAPE 3.45%" in told
    assert "held out length=MAX: 10 cells, MAPE 6.0" in told
    assert told.endswith("inside the 90% interval")


def test_a_law_without_error_bars_says_unknown_and_one_without_a_bound_says_any() -> None:
    law = fit_law(sample.points(ranks=(1, 2), lengths=(16, 64)), "paper")
    told = words(fit_lines(law))
    assert "unknown unknown" in told
    assert law.status in told
    open_ended = dataclasses.replace(law, parameters={"C": Estimate(7.0, 2.0, 0.5, None)})
    assert "C 7 2 0.5 to any" in words(fit_lines(open_ended))


def test_a_law_that_could_not_be_fitted_is_its_status() -> None:
    law = fit_law(sample.points(lengths=(16,)), "paper")
    told = words(fit_lines(law))
    assert told.endswith(law.status)
    assert "interval" not in told


def test_the_other_form_stands_beside_the_better_one() -> None:
    told = words(comparison_lines(compare(published.points())))
    assert told.startswith("The paper form, beside it: R^2 0.9959, MAPE 3.45% on 70 cells.")
    assert "the bounded form has the lower AICc" in told


# --- plan ------------------------------------------------------------------------------------------------------------


def planned(placement: str, tokens: int = 400, **changes: Any) -> list[str]:
    base = tiny.base()
    law = fit_law(published.points(), "bounded", source="some cells")
    answer = plan(law, records=40, tokens=tokens, loss_init=11.0, placement=parse_placement(placement, base.model))
    return list(plan_lines(dataclasses.replace(answer, **changes)))


def test_a_plan_gives_the_rank_its_doubt_and_a_config_that_python_takes() -> None:
    lines = planned("down_proj@2")
    told = words(lines)
    assert told.startswith("40 records, 400 target tokens: about 6,348 bits at the base's own 11.00 nats a token.")
    assert "is predicted to recall 100%" in told
    assert "brings the mean loss under ln 2" in told
    assert "most 32, the most these modules can use" in told
    assert "law bounded form on 70 cells (R^2 0.9994): some cells" in told
    pasted = "\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith("LoraConfig(")) :])
    from peft import LoraConfig

    config = eval(pasted, {"LoraConfig": LoraConfig})
    assert f"rank {config.r} (95%" in told
    assert config.target_modules == {"down_proj"}
    assert max(map(len, lines)) <= WIDTH


def test_a_plan_without_a_rank_says_why() -> None:
    told = words(planned("down_proj@2", tokens=100_000))
    assert "rank No rank up to 32, the most these modules can use, is predicted" in told
    assert "LoraConfig" not in told
    assert "Note: Outside what was measured" in told


def test_an_interval_may_have_no_end_or_no_beginning() -> None:
    assert "rank 3 (95%: 2 or more) is predicted" in words(planned("down_proj@2", rank=RankRange(3, 2, None)))
    assert "rank 3 is predicted" in words(planned("down_proj@2", rank=RankRange(3, None, None)))


# --- training and probes ---------------------------------------------------------------------------------------------


def trained(**settings: Any) -> Trained:
    base, facts = tiny.base(), tiny.facts([(5, 2)])
    [result] = train_stack(base, facts, parse_placement(None, base.model), [(4, TrainConfig(**settings))])
    return result


def test_a_training_says_how_it_ended() -> None:
    result = trained(steps=400, until="recalled", margin=0.1)
    told = words(train_lines(result, Path("A")))
    assert told.startswith("A: rank 4 at down_proj@2, 320 parameters. ")
    assert f"{result.steps} steps in " in told
    assert told.endswith("nats a token; every target token is ordered by 0.1 nats or more.")
    assert words(train_lines(trained(steps=400), Path("A"))).endswith("; every target token is ordered.")
    assert words(train_lines(trained(steps=1), Path("A"))).endswith("; some target tokens are still stubborn.")


def test_cells_without_a_measurement_are_told_with_their_reason() -> None:
    results = [sample.cell(1, 16), *(sample.diverged(rank, 32, "the loss was no number") for rank in range(2, 9))]
    lines = list(failure_lines(results))
    assert lines[0] == "  rank 2, length 32, sft, seed 42: diverged. The loss was no number."
    assert len(lines) == SHOWN + 1
    assert lines[-1] == "  ... and 2 more"
    assert list(failure_lines(results[:1])) == []


@pytest.mark.parametrize("count", [1, 1000])
def test_numbers_agree_with_their_nouns(count: int) -> None:
    report = sample.recall({str(number): [0.1] for number in range(count)})
    assert next(iter(recall_lines(report))).startswith("1 record, 1 t" if count == 1 else "1,000 records, 1,000 t")
