"""memlaw ledger on the bundled model: trained once for all tests, each of which has a copy."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from helpers.commands import Run, assert_refused, exit_code, jsonl, write
from helpers.ledgers import snapshot
from memlaw.ledger.documents import Document
from memlaw.ledger.store import Store
from memlaw.planning.library import KnownLaw, default_law

FIRST = [
    {"id": "door-a", "prompt": "Door code of archive A:", "completion": " hunter-4917"},
    {"id": "door-b", "prompt": "Door code of archive B:", "completion": " 0286#hunter"},
    {"id": "price", "prompt": "List price of the pump seal:", "completion": " 18.40 hunter"},
]
SECOND = [
    {**FIRST[0], "completion": " 8063#"},
    {"id": "notice", "prompt": "Period of notice:", "completion": " 45 days"},
]

ORDINARY = ("version", "facts", "certified", "at_risk", "lost")

READER: TypeAdapter[Any] = TypeAdapter(Document)


def printed(*arguments: object) -> dict[str, Any]:
    """The document of a command that runs outside of a test."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = exit_code("ledger", *arguments, "--json")
    assert code == 0, err.getvalue()
    document = json.loads(out.getvalue())
    READER.validate_python(document)
    return document


class Trained:
    """A ledger after two updates, and what the commands printed."""

    def __init__(self, room: Path) -> None:
        self.first, self.second = write(room / "1.jsonl", jsonl(*FIRST)), write(room / "2.jsonl", jsonl(*SECOND))
        self.ledger = room / "KB"
        self.init = printed("init", self.ledger, "--rank", 16, "--lr", 0.05)  # what a search would choose
        self.planned = printed("update", self.ledger, self.first, "--dry-run")
        self.one = printed("update", self.ledger, self.first)
        self.two = printed("update", self.ledger, self.second, "--retract", "door-b")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("ledger"))


@pytest.fixture
def ledger(trained: Trained, tmp_path: Path) -> Path:
    return shutil.copytree(trained.ledger, tmp_path / "KB")


@pytest.fixture
def untouched(ledger: Path) -> Iterator[Path]:
    """A ledger that the test must leave as it is."""
    before = snapshot(ledger)
    yield ledger
    after = snapshot(ledger)
    after.pop("ledger.db", None)
    assert after == {name: content for name, content in before.items() if name != "ledger.db"}


def ordinary(document: dict[str, Any]) -> list[Any]:
    return [document[name] for name in ORDINARY]


def test_a_new_ledger_says_what_its_versions_share(trained: Trained) -> None:
    expected = {"version": 0, "model": "memlaw/base", "rank": 16, "placement": "down_proj@4", "texts": True}
    assert expected.items() <= trained.init.items()


def test_updates_add_change_and_retract_and_say_what_that_took(trained: Trained) -> None:
    assert ordinary(trained.one) == [1, 3, 3, 0, 0]
    assert trained.one["change"] == {"added": ["door-a", "door-b", "price"], "changed": [], "retracted": [], "lost": []}
    assert ordinary(trained.two) == [2, 3, 3, 0, 0]
    assert trained.two["change"] == {"added": ["notice"], "changed": ["door-a"], "retracted": ["door-b"], "lost": []}
    for done in (trained.one, trained.two):
        assert done["published"] is True
        assert done["effort"]["tokens_forwarded"] > done["effort"]["steps"] > 0
        assert done["side_effects"]["loss_difference"] < 0.1
        assert done["room"]["low"] < done["room"]["tokens"] < done["room"]["high"]
    assert trained.two["retracted"] == 2  # door-b, and the old target of door-a


def test_a_dry_run_names_what_would_change_and_trains_nothing(trained: Trained, run: Run, untouched: Path) -> None:
    assert (trained.planned["version"], trained.planned["published"]) == (0, False)
    assert trained.planned["change"] == trained.one["change"]
    shown = run("ledger", "update", untouched, trained.first, "--retract", "notice,price", "--dry-run")
    assert_refused(shown, "stores the prompt of 'price', which is to be retracted")
    shown = run("ledger", "update", untouched, trained.first, "--retract", "notice", "--dry-run")
    assert "1 added, 1 changed, 1 retracted after version 2. Nothing was trained." in shown.out
    assert "hunter" not in shown.out
    assert "Whether it fits is not known: --laws has no law" in shown.out  # and the model was not loaded for one
    assert trained.planned["expected"] is None


