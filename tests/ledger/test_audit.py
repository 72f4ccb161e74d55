"""The mathematics of an audit, beside its definitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import slow_ledger
from helpers.slow_ledger import History
from memlaw.ledger.audit import Forgetting, forgetting, largest_drops, losses, matrix, shares
from memlaw.ledger.records import Audit, Change, Held, Version


def version(number: int, column: dict[str, tuple[int, float, bool]]) -> Version:
    held = tuple(
        Held(name, f"p{name}", f"t{name}{since}", 3, margin, "certified" if right else "lost", since)
        for name, (since, margin, right) in column.items()
    )
    return Version(number, number - 1 if number else None, held, (), Change(), 4, "now")


def lineage(history: History) -> list[Version]:
    return [version(number, dict(column)) for number, column in enumerate(history)]


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Versions in which facts come, change and go."""
    margin, history, since = st.sampled_from([-0.5, -0.1, 0.05, 0.2]), [], {}
    for number in range(draw(st.integers(0, 6))):
        for name in draw(st.sets(st.sampled_from("abcde"))):
            if name in since and draw(st.booleans()):
                del since[name]
            else:
                since[name] = number
        column = {name: (when, draw(margin)) for name, when in sorted(since.items())}
        history.append({name: (when, value, value > 0) for name, (when, value) in column.items()})
    return history


@given(histories())
def test_accuracy_transfer_and_forgetting_are_those_of_the_definitions(history):
    table = matrix(lineage(history))
    found = shares(table)
    for one in range(len(history)):
        for update in range(len(history)):
            assert found.get((one, update)) == slow_ledger.share(history, one, update)
    result = forgetting(table)
    right = [right for _, _, right in history[-1].values()] if history else []
    assert result.accuracy == (pytest.approx(sum(right) / len(right)) if right else None)
    assert result.backward_transfer == _near(slow_ledger.backward_transfer(history))
    assert result.forgetting == _near(slow_ledger.forgetting(history))


def _near(value: float | None) -> object:
    return None if value is None else pytest.approx(value)


@given(histories())
def test_the_matrix_has_every_margin_in_its_place_and_nothing_else(history):
    table = matrix(lineage(history))
    cells = {
        (fact.id, fact.since, number): margin
        for fact, row in zip(table.facts, table.margins, strict=True)
        for number, margin in zip(table.versions, row, strict=True)
        if margin is not None
    }
    assert cells == {
        (name, since, number): margin
        for number, column in enumerate(history)
        for name, (since, margin, _) in column.items()
    }
    assert [fact.since for fact in table.facts] == sorted(fact.since for fact in table.facts)


@given(histories())
def test_every_loss_is_laid_to_the_update_that_caused_it(history):
    found = losses(matrix(lineage(history)))
    assert {(loss.fact.id, loss.by) for loss in found} == slow_ledger.lost(history)
    assert len(found) == len(slow_ledger.lost(history))
    assert [loss.by for loss in found] == sorted(loss.by for loss in found)
    for loss in found:
        assert loss.margin_after < 0 < loss.margin_before
        later = [n for n in range(loss.by, len(history)) if history[n].get(loss.fact.id, (None,))[0] == loss.fact.since]
        assert loss.regained == next((n for n in later if history[n][loss.fact.id][2]), None)


def test_an_example_by_hand():
    """Update 1 brings a and b, update 2 brings c and costs b, update 3 costs c and regains b."""
    history = [
        {},
        {"a": (1, 0.2, True), "b": (1, 0.2, True)},
        {"a": (1, 0.1, True), "b": (1, -0.3, False), "c": (2, 0.2, True)},
        {"a": (1, 0.05, True), "b": (1, 0.1, True), "c": (2, -0.1, False), "d": (3, 0.3, True)},
    ]
    table = matrix(lineage(history))
    assert shares(table) == {(1, 1): 1.0, (2, 1): 0.5, (2, 2): 1.0, (3, 1): 1.0, (3, 2): 0.0, (3, 3): 1.0}
    assert forgetting(table) == Forgetting(accuracy=0.75, backward_transfer=-0.5, forgetting=0.5)
    assert [(loss.fact.id, loss.by, loss.regained) for loss in losses(table)] == [("b", 2, 3), ("c", 3, None)]
    assert [(drop.fact.id, drop.by) for drop in largest_drops(table)] == [("b", 2), ("c", 3), ("a", 2)]
    assert [drop.fact.id for drop in largest_drops(table, 1)] == ["b"]


def test_audits_and_versions_make_the_same_matrix():
    versions = lineage([{"a": (0, 0.2, True)}, {"a": (0, 0.1, True)}])
    audits = [Audit(one.number, one.held, (), "", "now") for one in versions]
    assert matrix(audits) == matrix(versions)
    assert matrix([versions[0], audits[1]]) == matrix(versions)


def test_a_changed_fact_is_another_row_and_not_forgotten():
    table = matrix(lineage([{}, {"a": (1, 0.2, True)}, {"a": (2, 0.2, True)}]))
    assert [(fact.id, fact.since) for fact in table.facts] == [("a", 1), ("a", 2)]
    assert forgetting(table) == Forgetting(1.0, None, None)
    assert losses(table) == ()
