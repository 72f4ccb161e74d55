"""Side effects are those of the plain definition, and nothing at all where nothing was changed."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers import slow_side_effects as slow
from helpers import tiny
from helpers.adapters import trained
from helpers.recalls import FACTS as ENCODED
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import attach, save
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import TrainConfig
from memlaw.core.errors import ModelError
from memlaw.core.facts import EncodedFact, Fact, MemorySet
from memlaw.core.side_effects import SideEffects, sentence
from memlaw.diagnosis import side_effects as module
from memlaw.diagnosis.neutral import NeutralText
from memlaw.diagnosis.side_effects import Yardstick, alone, side_effects, yardstick
from memlaw.model.base import Base, wrap

NAMES = MemorySet(
    tuple(Fact(f"{first} {last}:", str(number), f"f{number}") for number, (first, last) in enumerate(
        [("Ann", "Lee"), ("Bob", "Ray"), ("Cid", "Orr"), ("Dee", "Poe"), ("Eve", "Sax")], start=401)),
    eos=True, source="names",
)  # fmt: skip

ROWS = torch.randint(3, tiny.VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))


def of_rows(*rows: torch.Tensor) -> Yardstick:
    """Texts of random tokens, and no near misses."""
    return Yardstick(tuple(NeutralText(f"text {number}", each) for number, each in enumerate(rows)), (), ())


def scaled(stack: AdapterStack, share: float) -> AdapterStack:
    return AdapterStack(stack.sites, stack.ranks, stack.scale, [(a, b * share) for a, b in stack.pairs])


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2", "llama-tied"])
def test_every_number_is_that_of_the_plain_definition(family: str) -> None:
    base = tiny.base(family)
    stack = scaled(trained(placement_on("down_proj@2" if family != "gpt2" else None, base.model)), 10.0)
    before = alone(base, of_rows(ROWS))
    old = slow.all_logits(base.model, ROWS)
    with stack.attached(base.model):
        effects = side_effects(base, before)
        new = slow.all_logits(base.model, ROWS)
    loss, difference, kl, same = slow.compared(old, new, ROWS)
    assert effects.loss_before == pytest.approx(loss, rel=1e-5)
    assert effects.loss_difference == pytest.approx(difference, rel=1e-4, abs=1e-5)
    assert effects.kl == pytest.approx(kl, rel=1e-4, abs=1e-5)
    assert effects.top1_agreement == same
    assert effects.tokens == 3 * 11
    assert effects.kl > 0.01


def test_each_text_has_its_own_difference_and_the_whole_is_their_mean_over_tokens() -> None:
    base = tiny.base()
    stack = scaled(trained(placement_on("down_proj@2", base.model)), 10.0)
    before = alone(base, of_rows(ROWS, ROWS[:1, :4]))
    with stack.attached(base.model):
        effects = side_effects(base, before)
        one, two = (side_effects(base, replace(before, yardstick=of_rows(rows), hidden=before.hidden[k : k + 1]))
                    for k, rows in enumerate((ROWS, ROWS[:1, :4])))  # fmt: skip
    assert effects.texts == {"text 0": one.loss_difference, "text 1": two.loss_difference}
    assert effects.loss_difference == pytest.approx((33 * one.loss_difference + 3 * two.loss_difference) / 36)


def test_in_small_parts_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.base()
    stack = scaled(trained(placement_on("down_proj@2", base.model)), 10.0)
    with stack.attached(base.model):
        at_once = side_effects(base, _alone_without(base, stack))
        monkeypatch.setattr(module, "_LOGITS", 5 * tiny.VOCABULARY)
        monkeypatch.setattr(module, "_TOKENS", 12)
        in_parts = side_effects(base, _alone_without(base, stack))
    for name in ("loss_difference", "loss_before", "kl", "top1_agreement"):
        assert getattr(in_parts, name) == pytest.approx(getattr(at_once, name), rel=1e-5)


def _alone_without(base: Base, stack: AdapterStack) -> module.Alone:
    return alone(tiny.base(), of_rows(ROWS))


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gpt2", "phi3"])
def test_an_adapter_of_zeros_has_no_side_effects_at_all(family: str) -> None:
    base = tiny.base(family)
    stack = scaled(trained(placement_on(None, base.model)), 0.0)
    before = alone(base, yardstick(base, NAMES))
    with stack.attached(base.model):
        effects = side_effects(base, before)
    assert (effects.loss_difference, effects.kl, effects.top1_agreement, effects.near_miss) == (0.0, 0.0, 1.0, 0.0)
    assert set(effects.texts.values()) == {0.0}


def test_in_bfloat16_an_adapter_of_zeros_has_none_either_and_losses_are_taken_in_float32() -> None:
    base = tiny.base(dtype=torch.bfloat16)
    stack = AdapterStack.start(
        placement_on(None, base.model).sites, [(2, TrainConfig())], device="cpu", dtype="bfloat16"
    )
    before = alone(base, of_rows(ROWS))
    with stack.attached(base.model):
        effects = side_effects(base, before)
    assert (effects.loss_difference, effects.kl, effects.top1_agreement) == (0.0, 0.0, 1.0)
    logits = slow.all_logits(base.model, ROWS)
    assert effects.loss_before == pytest.approx(slow.compared(logits, logits, ROWS)[0], rel=1e-5)


def test_a_saved_adapter_has_those_of_the_stack_it_was(tmp_path: Path) -> None:
    base = tiny.base()
    placement = placement_on("down_proj@2", base.model)
    stack = scaled(trained(placement), 10.0)
    before = alone(base, yardstick(base, NAMES))
    with stack.attached(base.model):
        expected = side_effects(base, before)
    save(stack, placement, base, tmp_path / "a")
    with attach(base, tmp_path / "a"):
        found = side_effects(base, before)
    assert found.loss_difference == pytest.approx(expected.loss_difference, abs=1e-5)
    assert found.kl == pytest.approx(expected.kl, rel=1e-4)


@pytest.mark.parametrize("where", [{"target_modules": ["down_proj", "lm_head"]},
                                   {"target_modules": ["down_proj"], "modules_to_save": ["lm_head"]}])  # fmt: skip
def test_a_live_peft_model_is_compared_with_itself_disabled_even_where_its_head_is_adapted(where: dict) -> None:
    bare, plain = tiny.base(), copy.deepcopy(tiny.model())
    tuned = get_peft_model(tiny.model(), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, r=2, **where))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(0.9)
    base = wrap(tuned, bare.tokenizer, name="live")
    with tuned.disable_adapter():
        before = alone(base, of_rows(ROWS))
    effects = side_effects(base, before)
    loss, difference, kl, same = slow.compared(slow.all_logits(plain, ROWS), slow.all_logits(tuned, ROWS), ROWS)
    assert effects.loss_before == pytest.approx(loss, rel=1e-5)
    assert effects.loss_difference == pytest.approx(difference, rel=1e-4, abs=1e-5)
    assert effects.kl == pytest.approx(kl, rel=1e-4)
    assert effects.top1_agreement == same


def test_a_merged_model_is_compared_with_its_base() -> None:
    base, merged = tiny.base(), tiny.base()
    with torch.no_grad():
        merged.model.model.layers[2].mlp.down_proj.weight.mul_(1.2)
    effects = side_effects(merged, alone(base, of_rows(ROWS)))
    old, new = (slow.all_logits(each.model, ROWS) for each in (base, merged))
    assert effects.kl == pytest.approx(slow.compared(old, new, ROWS)[2], rel=1e-4)


class TestNearMisses:
    """What is answered to them: by the model's own greedy decoding, compared with the values that are stored."""

    def measured(self, base: Base, stack: AdapterStack, values: list[list[int]]) -> SideEffects:
        asked = tuple(EncodedFact(str(number), fact.prompt, fact.prompt_length) for number, fact in enumerate(ENCODED))
        before = alone(base, Yardstick(of_rows(ROWS).texts, asked, tuple(map(tuple, values))))
        with stack.attached(base.model):
            return side_effects(base, before)

    def answers(self, base: Base, stack: AdapterStack) -> tuple[list[list[int]], list[list[int]]]:
        """Of the base alone and with the adapter, by definition."""
        alone_ = [slow.answer(base.model, fact.prompt, 3) for fact in ENCODED]
        with stack.attached(base.model):
            return alone_, [slow.answer(base.model, fact.prompt, 3) for fact in ENCODED]

    def test_a_stored_value_that_only_the_adapter_gives_counts(self) -> None:
        base = tiny.base()
        stack = scaled(trained(placement_on("down_proj@2", base.model)), 30.0)
        bare, adapted = self.answers(base, stack)
        assert bare[0] != adapted[0]
        effects = self.measured(base, stack, [adapted[0]])
        assert effects.near_misses == len(ENCODED)
        assert effects.near_miss == sum(answer == adapted[0] for answer in adapted) / len(ENCODED)
        assert effects.near_miss_base == sum(answer == adapted[0] for answer in bare) / len(ENCODED)

    def test_a_value_that_the_base_gives_too_does_not(self) -> None:
        base = tiny.base()
        nothing = scaled(trained(placement_on("down_proj@2", base.model)), 0.0)
        bare, _ = self.answers(base, nothing)
        effects = self.measured(base, nothing, [bare[0]])
        assert effects.near_miss == 0.0
        assert effects.near_miss_base == sum(answer == bare[0] for answer in bare) / len(ENCODED) > 0

    def test_the_first_tokens_of_a_value_are_not_the_value(self) -> None:
        base = tiny.base()
        stack = scaled(trained(placement_on("down_proj@2", base.model)), 30.0)
        _, adapted = self.answers(base, stack)
        other = [*adapted[0][:2], (adapted[0][2] + 1) % tiny.VOCABULARY]
        assert self.measured(base, stack, [other]).near_miss == sum(a == other for a in adapted) / len(ENCODED)

    def test_a_value_ends_before_its_end_of_sequence_and_at_32_tokens(self) -> None:
        facts = (
            EncodedFact("a", (5, 6, 7, 2), 1),
            EncodedFact("b", tuple(range(3, 60)), 2),
            EncodedFact("c", (5, 2), 1),
        )
        assert module._values(facts, (2,)) == ((6, 7), tuple(range(5, 37)))

    def test_there_are_none_for_a_single_fact(self) -> None:
        base = tiny.base()
        one = replace(NAMES, facts=NAMES.facts[:1])
        effects = side_effects(base, alone(base, yardstick(base, one)))
        assert (effects.near_miss, effects.near_misses, effects.near_miss_base) == (None, 0, None)
        assert "near misses" not in sentence(effects)


def test_logits_that_are_not_finite_are_refused() -> None:
    base = tiny.base()
    before = alone(base, of_rows(ROWS))
    with torch.no_grad():
        base.model.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        side_effects(base, before)


def test_a_head_that_does_more_than_is_known_is_refused() -> None:
    base = tiny.base()
    base.model.get_output_embeddings().register_forward_hook(lambda *_: None)
    own = base.model.forward

    def scaled(*args: object, **kwargs: object) -> object:
        output = own(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    base.model.forward = scaled
    with pytest.raises(ModelError, match="differ by 66.7%"):
        alone(base, of_rows(ROWS))


def test_the_sentence_says_what_it_means() -> None:
    effects = SideEffects(0.0213, 3.0, 0.03, 0.98934, 3578, {"sampled": 0.02}, 0.025, 40, 0.0)
    assert sentence(effects) == (
        "Side effects: +0.021 nats a token on neutral text, 98.9% of its next-token choices unchanged, 1 of 40 near "
        "misses answered with a stored value."
    )