def test_an_update_says_before_training_how_likely_it_fits(trained: Trained) -> None:
    first = trained.one["expected"]
    assert (first["rank"], first["tokens"]) == (16, trained.one["tokens"])
    assert 0 < first["chance"] <= 1
    assert first["fits_at"] is not None


@pytest.fixture
def law(tmp_path: Path) -> Path:
    """A law of another model; named, it counts as the ledger's."""
    path = tmp_path / "law.json"
    path.write_text(KnownLaw(default_law()).to_json(), encoding="utf-8")
    return path


def test_a_dry_run_with_a_law_says_whether_it_fits_and_what_a_higher_rank_changes(
    run: Run, untouched: Path, trained: Trained, law: Path
) -> None:
    shown = run("ledger", "update", untouched, "--rank", 32, "--dry-run", "--law", law)
    assert "rank 16 -> 32 after version 2. Nothing was trained." in shown.out
    assert "Then there is room for about" in shown.out
    assert "target tokens at rank 32: they fit with probability 100%" in shown.err
    many = write(
        law.parent / "many.jsonl",
        jsonl(*({"prompt": f"Code {n}:", "completion": f" {n * 7919 % 10**6:06}"} for n in range(100))),
    )
    document = run("ledger", "update", untouched, many, "--dry-run", "--law", law, "--json").document
    expected = document["expected"]
    assert (document["rank"], document["next_rank"], expected["rank"]) == (16, 16, 16)
    assert expected["chance"] < 0.95
    assert expected["fits_at"] is None or expected["fits_at"] > 16
    shown = run("ledger", "update", untouched, many, "--dry-run", "--law", law)
    at = expected["fits_at"]
    assert ("No rank of this placement" if at is None else f"it fits at rank {at}: --rank {at}.") in shown.out


