from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helpers.checks import facts, findings_of, other_base, the_one
from helpers.slow_data import contradict, letters
from memlaw.api import check_on
from memlaw.core.errors import DataError
from memlaw.data import encode
from memlaw.diagnosis.lint.keys import key_findings
from memlaw.diagnosis.lint.tokens import encodable
from memlaw.model.base import Base


def test_prompts_that_become_the_same_tokens_collide_or_repeat() -> None:
    report = check_on(other_base(letters()), facts(("abc", "x"), ("A b C!", "y"), ("ABC", "X")))
    assert the_one(report, "same-prompt").record == "2"
    assert "the same 3 tokens as that of fact '1'" in the_one(report, "same-prompt").message
    assert (the_one(report, "repeated-fact").record, the_one(report, "repeated-fact").severity) == ("3", "info")


def test_a_prompt_that_runs_through_another_facts_target_collides_unless_they_agree(base: Base) -> None:
    collision = the_one(check_on(base, facts(("ab", "cd"), ("abc", "x"))), "prefix-collision")
    assert (collision.record, collision.severity) == ("2", "error")
    assert "fact '1'" in collision.message
    agreeing = check_on(base, facts(("ab", "cd"), ("abc", "d")))
    assert not findings_of(agreeing, "prefix-collision")
    assert (the_one(agreeing, "prefix-prompt").record, the_one(agreeing, "prefix-prompt").severity) == ("2", "warning")


def test_prompts_alike_but_for_case_and_space_name_the_earlier_one(base: Base) -> None:
    report = check_on(base, facts(("Code of A:", "1"), ("Code  of a:", "2"), ("Code of B:", "3")))
    finding = the_one(report, "near-duplicate")
    assert (finding.record, finding.severity) == ("2", "warning")
    assert "fact '1'" in finding.message


WORDS = st.text("ab", min_size=1, max_size=3)


@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5), eos=st.booleans())
def test_a_collision_is_found_exactly_where_encoding_would_refuse(pairs: list[tuple[str, str]], eos: bool) -> None:
    tokenizer, memory_set = letters(), facts(*pairs, eos=eos)
    one_by_one = encodable(memory_set, tokenizer, [tokenizer.eos_token_id])
    collisions = [finding for finding in key_findings(memory_set, one_by_one) if finding.severity == "error"]
    assert bool(collisions) == contradict(one_by_one)
    try:
        encode(memory_set, tokenizer, context=None)
    except DataError:
        assert collisions
    else:
        assert not collisions
