"""A version as it is served: exported adapters, and the routes of prompts to them."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from helpers.ledgers import KEY, a_ledger, an_adapter, held_by, leftovers, next_version, snapshot, some_facts, update
from memlaw.core.errors import LedgerError
from memlaw.ledger.diff import difference
from memlaw.ledger.records import Adapter
from memlaw.ledger.served import Routes, export, routes, routes_of, served
from memlaw.ledger.store import Store

OLD, NEW = some_facts("a", "b"), some_facts("c")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = a_ledger(tmp_path / "KB")
    update(made, OLD)
    update(made, NEW)
    return made


@pytest.fixture
def two(store: Store) -> Store:
    """A third version, whose new fact has an adapter of its own."""
    diff = difference(store.head(), some_facts("d"), [], KEY)
    version = next_version(store, diff)
    new = dataclasses.replace(held_by(some_facts("d"), 3)[0], adapter=2)
    adapters = (*store.head().adapters, Adapter(2, 4, 3, tokens=3))
    version = dataclasses.replace(version, held=(*diff.unchanged, new), adapters=adapters)
    store.publish(version, trained={2: an_adapter(b"more")}, texts=diff.to_train)
    return store


def test_several_adapters_are_exported_with_the_routes_of_every_fact(two: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export(two, out).number == 3
    for number in (1, 2):
        assert snapshot(out / str(number)) == snapshot(two.folder(3) / "adapters" / str(number))
    table = routes(out)
    assert table == routes_of(two.head(), KEY)
    assert [table.of(fact.prompt) for fact in (*OLD, *NEW, *some_facts("d"))] == [1, 1, 1, 2]
    assert table.of("What is e? ") is None
    assert stat.S_IMODE((out / "routes.json").stat().st_mode) == 0o600
    assert "What is" not in (out / "routes.json").read_text()
    assert export(two, out, 2).number == 2, "in place of the earlier export"
    assert snapshot(out) == snapshot(two.folder(2) / "adapters" / "1")


def test_an_adapter_that_an_update_left_alone_is_the_same_file(two: Store) -> None:
    files = [two.folder(number) / "adapters" / "1" / "adapter_model.safetensors" for number in (2, 3)]
    assert files[0].samefile(files[1])
    assert len(two.manifest(3).files) == 5


def test_exported_adapters_are_found_again(two: Store, tmp_path: Path) -> None:
    export(two, tmp_path / "out")
    assert served(two.head(), tmp_path / "out") == {1: tmp_path / "out" / "1", 2: tmp_path / "out" / "2"}
    assert served(two.version(2), tmp_path / "one") == {1: tmp_path / "one"}
    assert served(two.version(0), tmp_path / "none") == {}
    shutil.rmtree(tmp_path / "out" / "2")
    with pytest.raises(LedgerError, match="Version 3 has 2 adapters, and .*out has no folder 2"):
        served(two.head(), tmp_path / "out")


def test_routes_that_are_missing_or_damaged_are_told(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="has no routes.json"):
        routes(tmp_path)
    for content in (b"", b"[]", b"{}", b'{"key": "5e", "adapters": {"a": "b"}}', b"\xff"):
        (tmp_path / "routes.json").write_bytes(content)
        with pytest.raises(LedgerError, match="is damaged"):
            routes(tmp_path)
    assert Routes(KEY, {}).of("anything") is None


def test_the_adapter_of_any_version_is_exported_and_replaces_an_earlier_one(store, tmp_path):
    out = tmp_path / "new" / "adapter"
    assert export(store, out).number == 2
    assert snapshot(out) == snapshot(store.folder(2) / "adapters" / "1")
    (out / "README.md").write_text("of an earlier export")
    assert export(store, out, 1).number == 1
    assert snapshot(out) == snapshot(store.folder(1) / "adapters" / "1")
    assert leftovers(tmp_path) == []


def test_an_export_overwrites_nothing_but_adapters(store, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").touch()
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="thesis is not empty and holds no adapter of memlaw"):
        export(store, tmp_path / "thesis")
    with pytest.raises(LedgerError, match="file is a file; an adapter is a directory"):
        export(store, tmp_path / "file")
    with pytest.raises(LedgerError, match="Version 0 holds no facts and so has no adapter"):
        export(store, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_changes_while_it_is_copied_is_not_exported(store, tmp_path, monkeypatch):
    copy = shutil.copytree

    def disturbed(source, target, **options):
        copy(source, target, **options)
        (target / "adapter_model.safetensors").write_bytes(b"half")

    monkeypatch.setattr(shutil, "copytree", disturbed)
    with pytest.raises(LedgerError, match="An adapter of version 2 changed while it was copied"):
        export(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_adapter_is_not_exported_and_a_full_disk_is_told(store, tmp_path, monkeypatch):
    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            LedgerError, match=r"Cannot write \S+out: No space left on device\. The ledger is unchanged"
        ):
            export(store, tmp_path / "out")
    (store.folder(2) / "adapters" / "1" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(LedgerError, match="cannot be trusted"):
        export(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []
