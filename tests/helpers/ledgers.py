"""Ledgers without a model: facts of a few letters, and an adapter that is a file with a few bytes."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from helpers import cuts
from memlaw.core.config import UNTIL_RECALLED
from memlaw.core.facts import Fact
from memlaw.ledger.diff import Diff, difference
from memlaw.ledger.records import Adapter, Held, Settings, Verdict, Version, drop, hold
from memlaw.ledger.store import Store

KEY = "5e" * 32

SETTINGS = Settings(
    model="tiny", base="weights", tokenizer="tokens", placement="down_proj@2", rank=4, scale=4.0,
    train=UNTIL_RECALLED, eos=True, texts=True, key=KEY,
)  # fmt: skip

SPAWN = multiprocessing.get_context("spawn")

SECRET = "hunter2-and-more"
"""Text in every target of `some_facts`, which nothing but facts.jsonl may hold."""


def some_facts(*names: str, value: str = "") -> tuple[Fact, ...]:
    """Facts with these ids; another `value` makes another target."""
    return tuple(Fact(f"What is {name}? ", f"{SECRET} {name}{value}", name) for name in names)


OLD, NEW = some_facts("a", "b"), some_facts("c")


def a_ledger(root: Path, **changes: Any) -> Store:
    store = Store(root)
    store.create(dataclasses.replace(SETTINGS, **changes))
    return store


def held_by(facts: Iterable[Fact], since: int, *, margin: float = 0.2, verdict: Verdict = "certified") -> list[Held]:
    return [hold(fact, KEY, tokens=3, margin=margin, verdict=verdict, since=since) for fact in facts]


def next_version(store: Store, diff: Diff) -> Version:
    """The version that a training would make of HEAD, with every fact certified."""
    head, number = store.head(), store.next_number()
    dropped = tuple(drop(held, number, log_p=-20.0, log_p_base=-30.0) for held in diff.dropped)
    held = (*diff.unchanged, *held_by(diff.to_train, number))
    return Version(
        number=number, parent=head.number, held=held, retracted=diff.forbidden + dropped, change=diff.change(), rank=4,
        created="2026-11-28T12:00:00+00:00", adapters=(Adapter(1, 4, number, tokens=3 * len(held)),),
    )  # fmt: skip


def an_adapter(content: bytes = b"weights") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(content)
        (folder / "memlaw_adapter.json").write_text("{}")

    return write


def update(store: Store, facts: Sequence[Fact], retract: Sequence[str] = ()) -> Version:
    """What `memlaw ledger update` does to the files."""
    with store.locked():
        diff = difference(store.head(), facts, retract, store.settings().key)
        version = next_version(store, diff)
        return store.publish(version, trained={1: an_adapter()}, texts=diff.to_train)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def leftovers(root: Path) -> list[Path]:
    return list(root.rglob("*.tmp"))


def killed_at_every_call(
    folder: Path, make: Callable[[Path], None], work: Callable[[Path], None], check: Callable[[Path, bool], None]
) -> int:
    """For every system call of `work`, do it on what `make` made until that call kills it, then `check`.

    Returns the number of calls. The functions must be those of a module: all of it happens in a process of its own,
    since forks do not go well with threads.
    """
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        return pool.submit(_killed_at_every_call, folder, make, work, check).result()


def _killed_at_every_call(
    folder: Path, make: Callable[[Path], None], work: Callable[[Path], None], check: Callable[[Path, bool], None]
) -> int:
    for number in itertools.count():
        root = folder / str(number)
        make(root)
        child = os.fork()
        if not child:
            with cuts.intercepted(cuts.Cut(number, cuts.die)):
                work(root)
            os._exit(0)
        _, ended = os.waitpid(child, 0)
        check(root, not os.WIFSIGNALED(ended))
        if not os.WIFSIGNALED(ended):
            return number
    raise AssertionError


def nothing(_root: Path) -> None:
    pass


def make(root: Path) -> None:
    update(a_ledger(root), OLD)


def publish(root: Path) -> None:
    update(Store(root), NEW)


def check_published(root: Path, acknowledged: bool) -> None:
    """Version 1 or 2, whole; the killed writer holds no lock, and the next update finds everything in its place."""
    store = Store(root)
    version = store.head()
    assert version.number in ((2,) if acknowledged else (1, 2))
    assert {fact.id for fact in version.held} == ({"a", "b"} if version.number == 1 else {"a", "b", "c"})
    assert len(store.texts(version).of(version.held)) == len(version.held)
    assert store.adapters(version.number)[1].is_dir()
    for number in store.numbers():
        store.check_files(store.manifest(number))
    highest = store.numbers()[-1]
    assert update(store, NEW + some_facts("d")).number == highest + 1
    assert {fact.id for fact in store.head().held} == {"a", "b", "c", "d"}
    assert leftovers(root) == []


def make_two(root: Path) -> None:
    make(root)
    publish(root)


def go_back(root: Path) -> None:
    Store(root).move_head(1)


def check_moved(root: Path, acknowledged: bool) -> None:
    """Version 1 or 2 is current, and the other can be made so."""
    assert Store(root).head().number in ((1,) if acknowledged else (1, 2))
    assert Store(root).move_head(2).number == 2


def check_created(root: Path, acknowledged: bool) -> None:
    """A ledger, or a directory where one can be made."""
    store = Store(root)
    assert store.exists or not acknowledged
    if not store.exists:
        store.create(SETTINGS)
    assert update(store, OLD).number == 1
    assert leftovers(root) == []
