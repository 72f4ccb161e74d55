"""Near misses: shaped like the stored prompts, made of their parts, and never one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.memory_sets import WITH_BOS, jsonl, write
from helpers.paths import ROOT
from helpers.templates import tokenizer
from memlaw.core.errors import DataError
from memlaw.core.facts import EncodedFact, Fact, MemorySet
from memlaw.data import encode, encode_prompts, read
from memlaw.data.near_misses import Part, encoded_near_misses, near_misses

PHONE_BOOK = ROOT / "src/memlaw/law/published/PB1000.jsonl"

PARTS: tuple[Part, ...] = get_args(Part)


def both(prompts: list[str], count: int = 1000) -> set[str]:
    """All near misses that are found, of both parts."""
    return {text for part in PARTS for text in near_misses(prompts, count, seed=0, part=part)}


def test_names_that_are_not_in_the_phone_book() -> None:
    names = [fact.prompt for fact in read(PHONE_BOOK).facts]
    missed = near_misses(names, 100, seed=0, part="measuring")
    assert len(missed) == len(set(missed)) == 100
    assert not set(missed) & set(names)
    firsts, lasts = ({name.split()[place] for name in names} for place in (0, 1))
    assert all(len(name.split()) == 2 for name in missed)
    assert all(name.split()[0] in firsts and name.split()[1] in lasts for name in missed)


def test_questions_of_several_shapes_exchange_what_is_asked() -> None:
    missed = both([fact.prompt for fact in read(ROOT / "examples/facts.jsonl").facts])
    assert {"List price of the intake filter:", "Door code of the relief valve:", "Address of archive A:"} <= missed
    assert len(missed) > 40


def test_one_word_keys_exchange_their_halves() -> None:
    assert both(["Key 1a2b:", "Key 9x8z:", "Key 77qq:"]) == {
        "Key 1a8z:", "Key 1aqq:", "Key 9x2b:", "Key 9xqq:", "Key 772b:", "Key 778z:"
    }  # fmt: skip


@pytest.mark.parametrize(
    "prompts",
    [
        ["Jerry Becerra:"],
        ["A:", "B:"],
        ["f(1, 2)=", "f(1, 4)=", "f(3, 2)=", "f(3, 4)="],  # every pair is stored
        ["Jerry Becerra:", "Robin Osteen:", "jerry  osteen:", "ROBIN BECERRA:"],  # stored but for case and space
        ["Name: A B\nYear:", "A B"],  # of another form
    ],
)
def test_none_where_there_is_nothing_to_exchange(prompts: list[str]) -> None:
    assert both(prompts) == set()


def test_what_is_measured_is_never_what_is_rehearsed() -> None:
    names = [fact.prompt for fact in read(PHONE_BOOK).facts]
    measured, rehearsed = (set(near_misses(names, 10_000, seed=seed, part=part)) for seed, part in enumerate(PARTS))
    assert len(measured) > 3000
    assert len(rehearsed) > 3000
    assert not measured & rehearsed


def test_the_same_arguments_give_the_same_and_another_seed_others() -> None:
    names = [fact.prompt for fact in read(PHONE_BOOK).facts]
    assert near_misses(names, 20, seed=4, part="training") == near_misses(names, 20, seed=4, part="training")
    assert near_misses(names, 20, seed=4, part="training") != near_misses(names, 20, seed=5, part="training")


WORD = st.text("abXY12", min_size=1, max_size=4)


@given(st.lists(st.tuples(WORD, st.sampled_from([" ", ", ", " of the "]), WORD), min_size=2, max_size=8))
def test_a_near_miss_is_the_beginning_of_one_prompt_and_the_end_of_another(keys: list[tuple[str, str, str]]) -> None:
    prompts = ["".join(key) + ":" for key in keys]
    stored = {" ".join(prompt.casefold().split()) for prompt in prompts}
    for text in both(prompts, 50):
        assert " ".join(text.casefold().split()) not in stored
        cuts = range(1, len(text))
        assert any(
            any(prompt.startswith(text[:cut]) for prompt in prompts)
            and any(prompt.endswith(text[cut:]) for prompt in prompts)
            for cut in cuts
        )


def chats(tmp_path: Path, *questions: list[str]) -> Any:
    """Chats, each a list of questions in turn."""
    records = [
        {"messages": [message for question in chat for message in (
            {"role": "user", "content": question}, {"role": "assistant", "content": f"answer {question[::-1]}"})]}
        for chat in questions
    ]  # fmt: skip
    return write(tmp_path / "chats.jsonl", jsonl(records))


@pytest.mark.parametrize("template", ["llama3_training", "qwen3_instruct_2507_training", "gemma_training"])
def test_of_chats_only_what_the_user_says_is_changed(template: str, tmp_path: Path) -> None:
    by = tokenizer(template)
    asked = ["Number of Jerry Becerra?", "Number of Robin Osteen?", "Number of Ann Lee?"]
    memory_set = read(chats(tmp_path, *[[question] for question in asked]), tokenizer=by)
    missed = both([fact.prompt for fact in memory_set.facts])
    names = [(first, last) for first in ("Jerry", "Robin", "Ann") for last in ("Becerra", "Osteen", "Lee")]
    wanted = {f"Number of {first} {last}?" for first, last in names} - set(asked)
    rendered = {
        by.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in wanted
    }
    assert missed == rendered


def test_later_turns_of_a_chat_are_no_parents(tmp_path: Path) -> None:
    by = tokenizer("qwen3_instruct_2507_training")
    source = chats(tmp_path, ["Code of Jerry Becerra?", "And of Ann Lee?"], ["Code of Robin Osteen?", "And of Al Day?"])
    prompts = [fact.prompt for fact in read(source, tokenizer=by).facts]
    assert len(prompts) == 4
    assert not any("answer" in text for text in both(prompts))
    assert both(prompts) == both([prompt for prompt in prompts if "answer" not in prompt]) != set()


def test_a_near_miss_is_encoded_as_the_prompt_of_a_fact() -> None:
    memory_set = read(PHONE_BOOK)
    texts = near_misses([fact.prompt for fact in memory_set.facts], 5, seed=1, part="training")
    encoded = encoded_near_misses(memory_set, WITH_BOS, 5, seed=1, part="training")
    facts = tuple(Fact(text, "1", str(place)) for place, text in enumerate(texts, start=1))
    whole = encode(MemorySet(facts, True, "test"), WITH_BOS, context=None)
    assert [fact.ids for fact in encoded] == [fact.prompt for fact in whole]
    assert encoded[0] == EncodedFact("1", whole[0].prompt, whole[0].prompt_length)
    assert encoded[0].length == 0


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="has no tokens"):
        encode_prompts([""], WITH_BOS)
