from __future__ import annotations

import math

import pytest
import torch

from helpers import slow_training as reference
from helpers import tiny
from helpers.paths import FIXTURES
from helpers.recalls import FACTS, followed
from memlaw.adapter.on_model import placement_on
from memlaw.core.config import TrainConfig
from memlaw.core.errors import DataError, ModelError
from memlaw.core.facts import EncodedFact
from memlaw.core.precision import TOLERANCE
from memlaw.core.recall import LN2
from memlaw.diagnosis.measure import SAFETY, measure, token_texts
from memlaw.model.base import Base, load
from memlaw.training.run import Run
from memlaw.training.stack import train_stack


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "mistral-sliding", "gpt2"])
def test_every_number_is_that_of_the_plain_definition(family: str) -> None:
    base = tiny.base(family)
    report = measure(base, FACTS, decode=True)
    hits = 0
    for fact, item in zip(FACTS, report.items, strict=True):
        with torch.no_grad():
            nll = reference.nll_of(base.model, fact).tolist()
        assert item.tokens.nll == pytest.approx(nll, rel=1e-4, abs=1e-5)
        assert item.margin == pytest.approx(LN2 - max(nll), rel=1e-4, abs=1e-5)
        decoded = reference.greedy(base.model, fact.prompt, fact.length)
        ended = decoded.index(2) + 1 if 2 in decoded else fact.length
        right = [a == b and t < ended for t, (a, b) in enumerate(zip(decoded, fact.target, strict=True))]
        assert item.tokens.decoded == tuple(right)
        hits += sum(right)
    assert report.acc_token == hits / report.tokens
    assert report.mean_loss == pytest.approx(
        sum(sum(item.tokens.nll) for item in report.items) / report.tokens, rel=1e-9
    )


def test_without_decoding_nothing_is_said_about_verbatim_recall() -> None:
    report = measure(tiny.base(), FACTS, decode=False)
    assert (report.acc_em, report.acc_token, report.certified) == (None, None, None)
    assert all(item.exact is None and item.certified is None for item in report.items)
    assert math.isfinite(report.mean_loss)


def test_what_is_trained_until_recalled_is_certified_and_the_bare_base_is_not() -> None:
    base = tiny.base()
    config = TrainConfig(steps=800, until="recalled", margin=0.1, learning_rate=2e-2, method="ot", schedule="constant")
    (result,) = train_stack(base, FACTS, [Run(12, placement_on("mlp@2", base.model), config)])
    assert result.recalled
    with result.attached(base.model):
        report = measure(base, FACTS, decode=True)
    assert (report.acc_em, report.certified) == (1.0, len(FACTS))
    assert report.min_margin > 0.1 - 1e-4
    bare = measure(base, FACTS, decode=True)
    assert bare.certified == 0
    assert bare.acc_em == 0


def test_a_token_whose_row_of_the_head_lies_between_two_others_is_named_unreachable() -> None:
    base = tiny.base()
    head = base.model.get_output_embeddings().weight
    with torch.no_grad():
        head[40] = (head[41] + head[42]) / 2  # never above the larger of the two
    facts = [EncodedFact("hopeless", (5, 9, 33, 40, 20), 2), EncodedFact("hard", (5, 9, 34), 2)]
    hopeless, hard = measure(base, facts, decode=True, explain=True).items
    assert hopeless.tokens.unreachable == (1,)
    assert hard.tokens.unreachable == ()
    assert measure(base, facts, decode=True).items[0].tokens.unreachable is None
    first = measure(base, [EncodedFact("first", (5, 9, 40), 2)], decode=True, explain=True).items[0]
    assert first.reason == "unreachable"


def test_a_head_that_is_adapted_too_says_nothing_of_reach() -> None:
    base = tiny.base()
    output = base.model.get_output_embeddings()
    handle = output.register_forward_hook(lambda _module, _inputs, logits: logits * 1.5)
    try:
        assert measure(base, FACTS, decode=False, explain=True).items[0].tokens.unreachable is None
    finally:
        handle.remove()


