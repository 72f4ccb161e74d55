"""What a person reads: the numbers of the record, in words, and nothing a terminal would obey."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from typing import Any

import pytest

from helpers import tiny
from helpers.words import words
from memlaw.adapter.on_model import placement_on
from memlaw.cli.output import WIDTH
from memlaw.cli.plan import laws_lines, plan_lines
from memlaw.law import Origin, fit_law, published
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
from memlaw.planning.library import listing


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


def test_a_plan_gives_the_rank_its_doubt_and_a_config_that_python_takes() -> None:
    lines = planned("down_proj@2")
    told = words(lines)
    assert told.startswith("40 records, 400 target tokens: about 6,348 bits, at 11.00 nats a token.")
    assert "is predicted to meet the target, all facts; 95% sure at" in told
    assert "brings the mean loss under ln 2" in told
    assert "most 32, the most these modules can use" in told
    assert "rule of thumb 5, with as many adapter parameters as target tokens (to compare)" in told
    assert "nats, to recall all facts verbatim: from memlaw's experiments" in told
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
    assert "Note: Outside the measured range" in told


def test_a_plan_says_how_near_its_law_is_and_what_it_takes_to_be_true() -> None:
    told = words(planned("down_proj@2", near=("Its model is another.", "Its cells stored codes.")))
    assert "how near Its model is another. Its cells stored codes." in told
    assert "how near" not in words(planned("down_proj@2"))
    assert "the target, 0.9 of the facts" in words(planned("down_proj@2", target=Target(0.9)))
    asked = words(planned("down_proj@2", target=Target(None, 0.5)))
    assert "the target, a mean loss of 0.5 nats" in asked
    assert "loss needed 0.5 nats, as requested." in asked


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
    lines = planned("down_proj@2", cost=Cost.from_parameters(parameters, None))
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