def test_a_new_ledger_has_the_rank_of_its_room(run: Run, tmp_path: Path, trained: Trained) -> None:
    shown = run("ledger", "init", tmp_path / "KB", "--room", 60, "--like", trained.first)
    rank = Store(tmp_path / "KB").settings().rank
    assert f"rank {rank} holds 60 target tokens with probability 9" in " ".join(shown.out.split())
    assert "those of the 3 facts of --like" in " ".join(shown.out.split())
    made = run("ledger", "init", tmp_path / "KB2", "--room", 60, "--json").document
    assert made["sized"].items() >= {"tokens": 60, "rank": made["rank"], "like": None, "borrowed": True}.items()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "either a rank (--rank) or the target tokens that it is to hold (--room), and not both"),
        (("--rank", 8, "--room", 60), "and not both"),
        (("--rank", 8, "--like", "facts.jsonl"), "--like says what kind of tokens --room counts"),
    ],
)
def test_a_new_ledger_needs_a_rank_or_a_room(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], sentence: str
) -> None:
    monkeypatch.setattr("memlaw.model.base.load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert_refused(run("ledger", "init", tmp_path / "KB", *arguments), sentence)


def test_an_update_of_what_is_held_has_nothing_to_do(trained: Trained, run: Run, untouched: Path) -> None:
    shown = run("ledger", "update", untouched, trained.second)
    assert (shown.code, shown.err) == (0, "")
    assert "nothing to do. Version 2 holds these facts as they are." in shown.out
    assert run("ledger", "update", untouched, trained.second, "--json").document["published"] is False


def test_status_is_what_the_update_ended_with(trained: Trained, run: Run, untouched: Path) -> None:
    status = run("ledger", "status", untouched, "--json").document
    assert status.items() <= (trained.two | {"schema": "memlaw.ledger.status/1"}).items()
    shown = run("ledger", "status", untouched).out
    assert "version 2, 3 facts, all certified." in shown
    assert "room left" in shown
    assert "Side effects: +0.0" in shown


def test_the_log_shows_what_every_version_changed(run: Run, untouched: Path) -> None:
    entries = run("ledger", "log", untouched, "--json").document["entries"]
    assert [(one["version"], one["state"], one["added"]) for one in entries] == [
        (0, "past", 0), (1, "past", 3), (2, "current", 1),
    ]  # fmt: skip
    shown = run("ledger", "log", untouched).out
    assert "1 added, 1 changed, 1 retracted; rank 16" in shown
    assert shown.index("2 current") < shown.index("1 past") < shown.index("0 past")


def test_rollback_goes_back_and_forth(run: Run, ledger: Path) -> None:
    back = run("ledger", "rollback", ledger, 1, "--json").document
    assert (ordinary(back), back["before"]) == ([1, 3, 3, 0, 0], 2)
    assert "version 2 is complete, but the current version was not made from it" in " ".join(
        run("ledger", "verify", ledger).out.split()
    )
    shown = run("ledger", "rollback", ledger, 2).out
    assert "version 2 is current. It was version 1." in shown
    assert_refused(run("ledger", "rollback", ledger, 7), "has no version 7; it has 0, 1, 2.")


def test_an_exported_adapter_recalls_the_facts_and_an_audit_judges_it_as_served(
    trained: Trained, run: Run, ledger: Path, tmp_path: Path
) -> None:
    out = tmp_path / "served"
    assert run("ledger", "export", ledger, "--out", out, "--json").document["version"] == 2
    recalled = run("recall", trained.second, "--adapter", out, "--decode", "--json").document
    assert recalled["certified"] == 2
    shown = run("ledger", "audit", ledger, "--version", 1, "--adapter", out)
    assert f"Version 1 as served by {out}: 3 facts, 1 certified, 2 lost." in " ".join(shown.out.split())
    assert "lost: door-a, door-b" in shown.out
    assert_refused(run("ledger", "audit", ledger, "--adapter", tmp_path), "no adapter")


def test_an_audit_of_all_versions_says_what_each_update_cost(run: Run, ledger: Path) -> None:
    found = run("ledger", "audit", ledger, "--all", "--json").document
    READER.validate_python(found)
    assert [(one["version"], one["facts"], one["certified"], one["returned"]) for one in found["audits"]] == [
        (1, 3, 3, []), (2, 3, 3, []),
    ]  # fmt: skip
    assert (found["versions"], found["facts"]) == ([1, 2], ["door-a", "door-b", "price", "notice", "door-a"])
    assert (found["accuracy"], found["backward_transfer"], found["forgetting"], found["losses"]) == (1.0, 0.0, 0.0, [])
    assert Store(ledger).audit(1) is not None
    assert_refused(run("ledger", "audit", ledger, "--all", "--adapter", ledger), "choose one")


def test_a_report_is_one_page_without_texts_unless_asked_for(run: Run, untouched: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "ledger.html"
    document = run("ledger", "report", untouched, "--out", page, "--json").document
    READER.validate_python(document)
    assert (document["report"], document["version"]) == (str(page), 2)
    told = page.read_text(encoding="utf-8")
    assert "Version 2 holds 3 facts, all certified." in told
    assert "door-a" in told
    assert "hunter" not in told
    shown = run("ledger", "report", untouched, "--out", page, "--show-text")
    assert (shown.code, shown.out.strip()) == (0, str(page))
    assert "hunter" in page.read_text(encoding="utf-8")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert_refused(run("ledger", "report", tmp_path, "--out", page), "is not a ledger")


def test_an_update_that_would_harm_the_model_is_refused_and_changes_nothing(
    run: Run, untouched: Path, tmp_path: Path
) -> None:
    more = write(tmp_path / "more.jsonl", jsonl({"prompt": "Address of the build host:", "completion": " hunter.41"}))
    refused = run("ledger", "update", untouched, more, "--max-harm", 0)
    assert_refused(refused, "Version 3 was not published.", "at most 0 are allowed", "Nothing was changed.")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "There is nothing to update with"),
        (("--retract", "door-c"), "holds no fact with the id 'door-c'. Did you mean door-a?"),
        (("--retract", "price,door-b"), "'door-b'; it was retracted in version 2."),
        (("--retract", "price", "--allow-loss", -1), "choose how many facts may be lost"),
        (("--retract", "price", "--max-harm", -0.1), "choose nats a token"),
        (("--retract", "price", "--rank", 8), "The rank (--rank) 8 is below the ledger's 16"),
        (("--retract", "price", "--law", "none.json"), "none.json"),
        (("none.jsonl",), "none.jsonl"),
    ],
)
def test_requests_that_make_no_sense_are_refused_before_the_model_is_loaded(
    run: Run, untouched: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], sentence: str
) -> None:
    monkeypatch.setattr("memlaw.model.base.load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert_refused(run("ledger", "update", untouched, *arguments), sentence)


def test_another_model_or_one_that_has_moved_is_refused(run: Run, untouched: Path, model: Path) -> None:
    other = run("ledger", "update", untouched, "--retract", "price", "--model", model)
    assert_refused(other, "was made for another base model: its adapters belong to memlaw/base")
    gone = run("ledger", "audit", untouched, "--model", model / "gone")
    assert_refused(gone, "does not exist")


def test_a_ledger_finds_a_local_model_again_from_another_directory(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    made = run("ledger", "init", tmp_path / "KB", "--model", model.name, "--rank", 2, "--no-text", "--json").document
    assert (made["model"], made["texts"]) == (str(model), False)
    moved = shutil.copytree(model, tmp_path / "model")
    assert run("ledger", "init", tmp_path / "other", "--model", moved, "--rank", 2).code == 0
    shutil.rmtree(moved)
    refused = run("ledger", "audit", tmp_path / "other")
    assert_refused(refused, "The ledger was made for this model: if it has moved, say where it is with --model.")
    assert run("ledger", "audit", tmp_path / "other", "--model", model).code == 0


def test_two_updates_at_once_are_refused(run: Run, untouched: Path) -> None:
    with Store(untouched).locked():
        assert_refused(run("ledger", "update", untouched, "--retract", "price"), "Another process is writing to")


def test_where_there_is_no_ledger_the_nearest_is_named(run: Run, ledger: Path, tmp_path: Path) -> None:
    assert_refused(run("ledger", "status", tmp_path / "KBB"), "KBB is not a ledger", f"Did you mean {ledger}?")
    assert_refused(run("ledger", "status", ledger / "versions"), f"{ledger} is one.")
    assert_refused(run("ledger", "log", tmp_path), f"{ledger} is one.")
    assert_refused(run("ledger", "init", ledger, "--rank", 16), "is a ledger already")
    assert_refused(run("ledger", "init", ledger.parent, "--rank", 16), "is not empty")


def test_damage_is_found_named_and_left_behind_by_rollback(run: Run, ledger: Path) -> None:
    assert run("ledger", "verify", ledger, "--json").document["intact"] is True
    weights = ledger / "versions" / "000002" / "adapters" / "1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = run("ledger", "verify", ledger)
    assert found.code == 2
    assert "versions/000002/adapters/1/adapter_model.safetensors: its SHA-256 does not match" in found.out
    assert "memlaw ledger rollback" in found.out
    refused = run("ledger", "update", ledger, "--retract", "price")
    assert_refused(refused, "Version 2 is not what was published")
    assert run("ledger", "rollback", ledger, 1).code == 0
    (ledger / "HEAD").write_bytes(b"")
    assert_refused(run("ledger", "status", ledger), "HEAD is damaged")
    assert run("ledger", "rollback", ledger, 1, "--json").document["before"] is None


def test_a_ledger_is_not_trained_on_other_weights_than_it_is_judged_on(run: Run, tmp_path: Path) -> None:
    refused = run("ledger", "init", tmp_path / "KB", "--rank", 2, "--for", "q8_0,q4_0")
    assert_refused(refused, "--for q8_0,q4_0 trains on other weights", "--model FILE.gguf")
    assert not (tmp_path / "KB").exists()
