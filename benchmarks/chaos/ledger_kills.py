"""SIGKILL writers that race for one ledger: no acknowledged fact is lost, and no version is half there.

    python benchmarks/chaos/ledger_kills.py [--kills 1000] [--writers 2] [--seed 0]

A writer waits for the lock, adds facts, changes one and retracts one, and acknowledges the version only after
`Store.publish` has returned; its adapter is a file with the facts. After every kill the current version must be whole,
be no older than the last acknowledged one, and hold what was acknowledged. In the end every acknowledged version must
be there, and hold what its parent held but for what it says that it changed. A ledger lasts for 25 kills, and is made
by the writers as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from memlaw.core.config import TrainConfig
from memlaw.core.errors import MemlawError
from memlaw.core.facts import Fact
from memlaw.ledger.diff import difference
from memlaw.ledger.records import Adapter, Settings, Version, drop, hold
from memlaw.ledger.store import Store
from memlaw.ledger.upkeep import verify

KEY = "a5" * 32
SETTINGS = Settings("model", "base", "tokenizer", "down_proj@2", 4, 4.0, TrainConfig(), eos=True, texts=True, key=KEY)

KILLS_PER_LEDGER = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, begun, counts = random.Random(options.seed), time.monotonic(), Counter[str]()
    left = options.kills
    while left:
        kills = min(left, KILLS_PER_LEDGER)
        with tempfile.TemporaryDirectory() as folder:
            counts += Trial(Path(folder), options.writers, chance).run(kills)
        left -= kills
    print(json.dumps({
        "benchmark": "chaos", "case": f"ledger, SIGKILL of {options.writers} racing writers", "kills": options.kills,
        "acknowledged": 0, "lost_facts": 0, "half_versions": 0, "failed_writers": 0, **counts,
        "seconds": round(time.monotonic() - begun), "seed": options.seed,
    }), flush=True)  # fmt: skip


@dataclass(frozen=True)
class Writer:
    process: int
    pipe: int
    """On which it acknowledges."""


class Trial:
    """One ledger and the writers that race for it."""

    def __init__(self, root: Path, writers: int, chance: random.Random) -> None:
        self.root, self.chance = root, chance
        self.counts: Counter[str] = Counter()
        self.expected: dict[int, dict[str, str]] = {}
        """Every acknowledged version -> what it says that it holds: id -> target."""
        self.generation = 0
        self.living = [self._writer() for _ in range(writers)]

    def run(self, kills: int) -> Counter[str]:
        for _ in range(kills):
            writer = self.living.pop(self.chance.randrange(len(self.living)))
            select.select([writer.pipe], [], [], 0.2)  # one that has not begun would not be worth a kill
            time.sleep(self.chance.expovariate(1 / 0.01))
            self._kill(writer)
            self._check()
            self.living.append(self._writer())
        for writer in self.living:
            self._kill(writer)
        self._check()
        self._check_all()
        return self.counts

    def _writer(self) -> Writer:
        self.generation += 1
        reading, writing = os.pipe()
        process = os.fork()
        if process:
            os.close(writing)
            return Writer(process, reading)
        try:
            write_versions(self.root, self.generation, writing)  # until it is killed
        except BaseException:
            traceback.print_exc()
        os._exit(1)  # and not back into the code of the parent

    def _kill(self, writer: Writer) -> None:
        os.kill(writer.process, signal.SIGKILL)
        _, status = os.waitpid(writer.process, 0)
        self.counts["failed_writers"] += not os.WIFSIGNALED(status)
        with os.fdopen(writer.pipe) as lines:
            for line in lines:
                number, held = json.loads(line)
                self.expected.setdefault(number, held)
                self.counts["acknowledged"] += 1
                if self.expected[number] != held:
                    self.counts["lost_facts"] += 1

    def _check(self) -> None:
        """The current version is whole, whatever the living writers do meanwhile."""
        store = Store(self.root)
        if not store.exists:  # every writer was killed before it had made the ledger
            self.counts["lost_facts"] += len(self.expected)
            return
        try:
            version = store.head()
            adapter = store.adapters(version.number).get(1)
            facts = {fact.id: fact.target for fact in store.texts(version).of(version.held)}
            stored = json.loads((adapter / "facts.json").read_text()) if adapter else {}
        except (MemlawError, ValueError):
            self.counts["half_versions"] += 1
            return
        self.counts["half_versions"] += stored != facts
        self.counts["lost_facts"] += version.number < max(self.expected, default=0)
        self.counts["lost_facts"] += len(self.expected.get(version.number, {}).items() - facts.items())

    def _check_all(self) -> None:
        """Once nobody writes: every acknowledged version is there, whole, and nothing is left but harmless files."""
        store = Store(self.root)
        if not store.exists:
            return
        report = verify(store)
        self.counts["half_versions"] += len(report.damaged) + len(report.unreadable)
        self.counts["published_but_not_acknowledged"] += len(set(store.numbers()[1:]) - self.expected.keys())
        self.counts["aside"] += len(report.aside)
        for number, held in self.expected.items():
            facts = {}
            with contextlib.suppress(MemlawError):
                version = store.version(number)
                facts = {fact.id: fact.target for fact in store.texts(version).of(version.held)}
            self.counts["lost_facts"] += len(held.items() - facts.items())
        self.counts["lost_facts"] += len(self.expected.keys() - set(store.lineage()))
        for number in store.lineage()[1:]:
            version = store.version(number)
            before = {fact.id for fact in store.version(version.parent or 0).held}
            expected = (before | set(version.change.added)) - set(version.change.retracted)
            self.counts["lost_facts"] += len(expected ^ {fact.id for fact in version.held})
        with store.locked():
            publish_next(store, 0, random.Random(0))
        self.counts["leftovers_after_update"] += len(verify(store).leftovers)


def write_versions(root: Path, generation: int, pipe: int) -> None:
    store, chance = Store(root), random.Random(generation)
    while True:
        with store.locked(wait=60.0):
            if not store.exists:
                store.create(SETTINGS)
            version, held = publish_next(store, generation, chance)
            os.write(pipe, f"{json.dumps([version.number, held])}\n".encode())


def publish_next(store: Store, generation: int, chance: random.Random) -> tuple[Version, dict[str, str]]:
    """The next version, and what it should hold: id -> target."""
    head, number = store.head(), store.next_number()
    known = {fact.id: fact.target for fact in store.texts(head).of(head.held)}
    leaving = chance.sample(sorted(known), min(len(known), 1 + (len(known) > 20)))
    changing = chance.sample(sorted(known.keys() - set(leaving)), min(1, len(known) - len(leaving)))
    given = dict.fromkeys([*changing, *(f"{number}-{place}" for place in range(3))], f"{number} of {generation}")
    diff = difference(head, [Fact(f"What is {name}?", text, name) for name, text in given.items()], leaving, KEY)
    held = {name: text for name, text in known.items() if name not in leaving} | given
    new = (hold(fact, KEY, tokens=3, margin=0.2, verdict="certified", since=number) for fact in diff.to_train)
    dropped = (drop(fact, number, log_p=-20.0, log_p_base=-20.0) for fact in diff.dropped)
    version = Version(
        number, head.number, (*diff.unchanged, *new), (*diff.forbidden, *dropped), diff.change(), 4, "now",
        adapters=(Adapter(1, 4, number, tokens=3 * len(held)),),
    )  # fmt: skip

    def adapter(folder: Path) -> None:
        folder.mkdir()
        (folder / "facts.json").write_text(json.dumps(held))

    return store.publish(version, trained={1: adapter}, texts=diff.to_train), held


if __name__ == "__main__":
    main()
