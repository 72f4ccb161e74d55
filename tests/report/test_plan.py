"""The plan in the report, of this version and of earlier ones."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.slow_law import BOUNDED, simulate
from memlaw.law import fit_law, published
from memlaw.planning import CellRecall, KnownLaw, MeasuredSet, Plan, PlanRequest, Target, TrainingWork, plan
from memlaw.report import ReportContent, render
from memlaw.report.plan import plan_view


class Modules:
    """One module of 128 to 128, as a placement."""

    parallel = False
    max_rank = 128

    def parameters(self, rank: int) -> int:
        return 256 * rank

    def lora_config(self, rank: int, *, scale: float) -> dict[str, Any]:
        return {"r": rank, "target_modules": ["down_proj"]}


LAW = fit_law(simulate(BOUNDED, noise=0.05), "bounded", source="simulated <cells>")

EARLIER = {
    "records": 60, "tokens": 660, "bits": 1993.2, "loss_init": 2.09, "target": 0.95,
    "loss_needed": {"nats": 0.05, "most": 0.05, "why": "No cell says better."},
    "rank": {"value": 16, "low": 12, "high": 21}, "saturation": {"value": 11, "low": 8, "high": None},
    "largest_rank": 128, "reason": None, "extrapolates": None, "caveats": ["One seed only."],
    "law": {"source": "this probe", "form": "bounded", "ranks": [1.0, 8.0], "lengths": [16.0, 256.0]},
    "lora_config": {"r": 16},
    "cost": {"adapter_parameters": 4096, "adapter_bytes": 16384, "training_flops": 3.1e12},
}  # fmt: skip
"""As version 0.1.0 wrote it."""


def planned(**options: Any) -> Plan:
    values = {"records": 60, "tokens": 660, "loss_init": 12.0, "loss_memoryless": 3.0} | options
    known = KnownLaw(LAW, values.pop("cells", ()), values.pop("near", ()))
    request = PlanRequest(values.pop("target", Target()), values.pop("rank", None))
    more = {name: values.pop(name) for name in ("scale", "work") if name in values}
    return plan(known, MeasuredSet(**values), Modules(), request, **more)


def rows(of: Any) -> dict[str, str]:
    """Label -> text of the plan's part of a page."""
    page = render(ReportContent(title="t", plan=of))
    part = page[page.index('id="plan"') :]
    found = re.findall(r"<dt>(.*?)</dt>\s*<dd><bdi>(.*?)</bdi></dd>", part[: part.index("</dl>")], flags=re.DOTALL)
    return {html.unescape(label): " ".join(html.unescape(text).split()) for label, text in found}


def test_every_part_of_a_plan_is_shown() -> None:
    work = TrainingWork(2_000_000, tokens_per_step=500, steps=100, seconds_per_step=0.5)
    answer = planned(work=work, near=("Its model is <another>.",), cells=[CellRecall(0.3, 5, 10, 110)])
    shown, rank, capacity, cost = rows(answer.to_dict()), answer.rank, answer.capacity, answer.cost
    assert capacity is not None
    assert cost is not None
    assert shown["target"] == "all facts, verbatim"
    assert shown["rank"] == (
        f"{rank.value} (95 %: {rank.low} to {rank.high}); 95 % certain from rank {answer.sure}; "
        "this placement allows 128"
    )
    assert shown["mean loss needed"].endswith("recall all facts verbatim: learned from 1 cells.")
    assert shown["capacity"].startswith(f"rank {rank.value}: {capacity.tokens:,.0f} target tokens (95 %: ")
    assert "; mean loss under ln 2 up to " in shown["capacity"]
    assert shown["rule of thumb"] == "rank 3: as many adapter parameters as target tokens"
    assert shown["law"].startswith("simulated <cells>, bounded form, ranks 1 to 32")
    assert shown["how close the law is"] == "Its model is <another>."
    kilobytes = cost.adapter_bytes / 1000
    assert shown["adapter"].startswith(f"{cost.adapter_parameters:,} parameters, {kilobytes:.3g} kB")
    assert re.search(r"; training takes another [\d.,]+ kB$", shown["adapter"])
    assert shown["training"] == "100 steps, 6.00e11 operations, 50.0 s on the machine of the plan"
    assert "several adapters" not in shown


def test_the_probabilities_are_those_of_the_plan() -> None:
    answer = planned()
    found = re.findall(r"rank (\d+): ([\d.]+) %", rows(answer.to_dict())["probability"])
    assert [int(rank) for rank, _ in found] == [rank for rank in published.RANKS if rank <= 128]
    for (_, percent), chance in zip(found, answer.probabilities, strict=True):
        assert float(percent) == pytest.approx(100 * chance.probability, abs=0.1001)
        assert (float(percent) in (0, 100)) == (chance.probability in (0, 1))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target(), "all facts, verbatim"),
        (Target(0.99), "99.0 % of the facts, verbatim"),
        (Target(None, 0.1), "a mean loss of 0.100 nats per token"),
    ],
    ids=str,
)
def test_the_target_is_shown(target: Target, words: str) -> None:
    assert rows(planned(target=target).to_dict())["target"] == words


def test_a_set_that_no_adapter_holds_is_split() -> None:
    answer = planned(tokens=200_000)
    split = answer.split
    assert split is not None
    assert rows(answer.to_dict())["several adapters"] == (
        f"{split.adapters:,} of rank {split.rank_each}, each for {split.tokens_each:,} target tokens"
    )
    page = render(ReportContent(title="t", plan=answer.to_dict()))
    assert "Not at any rank this law covers" in page
    assert "or split the set over several adapters" in page


def test_configuration_and_command_can_be_pasted() -> None:
    values = planned().to_dict() | {"train": "memlaw train 'my facts' --rank 3"}
    assert plan_view(values)["config"] == (
        f"LoraConfig(\n    r={values['rank']['value']},\n    target_modules=['down_proj'],\n)"
        "\n\nmemlaw train 'my facts' --rank 3"
    )
    assert plan_view(values | {"lora_config": None})["config"] == "memlaw train 'my facts' --rank 3"
    assert plan_view(values | {"lora_config": None, "train": None})["config"] == ""


def test_a_plan_of_an_earlier_version_is_shown() -> None:
    assert rows(EARLIER) == {
        "memory set": "60 records, 660 target tokens, about 1,993 bits",
        "target": "95.0 % of the facts, verbatim",
        "rank": "16 (95 %: 12 to 21); this placement allows 128",
        "mean loss needed": "0.0500 nats per token, from 2.09. No cell says better.",
        "mean loss under ln 2": "from rank 11 (95 %: 8 or more)",
        "law": "this probe, bounded form, ranks 1 to 8, lengths 16 to 256",
        "adapter": "4,096 parameters, 16.4 kB",
        "training": "3.10e12 operations",
    }


@given(st.sets(st.sampled_from([*planned().to_dict()])))
@settings(max_examples=25, deadline=None)
def test_an_incomplete_plan_is_shown_as_far_as_it_goes(missing: set[str]) -> None:
    values = planned().to_dict()
    kept = {key: value for key, value in values.items() if key not in missing - {"records", "tokens", "bits", "rank"}}
    view = plan_view(kept)
    assert dict(view["rows"])["memory set"].startswith("60 records")
    assert dict(view["rows"])["rank"].startswith(str(values["rank"]["value"]))
