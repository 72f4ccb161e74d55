from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import templates
from helpers.memory_sets import TOKENIZER, TURNS, WITH_BOS, chat
from helpers.slow_data import byte_level, contradict, letters
from memlaw.core.errors import DataError
from memlaw.core.facts import EncodedFact, Fact, MemorySet
from memlaw.data import border_merges, check_context, encode, read, stored_fingerprint, take, target_tokens
from memlaw.model.tokenizer import stop_ids

LETTERS = letters()


def facts(*given_pairs: tuple[str, str], eos: bool = False) -> MemorySet:
    return MemorySet(tuple(Fact(q, a, str(n)) for n, (q, a) in enumerate(given_pairs)), eos, "test")


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("eos", [True, False])
def test_an_encoded_fact_is_prompt_then_target_then_end_of_sequence(eos):
    (fact,) = encode(facts(("Answer:", " the 42"), eos=eos), TOKENIZER, context=64)
    assert fact.prompt == ids_of(TOKENIZER, "Answer:")
    assert fact.target == ids_of(TOKENIZER, " the 42") + ((TOKENIZER.eos_token_id,) if eos else ())
    assert fact.length == len(fact.target)


def test_the_beginning_of_sequence_is_added_once_and_only_if_the_tokenizer_adds_it(tmp_path):
    assert encode(facts(("q", "a")), TOKENIZER, context=None)[0].prompt == ids_of(TOKENIZER, "q")
    assert encode(facts(("q", "a")), WITH_BOS, context=None)[0].prompt == (0, *ids_of(WITH_BOS, "q"))
    chats = read(chat(tmp_path, TURNS), tokenizer=WITH_BOS)
    assert encode(chats, WITH_BOS, context=None)[0].prompt == ids_of(WITH_BOS, chats.facts[0].prompt)
    assert encode(chats, WITH_BOS, context=None)[0].prompt.count(0) == 1


def test_a_doubled_beginning_of_sequence_is_refused():
    with pytest.raises(DataError, match="fact '0' begins with the beginning-of-sequence token twice"):
        encode(facts(("<s><s>q", "a")), WITH_BOS, context=None)


def test_end_of_sequence_that_the_tokenizer_lacks_is_refused_unless_declined():
    tokenizer = byte_level(eos=False)
    with pytest.raises(DataError, match=r"the tokenizer has none.*eos=False \(--no-eos\)"):
        encode(facts(("q", "a"), eos=True), tokenizer, context=None)
    assert encode(facts(("q", "a")), tokenizer, context=None)[0].target == ids_of(tokenizer, "a")


@pytest.mark.parametrize(("stops", "end"), [([1], 1), ([7, 9], 7), ((), 1), (None, 1)])
def test_a_plain_target_ends_where_generation_stops_or_else_with_the_tokenizers_end(stops, end):
    assert TOKENIZER.eos_token_id == 1
    memory_set = facts(("q", "a"), eos=True)
    (fact,) = encode(memory_set, TOKENIZER, context=None, stops=stops)
    assert fact.target == (*ids_of(TOKENIZER, "a"), end)
    assert encode(facts(("q", "a")), TOKENIZER, context=None, stops=stops)[0].target == ids_of(TOKENIZER, "a")
    named = stored_fingerprint(memory_set, TOKENIZER, stop_ids(TOKENIZER, None) if stops is None else stops)
    assert (named == memory_set.fingerprint) == (end == 1)


MARKED = templates.tokenizer("{# <|im_end|> <|end|> #}")


@pytest.mark.parametrize(
    ("written", "stops", "end"),
    [
        ("<|im_end|>\n", ["<|im_end|>"], "<|im_end|>"),
        ("<|im_end|>\n", ["</s>"], "<|im_end|>"),
        ("<|im_end|>\n", [], "<|im_end|>"),
        (" <|end|>\n<|im_end|>\n", ["<|im_end|>", "</s>"], " <|end|>\n<|im_end|>"),
        ("\n###", ["</s>"], "</s>"),
        ("\n###", ["#"], "\n#"),
        ("", ["<|im_end|>"], "<|im_end|>"),
    ],
)
def test_an_answer_of_a_chat_ends_as_its_template_ends_it(written, stops, end):
    chatted = MemorySet((Fact("q", "a", "1", end=written),), eos=True, source="test")
    ids = MARKED.convert_tokens_to_ids(stops)
    (fact,) = encode(chatted, MARKED, context=None, stops=ids)
    assert fact.target == ids_of(MARKED, "a") + ids_of(MARKED, end)


def test_a_target_made_of_tokens_is_taken_as_it_is_and_has_no_text():
    memory_set = MemorySet((Fact("q", "", "1", target_ids=(5, 5, 300)),), eos=True, source="test")
    (fact,) = encode(memory_set, TOKENIZER, context=None)
    assert fact.target == (5, 5, 300, TOKENIZER.eos_token_id)
    assert fact.text is None
    assert encode(facts(("q", " A b")), TOKENIZER, context=None)[0].text == " A b"


