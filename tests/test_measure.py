from __future__ import annotations

import math
from pathlib import Path

import pytest
import reference
import tiny
import torch
from transformers import GenerationConfig

from memlaw.adapter import parse_placement
from memlaw.measure import measure
from memlaw.model import Base, load
from memlaw.records import LN2, EncodedFact, TrainConfig
from memlaw.training import train_stack

FACTS = tiny.facts([(4, 6), (4, 3), (7, 5), (2, 1)])


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
    (result,) = train_stack(base, FACTS, parse_placement("mlp@2", base.model), [(12, config)])
    assert result.recalled
    with result.attached(base.model):
        report = measure(base, FACTS, decode=True)
    assert (report.acc_em, report.certified) == (1.0, len(FACTS))
    assert report.min_margin > 0.1 - 1e-4
    bare = measure(base, FACTS, decode=True)
    assert bare.certified == 0
    assert bare.acc_em == 0


def test_a_saved_repetition_penalty_does_not_change_the_argmax() -> None:
    base = tiny.base()
    expected = measure(base, FACTS, decode=True)
    base.model.generation_config = GenerationConfig(repetition_penalty=50.0, do_sample=True, temperature=9.0)
    assert measure(base, FACTS, decode=True) == expected
    assert base.model.generation_config.repetition_penalty == 50.0


def test_the_result_does_not_shift_with_the_facts_measured_beside_it() -> None:
    base = tiny.base()
    together = measure(base, FACTS, decode=True)
    for fact, item in zip(FACTS, together.items, strict=True):
        (alone,) = measure(base, [fact], decode=True).items
        assert alone.tokens.decoded == item.tokens.decoded
        assert alone.tokens.nll == pytest.approx(item.tokens.nll, rel=1e-5, abs=1e-6)


def test_nothing_after_the_end_of_sequence_counts_as_recalled() -> None:
    base = tiny.base()
    prompt = FACTS[0].prompt
    decoded = reference.greedy(base.model, prompt, 6)
    # A target that greedy decoding follows, with the end-of-sequence token declared to be its third token.
    base.tokenizer.eos_token = base.tokenizer.convert_ids_to_tokens(decoded[2])
    first = decoded.index(decoded[2])
    (item,) = measure(base, [EncodedFact("x", (*prompt, *decoded), len(prompt))], decode=True).items
    assert item.tokens.decoded == (True,) * (first + 1) + (False,) * (5 - first)
    assert item.first_failure == first + 1


def stretches(base: Base, window: int = 160, prompt: int = 32) -> list[EncodedFact]:
    """Facts made of held-out text: stretches of two tokens and more that the bundled base itself gives p > 1/2.

    They end before an end-of-sequence token: what follows one is never decoded, however likely.
    """
    text = (Path(__file__).parent / "data" / "heldout.txt").read_text(encoding="utf-8")
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
def test_margin_above_the_tolerance_means_verbatim_over_thousands_of_tokens_of_the_bundled_base() -> None:
    base = load()
    facts = stretches(base)
    report = measure(base, facts, decode=True)
    sure = [item for item in report.items if item.margin > report.tolerance]
    assert sum(item.length for item in sure) > 2000
    assert all(item.exact and item.certified for item in sure)
    # Sufficient, not necessary: a shorter context makes some tokens less likely, and decoding still finds them.
    assert any(item.exact and item.margin <= 0 for item in report.items)
