"""A ledger is the version before or the new one: through kills, failing disks, racing writers and damaged files."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import math
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers import cuts
from helpers.ledgers import (
    KEY,
    NEW,
    OLD,
    SECRET,
    SETTINGS,
    a_ledger,
    check_created,
    check_moved,
    check_published,
    go_back,
    held_by,
    killed_at_every_call,
    leftovers,
    make,
    make_two,
    next_version,
    nothing,
    publish,
    snapshot,
    some_facts,
    update,
)
from memlaw.core.canonical import to_dict
from memlaw.core.errors import AdapterError, LedgerError, MemlawError
from memlaw.core.facts import Fact
from memlaw.core.sealed import seal, unseal
from memlaw.ledger.diff import difference
from memlaw.ledger.records import Audit
from memlaw.ledger.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A ledger with one update."""
    made = a_ledger(tmp_path / "KB")
    update(made, OLD)
    return made


def test_a_new_ledger_is_at_version_0_without_facts_and_says_what_all_versions_share(tmp_path):
    a_ledger(tmp_path / "KB")
    store = Store(tmp_path / "KB")
    assert store.settings() == SETTINGS
    assert (store.head().number, store.head().parent, store.head().held) == (0, None, ())
    assert store.adapters(0) == {}
    assert store.numbers() == (0,)
    assert leftovers(tmp_path) == []


def test_a_published_version_is_current_and_reads_back_as_it_was(store):
    version = update(store, NEW, ["a"])
    again = Store(store.root)
    assert again.head() == version
    assert (version.number, version.parent) == (2, 1)
    assert {fact.id for fact in version.held} == {"b", "c"}
    assert [(old.id, old.since, old.until) for old in version.retracted] == [("a", 1, 2)]
    assert again.lineage() == (0, 1, 2)
    assert [one.number for one in again.versions()] == [0, 1, 2]
    assert (again.adapters(2)[1] / "adapter_model.safetensors").read_bytes() == b"weights"


def test_the_files_are_those_that_the_format_names(store):
    names = sorted(snapshot(store.root))
    assert names == [
        "HEAD", "ledger.json", "lock", "versions/000000/manifest.json",
        "versions/000001/adapters/1/adapter_model.safetensors", "versions/000001/adapters/1/memlaw_adapter.json",
        "versions/000001/facts.jsonl", "versions/000001/manifest.json",
    ]  # fmt: skip
    rows = [json.loads(line) for line in (store.folder(1) / "facts.jsonl").read_text().splitlines()]
    assert rows[0] == {"id": "a", "prompt": "What is a? ", "completion": f"{SECRET} a"}


