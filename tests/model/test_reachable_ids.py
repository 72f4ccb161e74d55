from __future__ import annotations

import pytest

from helpers import tiny
from memlaw.model.head import frozen_head
from memlaw.model.reach import reach, reachable_ids


def test_random_targets_are_drawn_from_ordinary_tokens_that_can_be_reached() -> None:
    base = tiny.base()
    ids = reachable_ids(base)
    assert ids == sorted(set(ids))
    assert not set(ids) & set(base.tokenizer.all_special_ids)
    ordinary = sorted(set(base.tokenizer.get_vocab().values()) - set(base.tokenizer.all_special_ids))
    values = dict(zip(ordinary, reach(frozen_head(base.model), ordinary).tolist(), strict=True))
    assert ids == [token for token in ordinary if values[token] > 0.9]
    assert len(ids) > 10


def test_of_a_large_vocabulary_a_fixed_sample_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.base()
    everything = reachable_ids(base)
    monkeypatch.setattr("memlaw.model.reach._JUDGED", 20)
    some = reachable_ids(base)
    assert some == reachable_ids(base)
    assert 0 < len(some) <= 20
    assert set(some) < set(everything)
