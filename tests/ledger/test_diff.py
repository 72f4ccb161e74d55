"""An update is a diff: what is new, changed, unchanged and retracted, and what must no longer come back."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.ledgers import KEY, SECRET, held_by, some_facts
from memlaw.core.errors import DataError
from memlaw.core.facts import Fact
from memlaw.ledger.diff import Diff, difference, forbidden_after, targets_after
from memlaw.ledger.records import Change, Version, drop, pair_of, prompt_hash


def a_version(*facts: Fact, number: int = 1, retracted=()) -> Version:
    return Version(number, number - 1, tuple(held_by(facts, number)), tuple(retracted), Change(), 4, "now")


def applied(version: Version, diff: Diff) -> Version:
    """The version that comes of a diff."""
    number = version.number + 1
    dropped = tuple(drop(held, number, log_p=-9.0, log_p_base=-9.0) for held in diff.dropped)
    held = (*diff.unchanged, *held_by(diff.to_train, number))
    return Version(number, version.number, held, diff.forbidden + dropped, diff.change(), 4, "now")


def by_prompt(version: Version) -> dict[str, str]:
    return {held.prompt: held.target for held in version.held}


def unnamed(prompt: str, target: str, number: int = 1) -> Fact:
    return Fact(prompt, target, str(number), number, named=False)


def test_new_changed_unchanged_and_retracted_facts_are_told_apart():
    old = some_facts("a", "b", "c", "d")
    version = a_version(*old)
    diff = difference(version, [*some_facts("a", "e"), *some_facts("b", value="!")], ["c"], KEY)
    assert diff.new == some_facts("e")
    assert diff.changed == some_facts("b", value="!")
    assert [held.id for held in diff.replaced] == ["b"]
    assert [held.id for held in diff.unchanged] == ["a", "d"]
    assert [held.id for held in diff.retracted] == ["c"]
    assert diff.change(["e"]) == Change(("e",), ("b",), ("c",), ("e",))
    assert not diff.empty
    assert diff.to_train == (*some_facts("e"), *some_facts("b", value="!"))


def test_the_same_file_again_changes_nothing():
    version = applied(a_version(), difference(a_version(), some_facts("a", "b"), [], KEY))
    diff = difference(version, some_facts("b", "a"), [], KEY)
    assert diff.empty
    assert diff.unchanged == version.held


def test_a_fact_without_an_id_is_named_by_its_prompt_and_keeps_that_name():
    version = applied(a_version(), difference(a_version(), [unnamed("p", "t")], [], KEY))
    [held] = version.held
    assert held.id == prompt_hash("p", KEY)[:12]
    diff = difference(version, [unnamed("p", "other", 9), unnamed("q", "t", 1)], [], KEY)
    assert [fact.id for fact in diff.changed] == [held.id]
    assert [fact.id for fact in diff.new] == [prompt_hash("q", KEY)[:12]]


def test_a_fact_without_an_id_takes_the_one_that_its_prompt_has_in_the_ledger():
    version = a_version(*some_facts("a"))
    [fact] = some_facts("a", value="!")
    diff = difference(version, [dataclasses.replace(fact, id="1", named=False)], [], KEY)
    assert [changed.id for changed in diff.changed] == ["a"]


def test_a_retracted_fact_that_comes_again_is_new_and_no_longer_forbidden():
    version = a_version(*some_facts("a", "b"))
    without = applied(version, difference(version, [], ["a"], KEY))
    assert [old.id for old in without.retracted] == ["a"]
    again = difference(without, some_facts("a"), [], KEY)
    assert (again.new, again.forbidden) == (some_facts("a"), ())


def test_a_retracted_fact_with_another_target_is_new_and_its_old_target_stays_forbidden():
    version = a_version(*some_facts("a"))
    without = applied(version, difference(version, [], ["a"], KEY))
    diff = difference(without, some_facts("a", value="!"), [], KEY)
    assert diff.new == some_facts("a", value="!")
    assert [old.pair for old in diff.forbidden] == [pair_of(some_facts("a")[0], KEY)]


def test_a_fact_that_changes_back_frees_its_first_target_and_forbids_the_second():
    version = a_version(*some_facts("a"))
    second = applied(version, difference(version, some_facts("a", value="!"), [], KEY))
    third = applied(second, difference(second, some_facts("a"), [], KEY))
    assert [old.pair for old in third.retracted] == [pair_of(some_facts("a", value="!")[0], KEY)]
    assert by_prompt(third) == by_prompt(version)


def test_an_id_can_name_another_prompt_in_the_update_that_retracts_it():
    diff = difference(a_version(*some_facts("a")), [Fact("another prompt", "t", "a")], ["a"], KEY)
    assert ([fact.id for fact in diff.new], [held.id for held in diff.retracted]) == (["a"], ["a"])


OTHER = Fact("another prompt", SECRET, "a", 7)

REFUSED = {
    "an id of another prompt": ([OTHER], [], r"^The record in line 7 has the id 'a', which names another prompt"),
    "another id": (
        [dataclasses.replace(some_facts("a")[0], id="z")],
        [],
        r"^Record 'z' has the id 'z', but .* holds its prompt as 'a'",
    ),
    "an id twice": ([Fact("p", SECRET, "x", 1), Fact("q", SECRET, "x", 2)], [], r"1 and .* line 2 share the id 'x'"),
    "a prompt twice": ([Fact("p", SECRET, "x", 1), Fact("p", SECRET, "y", 2)], [], "1 and .* 2 have the same prompt"),
    "retracted and stored": (some_facts("a"), ["a"], r"^Record 'a' stores the prompt of 'a', which is to be retracted"),
    "never there": ([], ["alpha1", "zz"], r"no fact with the id 'alpha1' \(and 1 more\)\. Did you mean alpha\?"),
    "retracted before": ([], ["gone"], r"no fact with the id 'gone'; it was retracted in version 1\."),
}  # fmt: skip


@pytest.mark.parametrize(("facts", "retract", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_contradicts_the_ledger_or_itself_is_refused_without_its_text(facts, retract, message):
    gone = drop(held_by(some_facts("gone"), 0)[0], 1, log_p=-9.0, log_p_base=-9.0)
    version = a_version(*some_facts("a", "alpha"), retracted=[gone])
    with pytest.raises(DataError, match=message) as raised:
        difference(version, facts, retract, KEY)
    assert SECRET not in str(raised.value)
    assert "another prompt " not in str(raised.value).replace("another prompt in", "")


PROMPTS = st.sampled_from("abcdef")
UPDATES = st.lists(
    st.tuples(st.dictionaries(PROMPTS, st.sampled_from("123"), max_size=4), st.sets(PROMPTS, max_size=3)), max_size=8
)


@given(UPDATES, st.booleans())
def test_a_chain_of_updates_holds_and_forbids_what_a_dictionary_would(updates, named):
    """Targets by prompt, as a plain dictionary does it; forbidden: whatever was held once and is not now."""
    version, expected, once = a_version(number=1), {}, set()
    for stored, leaving in updates:
        facts = [Fact(p, t, p if named else str(n), named=named) for n, (p, t) in enumerate(stored.items())]
        ids = {held.prompt: held.id for held in version.held}
        retract = [ids[prompt_hash(p, KEY)] for p in leaving - stored.keys() if p in expected]
        diff = difference(version, facts, retract, KEY)
        expected = {p: t for p, t in expected.items() if p not in leaving or p in stored} | stored
        once |= {pair_of(Fact(p, t, ""), KEY) for p, t in expected.items()}
        now = dict(pair_of(Fact(p, t, ""), KEY) for p, t in expected.items())
        assert targets_after(diff, KEY) == now
        assert forbidden_after(diff) == once - set(now.items())
        version = applied(version, diff)
        assert by_prompt(version) == now
        assert {old.pair for old in version.retracted} == once - set(now.items())
        assert difference(version, facts, [], KEY).empty
