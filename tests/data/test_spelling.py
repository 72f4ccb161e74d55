"""Whether targets survive encoding and decoding; expected values are what the tokenizer itself decodes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import tiny
from helpers.memory_sets import TOKENIZER
from helpers.texts import LOSSY, base_with, character_tokenizer, metaspace
from memlaw.core.errors import ModelError
from memlaw.core.facts import EncodedFact, Fact, MemorySet
from memlaw.data import encode
from memlaw.data.spelling import Change, change_of, changed_facts, changed_warning, survives
from memlaw.model.base import Base, wrap

BYTES = wrap(tiny.model(vocab_size=400), TOKENIZER, name="bytes")


def encoded(base: Base, target: str, prompt: str = "Code A:", *, eos: bool = True) -> EncodedFact:
    (fact,) = encode(MemorySet((Fact(prompt, target, "1"),), eos, "test"), base.tokenizer, context=None)
    return fact


def shown(base: Base, fact: EncodedFact) -> str:
    """What the tokenizer adds to the prompt when it decodes both, special tokens left out."""
    whole, asked = (base.tokenizer.decode(ids, skip_special_tokens=True) for ids in (fact.ids, fact.prompt))
    assert whole.startswith(asked)
    return str(whole[len(asked) :])


@given(target=st.text(min_size=1, max_size=12), eos=st.booleans())
def test_any_text_survives_a_byte_level_tokenizer(target: str, eos: bool) -> None:
    fact = encoded(BYTES, target, eos=eos)
    assert survives(BYTES, fact) is (shown(BYTES, fact) == target) is True


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("eos", [True, False])
def test_a_tokenizer_that_stores_another_text_is_noticed(name: str, eos: bool) -> None:
    build, target = LOSSY[name]
    base = base_with(build())
    fact = encoded(base, target, eos=eos)
    assert shown(base, fact) != target
    assert survives(base, fact) is False


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lowercase", Change(1, "letter case")),
        ("strips", Change(0, "white space")),
        ("joins spaces", Change(3, "white space")),
        ("compatibility form", Change(3, "Unicode form")),
        ("spaces between tokens", Change(1, "white space")),
    ],
)
def test_what_changes_is_told_by_its_kind_and_first_character(name: str, change: Change) -> None:
    build, target = LOSSY[name]
    base = base_with(build())
    assert change_of(base, encoded(base, target)) == change


@given(target=st.text("aB -", min_size=1, max_size=6), scheme=st.sampled_from(["always", "first", "never"]))
def test_a_prefix_space_is_judged_as_it_reads_after_the_prompt(target: str, scheme: str) -> None:
    base = base_with(metaspace(scheme))
    fact = encoded(base, target)
    assert survives(base, fact) is (shown(base, fact) == target)


def test_a_target_made_of_tokens_has_nothing_to_survive() -> None:
    base = base_with(character_tokenizer())
    assert survives(base, EncodedFact("1", (5, 6, 7), 1)) is None
    assert changed_facts(base, [EncodedFact("1", (5, 6, 7), 1)]) == ()


@pytest.mark.parametrize("eos", [True, False])
def test_a_target_may_spell_a_special_token_itself(eos: bool) -> None:
    base = base_with(character_tokenizer())
    assert survives(base, encoded(base, "ab<eos>", eos=eos)) is True


def test_an_end_that_is_no_stop_and_no_special_token_is_part_of_the_text() -> None:
    base = base_with(character_tokenizer())
    ids = tuple(base.tokenizer("q:ab!").input_ids)
    assert survives(base, EncodedFact("1", ids, 2, "ab")) is False
    base.model.generation_config.eos_token_id = ids[-1]
    assert survives(base, EncodedFact("1", ids, 2, "ab")) is True


def test_the_warning_names_some_facts_and_no_text() -> None:
    sentence = changed_warning(["a", "b", "c", "d"], 9)
    assert sentence.startswith("4 of 9 facts ('a', 'b', 'c', ...) cannot come back verbatim")


def test_a_tokenizer_that_cannot_decode_is_named_without_a_word_of_the_target() -> None:
    tokenizer: Any = tiny.tokenizer()
    base = base_with(tokenizer)
    fact = encoded(base, "s3cret")

    def fail(*_: object, **__: object) -> str:
        raise KeyError("s3cret")

    tokenizer.decode = fail
    with pytest.raises(ModelError, match="The tokenizer cannot decode its own ids of record '1'") as error:
        survives(base, fact)
    assert "s3cret" not in str(error.value)
