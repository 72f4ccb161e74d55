from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from memlaw.core.config import Execution
from memlaw.core.facts import EncodedFact
from memlaw.sweep.pack import PackSpec

token_ids = st.lists(st.integers(0, 95), min_size=2, max_size=9).map(tuple)

facts = st.lists(st.builds(EncodedFact, st.text(max_size=8), token_ids, st.just(1)), min_size=1, max_size=4)


@given(facts=facts, execution=st.builds(Execution, compiled=st.booleans(), checkpoint_minutes=st.floats(0, 60)))
def test_what_a_worker_is_told_arrives_as_it_was(facts, execution):
    from helpers.probes import a_cell

    spec = PackSpec("m", "float32", "cpu", 1, (a_cell(2, 8), a_cell(3, 8, "ot", 7)), tuple(facts), execution)
    assert PackSpec.from_json(spec.to_json()) == spec
    json.loads(spec.to_json())
