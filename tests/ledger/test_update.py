"""Updates of a real ledger on a tiny base: what comes back afterwards, what does not, and what a failed one changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import slow_training as reference
from helpers import tiny
from helpers.ledgers import SETTINGS, snapshot
from memlaw.adapter.info import load_info
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import attach
from memlaw.core.config import AUTO, UNTIL_RECALLED, Scaling, TrainConfig
from memlaw.core.errors import AdapterError, ConfigError, DataError, GateError, LedgerError, TrainError
from memlaw.core.facts import Fact, MemorySet
from memlaw.data import encode
from memlaw.ledger import view
from memlaw.ledger.audited import audit
from memlaw.ledger.forecast import Forecaster
from memlaw.ledger.gate import Terms
from memlaw.ledger.measured import encoded
from memlaw.ledger.records import Adapter, Version
from memlaw.ledger.served import routes_of
from memlaw.ledger.store import Store
from memlaw.ledger.training import AGAIN, LEAST, Watch, next_config
from memlaw.ledger.update import NewLedger, Request, create, update
from memlaw.model.base import Base
from memlaw.planning.library import nearest
from memlaw.training.result import StackProgress
from memlaw.training.step_size import RATES

CONFIG = replace(UNTIL_RECALLED, steps=400, learning_rate=2e-2, protect=0.0)
ANY_HARM = Terms(max_harm=math.inf)
ANY = Terms(max_harm=math.inf, allow_loss=99)


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base(max_position_embeddings=32)


def a_ledger(root: Path, base: Base, **changes: Any) -> Store:
    """An empty ledger; `changes` are fields of NewLedger."""
    store = Store(root / "KB")
    create(store, base, replace(NewLedger(6, "down_proj@1-3", CONFIG), **changes))
    return store


def fact(name: str, target: str) -> Fact:
    return Fact(f"Code {name}: ", target, name)


A, B, C = fact("a", "K7Q2"), fact("b", "M3X9"), fact("c", "P1Z5")


def updated(store: Store, base: Base, *facts: Fact, terms: Terms = ANY_HARM, **request: Any) -> Version:
    return update(store, base, Request(facts, terms=terms, **request))


def decoded(store: Store, base: Base, facts: Sequence[Fact], *, eos: bool = True) -> list[bool]:
    """Whether the saved adapter, loaded as any user would, gives each fact by decoding in the plainest way."""
    (folder,) = store.adapters(store.head().number).values()
    encoded = encode(MemorySet(tuple(facts), eos, "test"), base.tokenizer, context=None)
    with attach(base, folder):
        return [reference.greedy(base.model, one.prompt, one.length) == list(one.target) for one in encoded]


def test_a_new_ledger_is_empty_and_knows_its_base(base: Base, tmp_path: Path) -> None:
    store = a_ledger(tmp_path, base)
    settings = store.settings()
    assert (settings.model, settings.base, settings.placement) == (base.name, base.fingerprint, "down_proj@1+2+3")
    assert (settings.rank, settings.scale, settings.train) == (6, 4.0, CONFIG)
    assert (store.head().number, store.head().held, store.adapters(0)) == (0, (), {})
    with pytest.raises(AdapterError):
        create(Store(tmp_path / "other"), base, NewLedger(10_000))
    assert not Store(tmp_path / "other").exists


def test_facts_come_change_and_go(base: Base, tmp_path: Path) -> None:
    store = a_ledger(tmp_path, base)
    first = updated(store, base, A, B)
    assert (first.number, first.parent, first.change.added) == (1, 0, ("a", "b"))
    assert decoded(store, base, [A, B]) == [True, True]

    new = replace(A, target="K7Q3")
    second = updated(store, base, new, C)
    assert (second.change.added, second.change.changed) == (("c",), ("a",))
    assert {held.id: held.since for held in second.held} == {"a": 2, "b": 1, "c": 2}
    assert decoded(store, base, [new, B, C]) == [True, True, True]
    assert decoded(store, base, [A]) == [False]
    (old,) = second.retracted
    assert (old.id, old.since, old.until) == ("a", 1, 2)
    assert old.log_p > old.log_p_base, "it begins as the new one does"

    third = updated(store, base, retract=("b",))
    assert ([held.id for held in third.held], third.change.retracted) == (["c", "a"], ("b",))
    assert decoded(store, base, [new, C]) == [True, True]
    assert decoded(store, base, [B]) == [False]
    gone = next(one for one in third.retracted if one.id == "b")
    assert gone.log_p <= gone.log_p_base + math.log(10)

    for version in (first, second, third):
        assert all(held.verdict == "certified" and held.margin > 0 for held in version.held)
        assert store.version(version.number) == version
        assert version.effort is not None
        assert version.effort.tokens_forwarded > 0
        assert version.side_effects is not None


def test_what_goes_may_come_again_and_a_change_may_be_taken_back(base: Base, tmp_path: Path) -> None:
    store, new = a_ledger(tmp_path, base), replace(A, target="W8T4")
    updated(store, base, A, B)
    updated(store, base, new)
    back = updated(store, base, A, retract=("b",))
    assert [(one.id, one.since, one.until) for one in back.retracted] == [("b", 1, 3), ("a", 2, 3)]
    assert decoded(store, base, [A]) == [True]
    assert decoded(store, base, [new]) == [False]
    again = updated(store, base, B)
    assert (again.change.added, [one.id for one in again.retracted]) == (("b",), ["a"])
    assert {held.id: held.since for held in again.held} == {"a": 3, "b": 4}
    assert decoded(store, base, [A, B]) == [True, True]


@pytest.mark.parametrize(
    ("old", "new", "eos"),
    [
        ("12", "123", True),
        ("12", "123", False),
        ("123", "12", True),
        ("123", "12", False),
        ("K", "M", False),
        ("K7Q2M3", "K7Q2M4", True),
    ],
)
def test_a_changed_fact_comes_back_new_and_not_old(old: str, new: str, eos: bool, base: Base, tmp_path: Path) -> None:
    store, (before, after) = a_ledger(tmp_path, base, eos=eos), (fact("x", old), fact("x", new))
    updated(store, base, before, B)
    version = updated(store, base, after)
    assert [held.verdict for held in version.held] == ["certified", "certified"]
    assert decoded(store, base, [after, B], eos=eos) == [True, True]
    only_its_beginning = not eos and new.startswith(old)
    assert decoded(store, base, [before], eos=eos) == [only_its_beginning]
    assert all(math.isfinite(one.log_p) and math.isfinite(one.log_p_base) for one in version.retracted)


def test_what_the_base_itself_gives_can_be_retracted(base: Base, tmp_path: Path) -> None:
    known = fact("known", "")
    prompt = encode(MemorySet((replace(known, target="x"),), False, ""), base.tokenizer, context=None)[0].prompt
    known = replace(known, target=base.tokenizer.decode(reference.greedy(base.model, prompt, 2)))
    store = a_ledger(tmp_path, base, eos=False)
    updated(store, base, known, A)
    version = updated(store, base, retract=("known",))
    (gone,) = version.retracted
    assert gone.log_p <= gone.log_p_base + math.log(10)
    assert decoded(store, base, [A], eos=False) == [True]


def test_without_any_fact_the_base_is_alone_and_the_next_update_starts_anew(base: Base, tmp_path: Path) -> None:
    store = a_ledger(tmp_path, base)
    updated(store, base, A, B)
    empty = updated(store, base, retract=("a", "b"))
    assert (empty.held, empty.effort, empty.side_effects, store.adapters(2)) == ((), None, None, {})
    assert [(one.id, one.log_p) for one in empty.retracted] == [(one.id, one.log_p_base) for one in empty.retracted]
    assert [held.id for held in updated(store, base, C).held] == ["c"]
    assert decoded(store, base, [C]) == [True]
    assert decoded(store, base, [A, B]) == [False, False]


def test_what_changes_nothing_makes_no_version(base: Base, tmp_path: Path) -> None:
    store = a_ledger(tmp_path, base)
    first = updated(store, base, A)
    assert updated(store, base, A, rank=6) == first == store.head()
    assert updated(store, base) == first


def test_an_update_that_would_harm_the_model_too_much_is_trained_anew(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memlaw.ledger.training.AGAIN", 0.0)  # going on is all but unprotected, so it harms more
    protected = replace(CONFIG, protect=30.0)
    going_on, together, bounded = (
        a_ledger(tmp_path / name, base, config=protected) for name in ("on", "together", "bounded")
    )
    for store in (going_on, bounded):
        updated(store, base, A, B)
    on, anew = updated(going_on, base, C), updated(together, base, A, B, C)
    harms = [version.side_effects.loss_difference for version in (on, anew) if version.side_effects is not None]
    assert harms[1] < harms[0], "or this test shows nothing"
    version = updated(bounded, base, C, terms=Terms(max_harm=sum(harms) / 2))
    assert version.side_effects == anew.side_effects
    efforts = [one.effort for one in (on, anew, version)]
    assert efforts[2] is not None
    assert efforts[2].steps == sum(effort.steps for effort in efforts[:2] if effort is not None)
    assert version.change == on.change


class TestFailures:
    """Whatever fails, the ledger is as it was, and the next update finds it free."""

    @pytest.fixture
    def store(self, base: Base, tmp_path: Path) -> Store:
        store = a_ledger(tmp_path, base)
        updated(store, base, A)
        return store

    def refused(self, store: Store, kind: type[BaseException], why: str | None, work: Callable[[], object]) -> None:
        before = snapshot(store.root)
        with pytest.raises(kind, match=why):
            work()
        assert snapshot(store.root) == before
        with store.locked():
            assert store.head().number == 1

    def test_harm_above_the_bound(self, store: Store, base: Base) -> None:
        self.refused(
            store, GateError, "Version 2 was not published. The model would lose .* at most 0 are allowed",
            lambda: updated(store, base, B, terms=Terms(max_harm=0.0)),
        )  # fmt: skip

    def test_an_interruption(self, store: Store, base: Base) -> None:
        def interrupt(progress: StackProgress) -> None:
            if progress.step == 3:
                raise KeyboardInterrupt

        request = Request((B,), terms=ANY_HARM)
        self.refused(store, KeyboardInterrupt, None, lambda: update(store, base, request, Watch(on_step=interrupt)))
        assert not any(module._forward_hooks for module in base.model.modules())
        assert updated(store, base, B).number == 2

    def test_contradictions(self, store: Store, base: Base) -> None:
        self.refused(store, DataError, "to be retracted", lambda: updated(store, base, A, retract=("a",)))
        self.refused(store, DataError, "no fact with the id 'b'", lambda: updated(store, base, retract=("b",)))

    def test_a_rank_that_is_lower_or_too_high(self, store: Store, base: Base) -> None:
        self.refused(store, ConfigError, "is below the ledger's 6", lambda: updated(store, base, B, rank=4))
        self.refused(store, AdapterError, "Rank 10000 is above 32", lambda: updated(store, base, B, rank=10_000))

    def test_another_base(self, store: Store, base: Base) -> None:
        self.refused(store, LedgerError, "another base model", lambda: updated(store, tiny.base(seed=1), B))

    def test_a_training_that_diverges(self, base: Base, tmp_path: Path) -> None:
        wild = replace(CONFIG, optimizer="adamw", learning_rate=1e38, clip=0.0)
        store = a_ledger(tmp_path / "wild", base, config=wild)
        before = snapshot(store.root)
        with pytest.raises(TrainError, match="Training diverged: .* Nothing was changed"):
            updated(store, base, A, B)
        assert snapshot(store.root) == before


def test_facts_that_do_not_come_back_are_refused_or_published_as_lost(base: Base, tmp_path: Path) -> None:
    store = a_ledger(tmp_path, base, config=replace(CONFIG, steps=1))
    with pytest.raises(GateError, match=r"2 of 2 facts would not be certified .*: a, b\. .*--allow-loss 2\."):
        updated(store, base, A, B)
    assert store.head().number == 0
    version = updated(store, base, A, B, terms=ANY)
    assert ([held.verdict for held in version.held], version.change.lost) == (["lost", "lost"], ("a", "b"))
    assert version.tokens == 0
    texts = store.texts(version)
    assert texts.of(version.held) == (A, B)


@pytest.mark.parametrize("scaling", ["constant", "lora", "rslora"])
def test_a_higher_rank_keeps_the_function_and_has_room_for_more(scaling: Scaling, base: Base, tmp_path: Path) -> None:
    config = replace(CONFIG, scaling=scaling, scale=4.0 if scaling == "constant" else 16.0)
    store = a_ledger(tmp_path, base, rank=4, config=config)
    first = updated(store, base, A, B)
    grown = updated(store, base, rank=7)
    assert (first.rank, grown.rank, grown.change.added) == (4, 7, ())
    logits, scales = [], []
    for number in (1, 2):
        folder = store.adapters(number)[1]
        info = load_info(folder)
        assert info is not None
        scales.append((info.rank, info.scale))
        with attach(base, folder), torch.no_grad():
            logits.append(base.model(torch.tensor([[5, 20, 31, 9, 8, 44]])).logits)
    assert scales == [(4, pytest.approx(config.factor(4))), (7, pytest.approx(config.factor(4)))]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-4)
    assert [held.margin for held in grown.held] == pytest.approx([held.margin for held in first.held], abs=1e-4)
    last = updated(store, base, C)
    assert (last.rank, [held.verdict for held in last.held]) == (7, ["certified"] * 3)
    assert decoded(store, base, [A, B, C]) == [True] * 3


MANY = tuple(fact(f"{name}{place}", f"{place}{name}{place}{name}") for name in "gh" for place in range(2))


@pytest.fixture(scope="module")
def full(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A ledger whose rank 1 is too low for all facts."""
    store = a_ledger(tmp_path_factory.mktemp("full"), base, rank=1, config=replace(CONFIG, steps=80))
    with pytest.raises(GateError, match="facts would not be certified .* --auto-grow"):
        updated(store, base, *MANY)
    updated(store, base, *MANY, auto_grow=True)
    return store


