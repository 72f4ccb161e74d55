from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from helpers.probes import a_cell
from memlaw.core.config import Execution
from memlaw.core.facts import EncodedFact
from memlaw.sweep.pack import PackSpec

token_ids = st.lists(st.integers(0, 95), min_size=2, max_size=9).map(tuple)

names = st.text(st.characters(), max_size=8)
"""Lone surrogates among them, which JSON files of facts can hold."""

facts = st.lists(st.builds(EncodedFact, names, token_ids, st.just(1)), min_size=1, max_size=4)


@given(facts=facts, execution=st.builds(Execution, compiled=st.booleans(), checkpoint_minutes=st.floats(0, 60)))
def test_a_spec_reaches_another_process_unchanged(facts, execution):
    spec = PackSpec("m", "float32", "cpu", 1, (a_cell(2, 8), a_cell(3, 8, "ot", 7)), tuple(facts), execution)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(pickle.loads(pickle.dumps(spec))) == hash(spec)