def test_a_fact_longer_than_the_context_is_refused_with_both_numbers():
    memory_set = facts(("q", "a"), ("abc", "defgh"))
    assert len(encode(memory_set, LETTERS, context=8)) == 2
    with pytest.raises(DataError, match=r"Fact '1' has 8 tokens \(3 of its prompt, 5 of its target\).*context.*is 7"):
        encode(memory_set, LETTERS, context=7)
    whole = encode(memory_set, LETTERS, context=None)
    check_context(take(whole, 1), 2)
    with pytest.raises(DataError, match="is 7"):
        check_context(whole, 7)


def test_a_prompt_or_target_without_tokens_is_refused():
    for tokenizer in (LETTERS, letters(bos=True)):
        with pytest.raises(DataError, match="prompt of fact '0' has no tokens"):
            encode(facts(("123", "a")), tokenizer, context=None)
    with pytest.raises(DataError, match="target of fact '0' has no tokens"):
        encode(facts(("a", "123")), LETTERS, context=None)
    from_a_file = MemorySet((Fact("a", "1", "x", line=9),), eos=True, source="test")
    with pytest.raises(DataError, match=r"target of fact 'x' \(line or row 9\)"):
        encode(from_a_file, LETTERS, context=None)


def test_prompts_that_become_the_same_tokens_cannot_have_different_targets():
    with pytest.raises(DataError, match=r"prompts of facts '0' and '1' are the same 3 tokens.*cannot tell"):
        encode(facts(("abc", "x"), ("A b C!", "y")), LETTERS, context=None)
    assert len(encode(facts(("abc", "x"), ("ABC", "X")), LETTERS, context=None)) == 2


def test_a_prompt_that_overlaps_another_facts_target_cannot_require_another_token():
    with pytest.raises(DataError, match=r"Facts '0' and '1' share their first 3 tokens.*require different ones"):
        encode(facts(("ab", "cd"), ("abc", "x")), LETTERS, context=None)
    assert len(encode(facts(("ab", "cd"), ("abc", "dx")), LETTERS, context=None)) == 2


WORDS = st.text("ab", min_size=1, max_size=3)


@given(given_pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), eos=st.booleans())
def test_facts_are_refused_exactly_if_some_tokens_would_need_two_continuations(given_pairs, eos):
    one_by_one = [encode(facts(pair, eos=eos), LETTERS, context=None)[0] for pair in given_pairs]
    try:
        encode(facts(*given_pairs, eos=eos), LETTERS, context=None)
    except DataError:
        assert contradict(one_by_one)
    else:
        assert not contradict(one_by_one)


def test_a_merge_across_the_border_is_found():
    assert len(ids_of(TOKENIZER, "the")) == 1
    memory_set = facts(("say t", "he"), ("say", " the"), ("number:", "42"))
    assert border_merges(memory_set, TOKENIZER) == ("0",)
    tokens_only = MemorySet((Fact("say t", "he", "1", target_ids=(5,)),), eos=False, source="test")
    assert border_merges(tokens_only, TOKENIZER) == ()


def encoded(lengths: list[int]) -> tuple[EncodedFact, ...]:
    return tuple(EncodedFact(str(n), (n, *range(100, 100 + length)), 1) for n, length in enumerate(lengths))


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@given(lengths=LENGTHS)
def test_one_target_is_cut_exactly_and_records_are_never_cut(lengths):
    whole = encoded(lengths)
    ends = list(itertools.accumulate(lengths))
    assert target_tokens(whole) == ends[-1]
    for length in range(ends[0] if len(lengths) > 1 else 1, ends[-1] + 1):
        part = take(whole, length)
        if len(lengths) == 1:
            assert target_tokens(part) == length
            assert part[0].prompt == whole[0].prompt
            assert part[0].target == whole[0].target[:length]
        else:
            assert part == whole[: sum(end <= length for end in ends)]


@given(lengths=LENGTHS, data=st.data())
def test_a_longer_prefix_begins_with_the_shorter_one(lengths, data):
    whole = encoded(lengths)
    points = st.integers(lengths[0] if len(lengths) > 1 else 1, sum(lengths))
    short, long = sorted(data.draw(st.tuples(points, points)))
    assert take(take(whole, long), min(short, target_tokens(take(whole, long)))) == take(whole, short)


def test_the_whole_length_is_the_whole_set_with_its_end_of_sequence():
    whole = encode(facts(("q", "abc"), eos=True), LETTERS, context=None)
    assert take(whole, 4) == whole
    assert take(whole, 3)[0].target == ids_of(LETTERS, "abc")


@pytest.mark.parametrize("length", [0, -1, 10])
def test_a_length_outside_the_data_is_refused_with_both_numbers(length):
    with pytest.raises(DataError, match=rf"length of {length} target tokens was requested, but the data allow 1 to 9"):
        take(encoded([4, 5]), length)


def test_a_length_below_the_first_record_is_refused_with_both_numbers():
    with pytest.raises(DataError, match=r"length of 3 target tokens.*first fact \('0'\) alone has 4"):
        take(encoded([4, 5]), 3)


def test_nothing_can_be_taken_from_an_empty_set():
    with pytest.raises(DataError, match="length of 1 "):
        take((), 1)
