from __future__ import annotations

from dataclasses import replace

import pytest

from helpers import tiny
from helpers.door_codes import FACTS
from helpers.serving import VLLM, Mind, serving
from memlaw.core.errors import ConfigError
from memlaw.core.facts import Fact, MemorySet
from memlaw.serving.settings import VerifyConfig
from memlaw.testing import assert_recalled


def test_a_model_and_a_server_that_do_not_know_the_facts_fail_alike() -> None:
    base = tiny.base()
    with pytest.raises(AssertionError, match="4 of 4 facts are not certified") as in_process:
        assert_recalled(base.model, FACTS, base.tokenizer)
    with serving(VLLM({"base": Mind(base)}).routes()) as running, pytest.raises(AssertionError) as served:
        assert_recalled(running.url, FACTS, base.tokenizer, config=VerifyConfig(retries=0))
    for fact in FACTS.facts:
        assert f"'{fact.id}': Decoding goes wrong at position 0" in str(served.value)
        assert fact.target not in str(served.value) + str(in_process.value)


def test_facts_that_come_back_pass() -> None:
    base = tiny.base()
    mind = Mind(base)
    text = mind.text([step.token for step in mind.generate(mind.ids("ab"), 3)])
    facts = MemorySet((Fact("ab", text, "f"),), eos=False, source="greedy")
    assert_recalled(base.model, facts, base.tokenizer, verbatim=True)
    with serving(VLLM({"base": mind}).routes()) as running:
        assert_recalled(running.url, facts, base.tokenizer, verbatim=True)
        with pytest.raises(AssertionError, match="1 of 1 facts are not recalled verbatim"):
            assert_recalled(running.url, replace(facts, eos=True), base.tokenizer, verbatim=True)
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        assert_recalled(base.model, facts)