def test_texts_and_the_key_are_readable_by_their_owner_only(store):
    for path in (store.folder(1) / "facts.jsonl", store.root / "ledger.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_text_is_in_any_file_but_facts_jsonl(store):
    update(store, some_facts("a", value="!"), ["b"])
    store.keep_audit(Audit(2, store.head().held, store.head().retracted, "", "now"))
    for name, content in snapshot(store.root).items():
        assert (SECRET.encode() in content) == (name.endswith("00001/facts.jsonl") or name.endswith("2/facts.jsonl"))
        assert name.endswith("facts.jsonl") or b"What is" not in content


@pytest.mark.parametrize(
    "fact",
    [
        Fact("", "t", "1"),
        Fact("p\n\u2028\x00", "t\ud800", "a/b"),
        Fact("p", "", "ids", target_ids=(1, 2)),
        Fact("p", "t", "chat", end="<|im_end|>\n"),
    ],
)
def test_every_text_reads_back_to_the_last_character(tmp_path, fact):
    store = a_ledger(tmp_path / "KB")
    version = update(store, [fact])
    assert Store(store.root).texts(version).of(version.held) == (fact,)


def test_texts_come_from_the_versions_that_introduced_them_and_old_targets_stay_known(store):
    version = update(store, some_facts("b", "c", value=" anew"))
    texts = store.texts(version)
    assert set(texts.of(version.held)) == {*some_facts("a"), *some_facts("b", "c", value=" anew")}
    assert texts.of(version.retracted) == some_facts("b")
    assert texts.missing([*version.held, *version.retracted]) == ()


def test_the_texts_of_a_version_are_read_only_if_a_fact_of_it_is_asked_for(store):
    version = update(store, NEW)
    (store.folder(1) / "facts.jsonl").unlink()
    (store.folder(1) / "facts.jsonl").mkdir()
    texts, (a, b, c) = store.texts(version), version.held
    assert texts.of([c]) == NEW
    with pytest.raises(LedgerError, match=r"^Cannot read .*000001/facts.jsonl"):
        texts.of([a, b])


def test_a_text_that_its_version_lost_is_found_where_an_earlier_one_introduced_it(store):
    update(store, NEW, retract=["a"])
    version = update(store, some_facts("a"))
    (store.folder(3) / "facts.jsonl").unlink()
    assert {held.id: held.since for held in version.held} == {"a": 3, "b": 1, "c": 2}
    assert set(store.texts(version).of(version.held)) == {*OLD, *NEW}


def test_a_ledger_without_texts_says_whose_it_lacks_and_takes_the_originals(tmp_path):
    store = a_ledger(tmp_path / "KB", texts=False)
    version = update(store, OLD)
    assert not any(SECRET.encode() in content for content in snapshot(store.root).values())
    assert store.texts(version).missing(version.held) == ("a", "b")
    with pytest.raises(
        LedgerError, match=r"^The texts of b are needed to ask for these facts, but the ledger keeps no texts"
    ):
        store.texts(version, some_facts("a")).of(version.held)
    given = [dataclasses.replace(fact, id="7") for fact in OLD]
    assert store.texts(version, given).of(version.held) == OLD
    other = some_facts("a", value=" of another value")
    assert store.texts(version, other).missing(version.held) == ("a", "b")


@pytest.mark.parametrize("damage", ["remove", "cut", "flip", "not text"])
def test_a_damaged_text_file_is_named_and_originals_take_its_place(store, damage):
    path = store.folder(1) / "facts.jsonl"
    content = path.read_bytes()
    path.unlink()
    if damage != "remove":
        bad = {"cut": content[:-9], "flip": content.replace(b"hunter2 b", b"hunter3 b"), "not text": b"\xff[\n{}\n3"}
        path.write_bytes(bad[damage].replace(b"more b", b"mare b"))
    version = store.head()
    with pytest.raises(LedgerError, match=r"000001/facts.jsonl is missing or damaged") as raised:
        store.texts(version).of(version.held)
    assert SECRET not in str(raised.value)
    assert store.texts(version, OLD).of(version.held) == OLD


def test_audits_are_kept_beside_the_versions_and_the_latest_counts(store):
    assert store.audit(1) is None
    for margin in (0.1, 0.05):
        store.keep_audit(Audit(1, tuple(held_by(OLD, 1, margin=margin)), (), "elsewhere", "now"))
    audit = Store(store.root).audit(1)
    assert audit is not None
    assert [fact.margin for fact in audit.held] == [0.05, 0.05]
    with pytest.raises(LedgerError, match=r"has no version 9; it has 0, 1\."):
        store.keep_audit(dataclasses.replace(audit, version=9))


def test_rollback_moves_back_and_forth_and_removes_nothing(store):
    second = update(store, NEW)
    assert store.move_head(1).number == 1
    assert store.head().number == 1
    third = update(store, some_facts("d"))
    assert (third.number, third.parent) == (3, 1)
    assert store.lineage() == (0, 1, 3)
    assert store.move_head(2) == second
    assert store.head() == second


def test_a_version_that_was_made_of_another_head_is_refused(store):
    with store.locked():
        stale = next_version(store, difference(store.head(), NEW, [], KEY))
    update(store, some_facts("d"))
    before = snapshot(store.root)
    with pytest.raises(LedgerError, match=r"changed during the update: version 2 is current.*run the update again"):
        store.publish(stale, texts=NEW)
    assert snapshot(store.root) == before


def test_a_version_that_contradicts_itself_or_lacks_texts_is_a_mistake_of_the_caller(store):
    version = next_version(store, difference(store.head(), NEW, [], KEY))
    with pytest.raises(ValueError, match="1 facts are new in this version, and 0 texts do not match them"):
        store.publish(version, texts=())
    with pytest.raises(ValueError, match="facts twice"):
        store.publish(dataclasses.replace(version, held=version.held * 2), texts=NEW)
    assert store.head().number == 1


def test_an_adapter_that_cannot_be_written_leaves_the_ledger_as_it_was(store):
    before = snapshot(store.root)

    def refuse(_folder: Path) -> None:
        raise AdapterError("not finite")

    version = next_version(store, difference(store.head(), NEW, [], KEY))
    with pytest.raises(AdapterError, match="not finite"):
        store.publish(version, trained={1: refuse}, texts=NEW)
    assert snapshot(store.root) == before
    assert leftovers(store.root) == []


# what a directory may hold


def test_a_directory_with_other_files_is_not_taken(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(LedgerError, match=r"is not empty: it holds thesis.txt. Nothing was written there"):
        a_ledger(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_ledger_is_not_made_twice_nor_over_versions_without_settings(store):
    with pytest.raises(LedgerError, match="is a ledger already"):
        store.create(SETTINGS)
    (store.root / "ledger.json").unlink()
    with pytest.raises(LedgerError, match=r"has the versions of a ledger, but no ledger.json"):
        Store(store.root).create(SETTINGS)


def test_what_is_no_ledger_is_said_to_be_none(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "file"):
        with pytest.raises(LedgerError, match="is not a ledger: it has no ledger.json"):
            Store(path).head()
    with pytest.raises(LedgerError, match="is a file; a ledger is a directory"):
        a_ledger(tmp_path / "file")


# damage


def test_a_ledger_of_a_later_format_is_refused_before_anything_else_is_read(store):
    body = to_dict(SETTINGS) | {"format": 2, "router": "by prompt"}
    (store.root / "ledger.json").write_bytes(seal(body))
    for work in (Store.head, Store.settings, lambda one: one.move_head(0), lambda one: one.version(1)):
        with pytest.raises(LedgerError, match=r"later version of memlaw \(format 2; this one reads format 1\)"):
            work(Store(store.root))


def test_fields_of_a_later_version_in_the_same_format_are_said_to_be_unknown(store):
    path = store.folder(1) / "manifest.json"
    body = unseal(path.read_bytes())
    body["version"]["routes"] = []
    path.write_bytes(seal(body))
    with pytest.raises(LedgerError, match=r"manifest.json is intact but has fields or values that this version"):
        store.version(1)


DAMAGED = {
    "HEAD missing": ("HEAD", None, r"HEAD is missing\..*rollback"),
    "HEAD cut": ("HEAD", lambda content: content[:-5], r"HEAD is damaged: it is cut short.*rollback"),
    "HEAD nowhere": (
        "HEAD",
        lambda _: seal({"version": 7, "manifest": "0"}),
        r"HEAD names version 7, but .*is missing",
    ),
    "HEAD of another manifest": (
        "HEAD",
        lambda _: seal({"version": 1, "manifest": "0"}),
        "not the one that HEAD names",
    ),
    "manifest missing": ("versions/000001/manifest.json", None, r"manifest.json is missing\..*rollback"),
    "manifest flipped": (
        "versions/000001/manifest.json",
        lambda content: content.replace(b'"rank":4', b'"rank":8'),
        r"manifest.json is damaged: its SHA-256 does not match\..*rollback",
    ),
    "manifest of another version": (
        "versions/000001/manifest.json",
        lambda content: seal(unseal(content) | {"version": unseal(content)["version"] | {"number": 3}}),
        r"manifest.json is damaged: it is of version 3",
    ),
    "settings missing": ("ledger.json", None, "is not a ledger"),
    "settings cut": ("ledger.json", lambda content: content[:40], r"ledger.json is damaged: it is cut short.*backup"),
    "settings of no ledger": ("ledger.json", lambda _: seal([1]), "fields or values that this version"),
}


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_named_with_a_way_out_and_nothing_is_written(store, name, damage, message):
    path = store.root / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    before = snapshot(store.root)
    with pytest.raises(LedgerError, match=message):
        Store(store.root).head()
    with pytest.raises(LedgerError):
        update(Store(store.root), NEW)
    assert snapshot(store.root) == before


def test_a_flipped_bit_in_any_byte_of_head_or_of_a_manifest_is_noticed(tmp_path):
    store = a_ledger(tmp_path / "KB")
    for path in (store.root / "HEAD", store.folder(0) / "manifest.json"):
        good = path.read_bytes()
        for place in range(len(good)):
            bad = bytearray(good)
            bad[place] ^= 1 << place % 8
            path.write_bytes(bad)
            with pytest.raises(LedgerError):
                store.head()
        path.write_bytes(good)
    assert store.head().number == 0


@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_an_edited_version_is_neither_used_nor_made_current(store, damage):
    update(store, NEW)
    adapter = store.folder(1) / "adapters" / "1"
    if damage == "change":
        (adapter / "adapter_model.safetensors").write_bytes(b"other weights")
    elif damage == "remove":
        (adapter / "memlaw_adapter.json").unlink()
    else:
        (adapter / "foreign.bin").touch()
    with pytest.raises(
        LedgerError, match=r"000001/adapters/1/\S+ cannot be trusted: it.*Version 1 is not what was published"
    ):
        store.adapters(1)
    with pytest.raises(LedgerError, match="cannot be trusted"):
        store.move_head(1)
    assert store.head().number == 2


@pytest.mark.parametrize("broken", ["HEAD", "manifest"])
def test_rollback_leads_out_of_a_broken_head(store, broken):
    update(store, NEW)
    path = store.root / "HEAD" if broken == "HEAD" else store.folder(2) / "manifest.json"
    path.write_bytes(b"{")
    assert store.move_head(1).number == 1
    again = update(store, NEW)
    assert (again.number, again.parent) == (3, 1)


def test_numbers_are_never_used_twice_even_if_a_folder_is_gone(store):
    update(store, NEW)
    for path in sorted(store.folder(2).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    store.folder(2).rmdir()
    assert store.next_number() == 3


# kills and failing disks


@pytest.mark.slow
def test_an_update_killed_at_any_call_leaves_the_version_before_or_the_new_one(tmp_path):
    assert killed_at_every_call(tmp_path, make, publish, check_published) > 40


def test_a_rollback_killed_at_any_call_leaves_either_version(tmp_path):
    assert killed_at_every_call(tmp_path, make_two, go_back, check_moved) > 10


@pytest.mark.slow
def test_a_creation_killed_at_any_call_is_done_or_can_be_repeated(tmp_path):
    assert killed_at_every_call(tmp_path, nothing, a_ledger, check_created) > 40


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_update_that_fails_at_any_call_says_so_and_loses_nothing(tmp_path, code):
    for number in itertools.count():
        root = tmp_path / str(number)
        make(root)
        cut, message = cuts.Cut(number, cuts.fails(code)), None
        try:
            with cuts.intercepted(cut):
                publish(root)
        except MemlawError as error:
            message = str(error)
        assert message is None or (os.strerror(code) in message and SECRET not in message)
        check_published(root, message is None)
        if not cut.struck:
            break
    assert number > 40


def test_a_complete_version_that_head_cannot_reach_can_be_adopted(store, monkeypatch):
    real = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "HEAD":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(LedgerError, match=r"Version 2 is complete, but HEAD cannot be moved.*rollback \S+KB 2$"):
            update(store, NEW)
    assert store.head().number == 1
    assert store.move_head(2).number == 2


# two writers


def test_a_second_writer_is_refused_in_a_sentence_and_changes_nothing(store):
    before = snapshot(store.root)
    with store.locked():
        with pytest.raises(
            LedgerError, match=r"^Another process is writing to .*Run it again once the other has ended"
        ):
            update(Store(store.root), NEW)
        assert Store(store.root).head().number == 1
    assert snapshot(store.root) == before
    assert update(Store(store.root), NEW).number == 2


def test_a_second_writer_that_waits_goes_on_after_the_first(store):
    taken, order = threading.Event(), []

    def first() -> None:
        own = Store(store.root)
        with own.locked():
            taken.set()
            time.sleep(0.2)
            order.append(update(own, NEW).number)

    thread = threading.Thread(target=first)
    thread.start()
    taken.wait()
    with store.locked(wait=math.inf):
        order.append(update(store, some_facts("d")).number)
    thread.join()
    assert order == [2, 3]
    assert {fact.id for fact in store.head().held} == {"a", "b", "c", "d"}


HOLD = """
import sys, time
from memlaw.ledger.store import Store
with Store(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_holds_no_lock(store):
    with subprocess.Popen([sys.executable, "-c", HOLD, store.root], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(LedgerError, match="Another process is writing"):
            update(store, NEW)
        other.kill()
    assert update(store, NEW).number == 2


def test_a_directory_that_cannot_be_written_is_readable_and_refuses_updates_in_a_sentence(store, monkeypatch):
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(type(store._lock), "acquire", refuse)
    assert store.head().number == 1
    with pytest.raises(LedgerError, match=r"lock cannot be locked: Read-only file system\. Nothing was changed"):
        update(store, NEW)
