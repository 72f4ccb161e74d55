"""Facts measured again on a tiny model: by their version's own adapter, and by one that is served elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers import tiny
from helpers.fingerprints import everything
from helpers.real_ledgers import FIRST, SECOND, two_updates
from memlaw.core.errors import AdapterError, LedgerError
from memlaw.ledger.audited import audit
from memlaw.ledger.records import Held
from memlaw.ledger.served import export
from memlaw.ledger.store import Store
from memlaw.model.base import Base


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base()


@pytest.fixture(scope="module")
def made(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_updates(tmp_path_factory.mktemp("ledger") / "KB", base).root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(made, tmp_path / "KB"))


def by_id(held: tuple[Held, ...]) -> dict[str, Held]:
    return {fact.id: fact for fact in held}


@pytest.mark.parametrize("number", [1, 2])
def test_an_audit_finds_what_was_measured_before_publishing(store: Store, base: Base, number: int) -> None:
    published, before = store.version(number), everything(base.model)
    found = audit(store, base, number)
    assert everything(base.model) == before
    assert [(fact.id, fact.verdict) for fact in found.held] == [(fact.id, fact.verdict) for fact in published.held]
    assert [fact.margin for fact in found.held] == pytest.approx([fact.margin for fact in published.held], abs=1e-4)
    assert [old.log_p for old in found.retracted] == pytest.approx([o.log_p for o in published.retracted], abs=1e-3)
    assert (found.returned, found.adapter, found.side_effects) == ((), "", None)
    assert store.audit(number) == found


def test_the_current_version_is_audited_unless_another_is_named(store: Store, base: Base) -> None:
    assert audit(store, base).version == 2
    store.move_head(1)
    assert audit(store, base).version == 1


def test_a_server_that_missed_an_update_lacks_what_changed_and_repeats_what_was_retracted(
    store: Store, base: Base, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    export(store, served, 1)
    found = audit(store, base, adapter=served)
    assert {fact.id: fact.verdict for fact in found.held} == {"a": "lost", "c": "certified", "d": "lost"}
    assert by_id(found.held)["c"].margin == pytest.approx(by_id(store.version(1).held)["c"].margin, abs=1e-4)
    assert sorted(found.returned) == ["a", "b"]  # the old target of a, and b
    assert found.adapter == str(served)


def test_side_effects_are_measured_if_asked_for(store: Store, base: Base) -> None:
    effects = audit(store, base, harm=True).side_effects
    published = store.head().side_effects
    assert effects is not None
    assert published is not None
    assert effects.loss_difference == pytest.approx(published.loss_difference, abs=1e-3)


def test_an_empty_version_has_nothing_to_measure(store: Store, base: Base) -> None:
    found = audit(store, base, 0, harm=True)
    assert (found.held, found.retracted, found.side_effects, found.rounding) == ((), (), None, None)


def test_a_ledger_without_texts_asks_for_the_originals_by_id(base: Base, tmp_path: Path) -> None:
    store = two_updates(tmp_path / "KB", base, texts=False)
    with pytest.raises(LedgerError, match="The texts of c, d, a are needed"):
        audit(store, base)
    assert {fact.verdict for fact in audit(store, base, originals=(*FIRST, *SECOND)).held} == {"certified"}


def test_another_base_a_damaged_adapter_and_no_adapter_are_refused(store: Store, base: Base, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="made for another base model"):
        audit(store, tiny.base(seed=1))
    with pytest.raises(AdapterError):
        audit(store, base, adapter=tmp_path)
    folder = store.adapters(2)[1]
    assert folder is not None
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(LedgerError, match="Version 2 is not what was published"):
        audit(store, base)
    assert store.audit(2) is None
