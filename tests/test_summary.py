"""What a person reads: the numbers of the record, in words, and nothing a terminal would obey."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import sample
import tiny

from memlaw import published
from memlaw.adapter import parse_placement
from memlaw.diagnosis import diagnose
from memlaw.law import Origin, compare, fit_law, holdout
from memlaw.laws import KnownLaw, listing
from memlaw.plan import Capacity, Cost, RankChance, RankRange, Target, TrainingWork, plan
from memlaw.records import LN2, Estimate, TokenRecall, TrainConfig
from memlaw.summary import (
    SHOWN,
    WIDTH,
    bits_lines,
    comparison_lines,
    failure_lines,
    fit_lines,
    laws_lines,
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
    assert law.warnings
    assert told.endswith(" ".join([law.status, *(f"Note: {warning}" for warning in law.warnings)]))
    assert "interval" not in told


def test_the_other_form_stands_beside_the_better_one() -> None:
    told = words(comparison_lines(compare(published.points())))
    assert told.startswith("The paper form, beside it: R^2 0.9959, MAPE 3.45% on 70 cells.")
    assert "the bounded form misses the cells left out by 0.71%, the paper form by 3.8%." in told


def test_where_another_form_than_the_best_is_saved_that_is_said() -> None:
    judged = compare(published.points())
    assert "Saved is" not in words(comparison_lines(judged))
    told = words(comparison_lines(judged, "log"))
    assert "The bounded form, beside it: R^2 0.9994" in told
    assert "The log form, beside it" not in told
    assert told.endswith(
        f"{judged.why} Saved is the log form: it knows a ceiling, and plans are made close to it, where forms without "
        "one promise what cannot be."
    )


# --- plan ------------------------------------------------------------------------------------------------------------


def planned(placement: str, tokens: int = 400, **changes: Any) -> list[str]:
    base = tiny.base()
    law = fit_law(published.points(), "bounded", source="some cells")
    options = {name: changes.pop(name) for name in ("target", "work", "near", "cells") if name in changes}
    where = parse_placement(placement, base.model)
    answer = plan(law, records=40, tokens=tokens, loss_init=11.0, placement=where, **options)
    lines = list(plan_lines(dataclasses.replace(answer, **changes)))
    assert max(map(len, lines)) <= WIDTH
    return lines


def test_a_plan_gives_the_rank_its_doubt_and_a_config_that_python_takes() -> None:
    lines = planned("down_proj@2")
    told = words(lines)
    assert told.startswith("40 records, 400 target tokens: about 6,348 bits, at 11.00 nats a token.")
    assert "is predicted to meet the target, all facts; 95% sure at" in told
    assert "brings the mean loss under ln 2" in told
    assert "most 32, the most these modules can use" in told
    assert "rule of thumb 5, with as many adapter parameters as target tokens (to compare)" in told
    assert "nats, where all facts should come back verbatim: memlaw's own experience" in told
    assert "law bounded form on 70 cells (R^2 0.9994): some cells" in told
    pasted = "\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith("LoraConfig(")) :])
    from peft import LoraConfig

    config = eval(pasted, {"LoraConfig": LoraConfig})
    assert f"rank {config.r} (95%" in told
    assert config.target_modules == {"down_proj"}


def test_a_plan_lists_the_ranks_with_which_the_chance_rises() -> None:
    chances = ((1, 0.0), (2, 0.004), (4, 0.12), (6, 0.15), (8, 0.55), (10, 0.95), (12, 0.97), (16, 0.992), (24, 1.0))
    some = tuple(RankChance(*chance) for chance in chances)
    assert "chances 4: 12%, 8: 55%, 10: 95%, 16: 99% half-way" in words(planned("down_proj@2", probabilities=some))
    assert "chances 2: 0% half-way" in words(planned("down_proj@2", probabilities=some[:2]))
    sure = (RankChance(1, 0.999), RankChance(2, 1.0))
    assert "chances 1: 100% half-way" in words(planned("down_proj@2", probabilities=sure))
    assert "chances" not in words(planned("down_proj@2", probabilities=()))


def test_the_row_of_chances_is_a_line() -> None:
    for factor in range(1, 40):
        rising = tuple(
            RankChance(rank, 1 - math.exp(-rank / factor)) for rank in (1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32, 48, 64)
        )
        lines = planned("down_proj@2", probabilities=rising)
        (row,) = (number for number, line in enumerate(lines) if line.startswith("  chances"))
        assert lines[row + 1].startswith("  half-way")


def test_a_plan_says_what_its_rank_holds() -> None:
    told = words(planned("down_proj@2", capacity=Capacity(3, 812.4, 401.0, 1600.9, 1203.0)))
    assert (
        "rank 3 holds about 812 target tokens of this kind (95%: 401 to 1,601); its mean loss stays under ln 2 up to "
        "1,203" in told
    )
    assert "its mean loss stays" not in words(planned("down_proj@2", capacity=Capacity(3, 8.0, 4.0, 16.0, None)))


def test_a_plan_without_a_rank_says_why_and_how_many_adapters_would_do() -> None:
    told = words(planned("down_proj@2", tokens=100_000))
    assert "rank No rank up to 32, the most these modules can use, is predicted" in told
    assert re.search(r"several \d+ adapters of rank \d+ would, each for [\d,]+ of the target tokens", told)
    assert "LoraConfig" not in told
    assert "Note: Outside what was measured" in told


def test_a_plan_says_how_near_its_law_is_and_what_it_takes_to_be_true() -> None:
    told = words(planned("down_proj@2", near=("Its model is another.", "Its cells stored codes.")))
    assert "how near Its model is another. Its cells stored codes." in told
    assert "how near" not in words(planned("down_proj@2"))
    assert "the target, 0.9 of the facts" in words(planned("down_proj@2", target=Target(0.9)))
    asked = words(planned("down_proj@2", target=Target(None, 0.5)))
    assert "the target, a mean loss of 0.5 nats" in asked
    assert "loss needed 0.5 nats, as asked for." in asked


def test_a_plan_counts_what_training_takes() -> None:
    work = TrainingWork(2_000_000, tokens_per_step=500, steps=100)
    lines = planned("down_proj@2", work=work)
    assert "training 100 steps, 6.0e+11 FLOP at most" in words(lines)
    timed = dataclasses.replace(work, seconds_per_step=12.5)
    assert "training 100 steps, 6.0e+11 FLOP, 1,250 s on this machine at most" in words(
        planned("down_proj@2", work=timed)
    )
    assert "  training" not in "\n".join(planned("down_proj@2"))


@pytest.mark.parametrize(
    ("parameters", "told"), [(640, "2.6 kB in float32; 7.7 kB"), (10**6, "4.00 MB in float32; 12.00 MB")]
)
def test_sizes_are_told_in_units_that_fit(parameters: int, told: str) -> None:
    lines = planned("down_proj@2", cost=Cost.of(parameters, None))
    assert f"adapter {parameters:,} parameters, {told} more to train it" in words(lines)


def test_the_command_that_trains_it_is_ready_to_paste_in_lines_that_fit() -> None:
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


def test_an_interval_may_have_no_end_or_no_beginning() -> None:
    assert "rank 3 (95%: 2 or more) is predicted" in words(planned("down_proj@2", rank=RankRange(3, 2, None)))
    assert "rank 3 is predicted" in words(planned("down_proj@2", rank=RankRange(3, None, None)))


# --- a library of laws -----------------------------------------------------------------------------------------------


def test_laws_are_listed_with_what_they_hold_for() -> None:
    law = fit_law(published.points(), "bounded", origin=Origin(model="org/model", placement="down_proj@4"))
    lines = list(laws_lines(listing({"mine": KnownLaw(law)})))
    assert lines[0] == "mine: bounded form on 70 cells, R^2 0.9994"
    told = words(lines)
    assert "model org/model placement down_proj@4 ranks 1 to 24 lengths 200 to 10,000 published:" in told
    assert "model Qwen3-8B" in told
    assert "status" not in told


def test_a_doubtful_law_is_listed_with_its_status() -> None:
    doubtful = dataclasses.replace(fit_law(published.points(), "bounded"), status="Not identifiable.", r2=None)
    lines = list(laws_lines(listing({"mine": KnownLaw(doubtful)})))
    assert lines[0] == "mine: bounded form on 70 cells"
    assert "status Not identifiable." in words(lines)


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


def test_the_densest_memory_of_a_probe_is_told_in_bits() -> None:
    sparse = sample.cell(8, 1000, 7 * LN2, loss_memoryless=10 * LN2, certified_tokens=0)
    dense = sample.cell(2, 1000, 9 * LN2, loss_memoryless=10 * LN2, certified_tokens=0)
    assert words(bits_lines([sparse, dense, sample.cell(1, 1000), sample.diverged(1, 16)])) == (
        "At most 1.95 bits are stored per parameter of the adapter (rank 2, length 1,000: 1,000 bits); published: "
        "2 (knowledge, whole models), 3.5 to 3.8 (raw memorisation, whole models)."
    )
    assert list(bits_lines([sample.cell(1, 1000)])) == []


@pytest.mark.parametrize("count", [1, 1000])
def test_numbers_agree_with_their_nouns(count: int) -> None:
    report = sample.recall({str(number): [0.1] for number in range(count)})
    assert next(iter(recall_lines(report))).startswith("1 record, 1 t" if count == 1 else "1,000 records, 1,000 t")