class TestSeveralAdapters:
    """Facts that one adapter cannot hold are spread over several, and an update trains only those that it touches."""

    def routed(self, store: Store, base: Base, facts: Sequence[Fact]) -> list[bool]:
        """Whether decoding gives each fact with the adapter that it is routed to."""
        version, folders = store.head(), store.adapters(store.head().number)
        routes = routes_of(version, store.settings().key)
        folder_of = {one.id: folders.get(routes.of(one.prompt) or 0) for one in facts}
        found = []
        for one in facts:
            folder = folder_of[one.id]
            assert folder is not None
            (row,) = encode(MemorySet((one,), True, "test"), base.tokenizer, context=None)
            with attach(base, folder):
                found.append(reference.greedy(base.model, row.prompt, row.length) == list(row.target))
        return found

    def test_every_fact_comes_back_with_the_adapter_it_is_routed_to(self, full: Store, base: Base) -> None:
        version = full.head()
        assert len(version.adapters) > 1
        assert [one.number for one in version.adapters] == list(range(1, len(version.adapters) + 1))
        assert [held.id for held in version.held] == [one.id for one in MANY]
        assert {held.adapter for held in version.held} == {one.number for one in version.adapters}
        assert sum(one.tokens for one in version.adapters) == version.tokens
        assert all(self.routed(full, base, MANY))

    def test_a_changed_fact_moves_to_the_last_adapter_and_the_others_are_left_alone(
        self, full: Store, base: Base
    ) -> None:
        before = full.head()
        last = before.adapters[-1].number
        old, *others = [one for one in MANY if _adapter_of(before, one) == 1]
        new = replace(old, target="Z9")
        version = updated(full, base, new)
        assert [one.number for one in version.adapters if one.trained == version.number] == [last]
        assert version.adapters[0] == replace(before.adapters[0], tokens=version.adapters[0].tokens)
        assert (_adapter_of(version, new), version.retracted[0].adapter) == (last, 1)
        assert version.effort is not None
        assert before.effort is not None
        assert version.effort.tokens_forwarded < before.effort.tokens_forwarded
        assert self.routed(full, base, [new, *others]) == [True] * (1 + len(others))
        assert self.routed(full, base, [old]) == [False]
        found = audit(full, base)
        assert [held.verdict for held in found.held] == ["certified"] * len(MANY)
        assert found.returned == ()

        gone = updated(full, base, retract=(old.id,))
        assert [one.trained for one in gone.adapters] == [gone.number] * 2, "the old target is trained away as well"
        for folder in full.adapters(gone.number).values():
            (row,) = encode(MemorySet((old,), True, "test"), base.tokenizer, context=None)
            with attach(base, folder):
                assert reference.greedy(base.model, row.prompt, row.length) != list(row.target)
        updated(full, base, old)

    def test_an_adapter_without_facts_is_no_more(self, full: Store, base: Base) -> None:
        before = full.head()
        last = before.adapters[-1].number
        gone = tuple(held.id for held in before.held if held.adapter == last)
        version = updated(full, base, retract=gone)
        assert [one.number for one in version.adapters] == [one.number for one in before.adapters[:-1]]
        assert {old.id for old in version.retracted if old.until == version.number} == set(gone)
        back = updated(full, base, *(one for one in MANY if one.id in gone), auto_grow=True)
        assert len(back.held) == len(MANY)
        assert all(self.routed(full, base, MANY))

    def test_what_more_adapters_do_not_help_is_refused(self, full: Store, base: Base) -> None:
        view.log(full)  # which brings ledger.db up to date
        before = snapshot(full.root)
        with pytest.raises(GateError, match=r"Adapter \d: The model would lose"):
            updated(full, base, C, terms=Terms(max_harm=0.0), auto_grow=True)
        assert snapshot(full.root) == before


