"""What `verify` finds."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from helpers.ledgers import SECRET, SETTINGS, a_ledger, held_by, snapshot, some_facts, update
from memlaw.core.canonical import to_dict
from memlaw.core.errors import LedgerError
from memlaw.core.sealed import Fault, seal, unseal
from memlaw.ledger import view
from memlaw.ledger.records import Audit
from memlaw.ledger.store import Store
from memlaw.ledger.upkeep import verify


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two updates, an audit of each, and a view."""
    made = a_ledger(tmp_path / "KB")
    for number, name in enumerate("ab", start=1):
        update(made, some_facts(name))
        made.keep_audit(Audit(number, tuple(held_by(some_facts(name), number)), (), "", "now"))
    view.log(made)
    return made


def test_an_intact_ledger_is_counted_and_left_alone(store):
    before = snapshot(store.root)
    report = verify(store)
    assert report.intact
    assert (report.current, report.facts, report.versions, report.aside) == (2, 2, (0, 1, 2), ())
    assert (report.damaged, report.unreadable, report.foreign, report.leftovers) == ((), (), (), ())
    assert report.view == "current"
    assert snapshot(store.root) == before


SHA = "its SHA-256 does not match"
CUT = "it is cut short or not a file that memlaw sealed"

DAMAGED = {
    "HEAD": ("HEAD", lambda content: content[:-3], CUT),
    "HEAD nowhere": (
        "HEAD", lambda _: seal({"version": 9, "manifest": ""}), "it names version 9, which is missing or damaged",
    ),
    "HEAD astray": (
        "HEAD", lambda _: seal({"version": 1, "manifest": ""}), "it names another manifest than that of version 1",
    ),
    "settings": ("ledger.json", lambda content: content.replace(b"tiny", b"huge"), SHA),
    "manifest": ("versions/000001/manifest.json", lambda content: content.replace(b"0.2", b"0.3"), SHA),
    "another manifest": (
        "versions/000001/manifest.json",
        lambda content: seal(unseal(content) | {"version": unseal(content)["version"] | {"number": 2}}),
        "it is of version 2",
    ),
    "texts": ("versions/000001/facts.jsonl", lambda content: content.replace(b"hunter2", b"hunter3"), SHA),
    "adapter": ("versions/000002/adapters/1/adapter_model.safetensors", lambda content: content + b"\0", SHA),
    "audit": ("audits/000001.json", lambda content: content[1:], CUT),
    "another audit": (
        "audits/000001.json", lambda content: seal(unseal(content) | {"version": 2}), "it is of version 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "why"), DAMAGED.values(), ids=DAMAGED.keys())
def test_every_damaged_file_is_named(store, name, damage, why):
    path = store.root / name
    path.write_bytes(damage(path.read_bytes()))
    report = verify(Store(store.root))
    assert report.damaged == (Fault(name, why),)
    assert not report.intact
    assert SECRET not in str(report)
    number = int(name.split("/")[1]) if name.startswith("versions") else None
    assert report.versions == tuple(one for one in (0, 1, 2) if one != number)


@pytest.mark.parametrize("name", ["facts.jsonl", "adapters/1/memlaw_adapter.json"])
def test_a_file_that_is_gone_or_was_put_into_a_version_is_named(store, name):
    path = store.folder(2) / name
    path.rename(store.folder(1) / "foreign")
    assert verify(store).damaged == (
        Fault("versions/000001/foreign", "it was not published with its version"),
        Fault(f"versions/000002/{name}", "it is missing"),
    )


def test_missing_files_and_those_of_another_version_are_unreadable(store):
    (store.root / "HEAD").unlink()
    (store.folder(1) / "manifest.json").unlink()
    path = store.root / "audits" / "000002.json"
    path.write_bytes(seal(unseal(path.read_bytes()) | {"weather": "fine"}))
    report = verify(store)
    assert report.unreadable == (
        Fault("versions/000001/manifest.json", os.strerror(errno.ENOENT)),
        Fault("HEAD", os.strerror(errno.ENOENT)),
        Fault("audits/000002.json", "it has fields or values of another version of memlaw"),
    )
    assert (report.current, report.facts, report.versions) == (None, None, (0, 2))


def test_versions_without_settings_are_verified_all_the_same(store):
    (store.root / "ledger.json").unlink()
    report = verify(Store(store.root))
    assert [fault.path for fault in report.unreadable] == ["ledger.json"]
    assert report.versions == (0, 1, 2)


def test_foreign_files_and_leftovers_are_named_and_harmless(store):
    (store.root / "notes.txt").touch()
    (store.root / "versions" / "backup").mkdir()
    (store.root / "audits" / "x.txt").touch()
    (store.root / "versions" / ".000003.abc.tmp").mkdir()
    (store.root / ".HEAD.abc.tmp").touch()
    report = verify(store)
    assert report.foreign == ("notes.txt", "versions/backup", "audits/x.txt")
    assert report.leftovers == (".HEAD.abc.tmp", "versions/.000003.abc.tmp")
    assert report.intact
    update(store, some_facts("c"))
    assert verify(store).leftovers == ()


def test_a_version_that_the_current_one_was_not_made_from_is_aside(store):
    store.move_head(1)
    assert verify(store).aside == (2,)
    update(store, some_facts("c"))
    assert (verify(store).aside, verify(store).current) == ((2,), 3)


def test_what_is_no_ledger_or_a_later_one_is_refused(store, tmp_path):
    with pytest.raises(LedgerError, match="is not a ledger"):
        verify(Store(tmp_path))
    (store.root / "ledger.json").write_bytes(seal(to_dict(SETTINGS) | {"format": 9}))
    with pytest.raises(LedgerError, match="later version of memlaw"):
        verify(Store(store.root))