def cached_nll(base: Base, fact: EncodedFact) -> list[float]:
    """Loss of each target token, one token at a time with a key-value cache: no batch, no library's decoding loop."""
    losses, past, ids = [], None, list(fact.prompt)
    for token in fact.target:
        with torch.no_grad():
            output = base.model(input_ids=torch.tensor([ids]), past_key_values=past, use_cache=True)
        losses.append(-float(output.logits[0, -1].float().log_softmax(-1)[token]))
        past, ids = output.past_key_values, [token]
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_tolerance_is_the_least_one_or_a_multiple_of_the_rounding_seen(dtype: torch.dtype) -> None:
    base = tiny.base(dtype=dtype)
    facts = [followed(base, (5, 9, start, 20), 12, {}) for start in range(30, 36)]
    report = measure(base, facts, decode=True, explain=True)
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert report.tolerance == max(TOLERANCE[report.dtype], SAFETY * report.rounding)
    cached = [cached_nll(base, fact) for fact in facts]
    differences = [
        abs(a - b)
        for item, nll in zip(report.items, cached, strict=True)
        for a, b in zip(item.tokens.nll, nll, strict=True)
        if min(a, b) < LN2
    ]
    assert report.rounding >= max(differences) * 0.5
    assert report.rounding < (0.5 if dtype == torch.bfloat16 else 1e-4)


def test_without_decoding_no_rounding_was_seen() -> None:
    report = measure(tiny.base(), FACTS, decode=False, explain=True)
    assert (report.rounding, report.tolerance) == (None, TOLERANCE["float32"])


def test_a_fact_longer_than_the_context_is_refused() -> None:
    base = tiny.base()
    with pytest.raises(DataError, match=r"Fact 'f0' has 140 tokens .* the context of the model is 128"):
        measure(base, tiny.facts([(100, 40)]), decode=True)


def test_target_tokens_as_text() -> None:
    base = tiny.base()
    ids = base.tokenizer("ab:").input_ids
    assert token_texts(base, [EncodedFact("x", (*ids, *ids), 3)]) == {"x": ("a", "b", ":")}


def test_a_tokenizer_that_cannot_decode_its_own_ids_is_named_without_a_word_of_the_target() -> None:
    base = tiny.base()

    def fail(*_: object, **__: object) -> str:
        raise KeyError("s3cret")

    base.tokenizer.decode = fail
    with pytest.raises(ModelError, match=r"tokenizer cannot decode its own ids of record 'f0'") as error:
        token_texts(base, FACTS)
    assert "s3cret" not in str(error.value)


def stretches(base: Base, window: int = 160, prompt: int = 32) -> list[EncodedFact]:
    """Facts made of held-out text: stretches of two tokens and more that the bundled base itself gives p > 1/2.

    They end before an end-of-sequence token: what follows one is never decoded, however likely.
    """
    text = (FIXTURES / "heldout.txt").read_text(encoding="utf-8")
    ids = base.tokenizer(text, verbose=False).input_ids
    rows = torch.tensor(ids[: len(ids) // window * window]).view(-1, window)
    with torch.no_grad():
        p = torch.cat([base.model(input_ids=part).logits[:, :-1].softmax(-1) for part in rows.split(16)])
    ordered = (p.gather(-1, rows[:, 1:, None])[..., 0] > 0.5) & (rows[:, 1:] != base.tokenizer.eos_token_id)
    found = []
    for row, likely in zip(rows.tolist(), ordered.tolist(), strict=True):
        start = prompt
        for position in range(prompt, window + 1):
            if position == window or not likely[position - 1]:
                if position - start > 1:
                    found.append(EncodedFact(f"s{len(found)}", tuple(row[start - prompt : position]), prompt))
                start = position + 1
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_margin_above_the_tolerance_means_verbatim_over_thousands_of_tokens_of_the_bundled_base(dtype: str) -> None:
    base = load(dtype=dtype)
    facts = stretches(base)
    report = measure(base, facts, decode=True, explain=True)
    sure = [item for item in report.items if item.margin > report.tolerance]
    assert sum(item.length for item in sure) > 1000
    assert all(item.exact and item.certified for item in sure)
    certified = [fact for fact, item in zip(facts, report.items, strict=True) if item.certified]
    assert all(measure(base, [fact], decode=True).acc_em == 1 for fact in certified[:40])
    # Sufficient, not necessary: a shorter context makes some tokens less likely, and decoding still finds them.
    assert any(item.exact and item.margin <= 0 for item in report.items)