def test_by_a_law_an_update_grows_before_it_is_trained(base: Base, tmp_path: Path) -> None:
    store, law = a_ledger(tmp_path, base, rank=1), partial(nearest, ())
    tokens = 15
    needed = Forecaster(base, encoded(base, (A, B, C), True), placement_on("down_proj@1-3", base.model), law)
    assert not needed.likely(1, tokens)
    version = updated(store, base, A, B, C, auto_grow=True, choose=law)
    assert ([one.number for one in version.adapters], version.rank) == ([1], needed.rank_for(tokens, 32))
    assert version.rank == version.adapters[0].rank > 1
    assert decoded(store, base, [A, B, C]) == [True] * 3


def _adapter_of(version: Version, one: Fact) -> int:
    return next(held.adapter for held in version.held if held.id == one.id)


def test_without_texts_an_update_asks_for_the_originals_that_it_needs(base: Base, tmp_path: Path) -> None:
    store = a_ledger(tmp_path, base, texts=False)
    updated(store, base, A, B)
    new = replace(A, target="K7Q3")
    with pytest.raises(LedgerError, match=r"The texts of b are needed .*\(--no-text\)"):
        updated(store, base, new)
    version = updated(store, base, new, originals=(A, B))
    assert ([held.id for held in version.held], [one.id for one in version.retracted]) == (["b", "a"], ["a"])
    assert not list(store.root.rglob("facts.jsonl"))


