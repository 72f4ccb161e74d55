from __future__ import annotations

import math

import pytest
import torch

from helpers import tiny
from helpers.recalls import FACTS
from memlaw.core.errors import DataError
from memlaw.core.facts import EncodedFact
from memlaw.diagnosis.measure import measure


def test_the_result_does_not_shift_with_the_facts_measured_beside_it() -> None:
    base = tiny.base()
    together = measure(base, FACTS, decode=True)
    for fact, item in zip(FACTS, together.items, strict=True):
        (alone,) = measure(base, [fact], decode=True).items
        assert alone.tokens.decoded == item.tokens.decoded
        assert alone.tokens.nll == pytest.approx(item.tokens.nll, rel=1e-5, abs=1e-6)


def test_the_rival_is_the_most_probable_other_token() -> None:
    base = tiny.base()
    for fact, item in zip(FACTS, measure(base, FACTS, decode=False).items, strict=True):
        with torch.no_grad():
            p = base.model(input_ids=torch.tensor([fact.ids])).logits[0, fact.prompt_length - 1 : -1].softmax(-1)
        for t, token in enumerate(fact.target):
            others = torch.cat([p[t, :token], p[t, token + 1 :]])
            assert math.exp(-item.tokens.rival[t]) == pytest.approx(float(others.max()), rel=1e-4)
            assert item.tokens.top1[t] == (item.tokens.nll[t] < item.tokens.rival[t])


def test_logits_that_are_no_numbers_name_the_record_and_the_position() -> None:
    base = tiny.base()
    with torch.no_grad():
        base.model.get_input_embeddings().weight[50] = math.nan
    poisoned = EncodedFact("poisoned", (5, 9, 20, 50, 21), 2)
    with pytest.raises(DataError, match=r"Record 'poisoned', position 0: the loss is nan.*Look for NaN in the adapter"):
        measure(base, [FACTS[0], poisoned], decode=True)
