"""A plan for facts on a model: from its files without torch, and from the loaded model."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import tiny
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.placement import resolve
from memlaw.core.config import UNTIL_RECALLED
from memlaw.core.errors import AdapterError
from memlaw.core.points import LawPoint
from memlaw.data import target_tokens
from memlaw.diagnosis.measure import measure
from memlaw.law import LawFit, Origin, fit_law
from memlaw.law.bits import memoryless_loss
from memlaw.model.outline_from_files import outline_of_files
from memlaw.model.outline_from_module import outline_of_model
from memlaw.model.tokenizer import tokenizer_fingerprint
from memlaw.planning import CellRecall, Plan, PlanRequest, Target
from memlaw.planning.for_facts import Names, plan_for, plan_from_files, seconds_per_step
from memlaw.planning.library import KnownLaw, PlanContext, adapt_law, nearest

BASE = tiny.base()

OUTLINE = outline_of_model(BASE.model)

FACTS = tiny.facts([(5, 4), (3, 7), (6, 2)])

DOWN = resolve("down_proj@2", OUTLINE)


def cells() -> list[LawPoint]:
    found = []
    for rank in (1, 2, 4, 8, 16):
        for length in (4, 8, 16, 32):
            gain = 9.0 * rank**0.4 * length**-0.5 * (1 + 0.01 * (-1) ** (rank + length // 4))
            found.append(LawPoint(rank, length, gain, 20.0 - gain))
    return found


LAW = fit_law(cells(), "paper", source="cells")

ORIGIN = Origin(
    model=BASE.name, model_fingerprint=BASE.fingerprint, outline=OUTLINE.digest, placement="down_proj@2",
    tokenizer_fingerprint=BASE.tokenizer_fingerprint, parameters_per_rank=80.0, data="codes",
)  # fmt: skip


def choose(
    law: LawFit = LAW, *recalled: CellRecall, asked: list[PlanContext] | None = None
) -> Callable[[PlanContext], KnownLaw]:
    def chooser(use: PlanContext) -> KnownLaw:
        if asked is not None:
            asked.append(use)
        return adapt_law(KnownLaw(law, recalled), use)

    return chooser


def by_model(**options: Any) -> Plan:
    return plan_for(BASE, FACTS, DOWN, options.pop("choose", choose()), options.pop("names", None), asked_for(options))


def by_files(**options: Any) -> Plan:
    names = options.pop("names", Names(BASE.name))
    return plan_from_files(OUTLINE, FACTS, DOWN, options.pop("choose", choose()), names, asked_for(options))


def asked_for(options: dict[str, Any]) -> PlanRequest | None:
    return PlanRequest(**options) if options else None


def test_a_plan_measures_the_facts_on_the_base_and_trains_nothing() -> None:
    before = BASE.fingerprint
    answer = by_model()
    assert (answer.records, answer.tokens) == (3, 13)
    assert answer.loss_init == measure(BASE, FACTS, decode=False).mean_loss
    assert answer.loss_memoryless == memoryless_loss((f.target for f in FACTS), answer.loss_init, tiny.VOCABULARY)
    assert answer.largest_rank == 32
    assert tiny.wrap(BASE.model, BASE.tokenizer).fingerprint == before


def test_the_law_is_chosen_for_these_weights_this_tokenizer_and_this_loss() -> None:
    asked: list[PlanContext] = []
    answer = by_model(choose=choose(asked=asked), names=Names("a/name", data_fingerprint="d"))
    (use,) = asked
    assert (use.model, use.placement, use.tokens) == ("a/name", "down_proj@2", 13)
    assert (use.model_fingerprint, use.tokenizer_fingerprint) == (BASE.fingerprint, BASE.tokenizer_fingerprint)
    assert (use.loss_init, use.loss_memoryless) == (answer.loss_init, answer.loss_memoryless)
    assert (use.outline, use.data_fingerprint) == (OUTLINE.digest, "d")


def test_the_config_has_the_scale_that_memlaw_trains_with() -> None:
    answer = by_model()
    assert answer.lora_config is not None
    assert answer.lora_config["lora_alpha"] == UNTIL_RECALLED.scale * answer.lora_config["r"]
    assert answer.lora_config["layers_to_transform"] == [2]


def test_cells_of_the_facts_say_which_loss_recall_needs() -> None:
    strict = [CellRecall(0.2, 0, 30, 130), CellRecall(0.05, 10, 30, 130)]
    lax = [CellRecall(0.2, 30, 30, 130), CellRecall(0.9, 28, 30, 130)]
    first, second = (by_model(choose=choose(LAW, *seen)).loss_needed for seen in (strict, lax))
    assert first.nats < second.nats
    assert first.why.endswith("learned from 2 cells.")
    some = by_model(choose=choose(LAW, *strict), target=Target(0.4))
    assert some.loss_needed.nats > first.nats
    assert some.target == Target(0.4)


def test_a_borrowed_law_compares_parameters_and_says_so() -> None:
    answer = by_model(choose=lambda use: nearest((), use))
    assert answer.law.axis == "parameters"
    assert answer.law.borrowed
    assert any(caveat.startswith("Borrowed") for caveat in answer.caveats)
    assert f"Its model is Qwen3-8B, not {BASE.name}." in answer.law.near


def test_steps_are_timed_only_if_asked_and_change_nothing_but_the_cost() -> None:
    before = {name: weight.clone() for name, weight in BASE.model.state_dict().items()}
    plain, timed = by_model(), by_model(timed=True)
    assert plain.cost is not None
    assert timed.cost is not None
    assert plain.cost.seconds is None
    assert timed.cost.seconds is not None
    assert 0 < timed.cost.seconds < math.inf
    assert replace(timed, cost=plain.cost) == plain
    assert all(weight.equal(before[name]) for name, weight in BASE.model.state_dict().items())
    assert 0 < seconds_per_step(BASE, FACTS, DOWN, 2) < 60


def test_where_no_rank_is_recommended_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memlaw.planning.for_facts.seconds_per_step", lambda *_: pytest.fail("steps were taken"))
    answer = by_model(target=Target(None, 1e-9), choose=choose(steep()), timed=True)
    assert (answer.rank.value, answer.cost, answer.train) == (None, None, None)


def steep() -> LawFit:
    """A law that asks for more than any rank here."""
    points = [replace(point, delta_loss=point.delta_loss / 9) for point in cells()]
    return fit_law(points, "paper", source="cells")


def test_files_give_the_plan_of_the_model_but_for_the_loss_that_was_not_measured() -> None:
    known, guessed = (made(target=Target(None, 12.0)) for made in (by_model, by_files))
    assert guessed.loss_init == LAW.loss_init_at(13)
    assert guessed.caveats[-1] == (
        f"The base's own loss on these targets was not measured; {guessed.loss_init:.2f} nats per token is the loss of "
        "the law's cells. Add --calibrate to load the model and measure it."
    )
    assert not any("not measured" in caveat for caveat in known.caveats)
    same = ("records", "tokens", "largest_rank", "rule_of_thumb", "target", "law")
    assert {name: getattr(guessed, name) for name in same} == {name: getattr(known, name) for name in same}
    assert guessed.cost is not None
    assert known.cost is not None
    assert guessed.cost.steps == known.cost.steps
    assert guessed.cost.training_flops == known.cost.training_flops


def test_if_the_law_has_no_loss_either_the_base_is_assumed_to_know_nothing() -> None:
    points = [replace(point, final_loss=None) for point in cells()]
    answer = by_files(choose=choose(fit_law(points, "paper")))
    assert answer.loss_init == math.log(tiny.VOCABULARY)
    assert "is ln of the vocabulary size, as if the base knew nothing" in answer.caveats[-1]


def test_the_law_is_chosen_by_what_files_and_names_tell() -> None:
    asked: list[PlanContext] = []
    names = Names("a/name", "facts.jsonl", (), "tokens", "facts")
    by_files(choose=choose(asked=asked), names=names)
    (use,) = asked
    assert (use.model, use.placement, use.tokens, use.outline) == ("a/name", "down_proj@2", 13, OUTLINE.digest)
    assert (use.model_fingerprint, use.loss_init) == (None, None)
    assert (use.tokenizer_fingerprint, use.data_fingerprint) == ("tokens", "facts")
    assert use.loss_memoryless == memoryless_loss((fact.target for fact in FACTS), math.inf, tiny.VOCABULARY)


def test_files_alone_reveal_a_law_of_another_tokenizer() -> None:
    law = replace(LAW, origin=ORIGIN)
    same = Names(BASE.name, tokenizer_fingerprint=tokenizer_fingerprint(BASE.tokenizer))
    assert not any("another tokenizer" in said for said in by_files(choose=choose(law), names=same).law.near)
    other = replace(same, tokenizer_fingerprint="other")
    assert any("another tokenizer" in said for said in by_files(choose=choose(law), names=other).law.near)


def test_the_bundled_base_is_planned_for_by_its_files() -> None:
    outline = outline_of_files("memlaw/base")
    placement = resolve(None, outline)
    answer = plan_from_files(outline, FACTS, placement, lambda use: nearest((), use), Names("memlaw/base"))
    assert answer.rank.value is not None
    assert answer.cost is not None
    assert answer.cost.adapter_parameters == placement.parameters(answer.rank.value)


@pytest.mark.parametrize("placement", ["down_proj@0", "q_proj@1-2", "mlp@3"])
def test_the_work_counts_the_layers_above_the_adapter_the_head_and_the_tokens_of_a_step(placement: str) -> None:
    where = placement_on(placement, BASE.model)
    cost = plan_for(BASE, FACTS, where, choose()).cost
    layers = BASE.model.model.layers
    weights = sum(p.numel() for at in range(where.first_layer, len(layers)) for p in layers[at].parameters())
    weights += BASE.model.lm_head.weight.numel()
    tokens = target_tokens(FACTS) + 5 + 3 + 6  # a step has more room than there are facts
    assert cost is not None
    assert cost.steps == UNTIL_RECALLED.steps
    assert cost.training_flops == 6.0 * weights * tokens * UNTIL_RECALLED.steps


def test_the_work_of_many_facts_is_that_of_a_batch_of_them() -> None:
    aim = PlanRequest(Target(None, 30.0))
    many, few = (
        plan_for(BASE, tiny.facts([(4, 6)] * count), DOWN, choose(), request=aim).cost
        for count in (3 * UNTIL_RECALLED.batch_size, UNTIL_RECALLED.batch_size)
    )
    assert many is not None
    assert few is not None
    assert many.training_flops == few.training_flops


def test_the_command_names_model_facts_and_placement_and_how_the_facts_are_read() -> None:
    names = Names("a model", "my facts.csv", ("--no-eos", "--prompt-field", "who is"))
    answer = by_model(names=names)
    assert answer.train is not None
    assert shlex.split(answer.train) == [
        "memlaw", "train", "my facts.csv", "--model", "a model", "--no-eos", "--prompt-field", "who is",
        "--rank", str(answer.rank.value), "--placement", "down_proj@2", "--out", "adapter",
    ]  # fmt: skip


def test_facts_without_a_name_have_no_command() -> None:
    assert by_model().train is None
    assert by_files().train is None


def test_the_capacity_of_a_requested_rank_is_stated_and_an_impossible_rank_refused() -> None:
    for made in (by_model, by_files):
        capacity = made(rank=5).capacity
        assert capacity is not None
        assert capacity.rank == 5
        with pytest.raises(AdapterError, match="Rank 33 is above 32"):
            made(rank=33)
        with pytest.raises(AdapterError, match="Rank must be at least 1, not 0"):
            made(rank=0)


def test_a_plan_needs_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_files()
    assert list(tmp_path.iterdir()) == []