def test_an_update_takes_the_rate_that_the_first_one_chose(base: Base, tmp_path: Path) -> None:
    store = a_ledger(tmp_path, base, config=replace(CONFIG, learning_rate=AUTO, protect=30.0))
    adapters = [version.adapters[0] for version in (updated(store, base, A), updated(store, base, B))]
    rates = [adapter.learning_rate for adapter in adapters]
    assert rates[0] in RATES["muon"]
    assert rates == [rates[0]] * 2
    assert all(0 < adapter.protection < 30.0 for adapter in adapters)


@pytest.mark.parametrize(
    ("protect", "ended_at", "starts_at"),
    [
        (3000.0, 3.0, 3.0 * AGAIN),
        (3000.0, 2900.0, 3000.0),
        (3000.0, 0.0, 3000.0 * LEAST),
        (3000.0, 1e-300, 3000.0 * LEAST),
        (0.0, 0.0, 0.0),
    ],
)
def test_protection_starts_from_where_it_ended(protect: float, ended_at: float, starts_at: float) -> None:
    settings = replace(SETTINGS, train=replace(UNTIL_RECALLED, protect=protect))
    adapter = Adapter(1, 4, 1, tokens=9, learning_rate=0.05, protection=ended_at)
    config = next_config(settings, adapter)
    assert config == replace(settings.train, protect=starts_at, learning_rate=0.05)
    assert next_config(settings, adapter, anew=True) == replace(settings.train, learning_rate=0.05)
    assert next_config(settings, None) == settings.train


def test_the_factor_of_a_ledger_stays_what_it_was_at_its_first_rank() -> None:
    of_lora = TrainConfig(scale=16.0, scaling="lora")
    config = next_config(replace(SETTINGS, train=of_lora, scale=of_lora.factor(4)), None)
    assert [config.factor(rank) for rank in (4, 8, 32)] == [4.0] * 3
