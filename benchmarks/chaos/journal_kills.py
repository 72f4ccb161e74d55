"""SIGKILL writers that race in one journal: no acknowledged cell is lost, changed, duplicated or unreadable.

    python benchmarks/chaos/journal_kills.py [--kills 2000] [--writers 3] [--seed 0]

Once with hard links and once without. A writer acknowledges a cell, with the SHA-256 of the file that counts, only
after `Journal.publish` has returned. Rivals publish other results of the same cells.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import random
import select
import signal
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from journal_cells import SPEC, report, result, without_links

from memlaw.sweep.journal import Journal, verify

OVERLAP = 4
"""Cells between the starts of two successive writers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for links in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            case = f"journal, SIGKILL of {options.writers} racing writers, {'' if links else 'no '}hard links"
            begun = time.monotonic()
            chance = random.Random(options.seed)
            acknowledged = kill_writers(Path(folder), options.kills, options.writers, links, chance)
            seconds = round(time.monotonic() - begun)
            report(case, kills=options.kills, **judged(Path(folder), acknowledged), seconds=seconds, seed=options.seed)


def kill_writers(root: Path, kills: int, writers: int, links: bool, chance: random.Random) -> dict[int, set[str]]:
    """Rank of every acknowledged cell -> the hashes that its acknowledgements named."""
    Journal(root).claim(SPEC)
    acknowledged: dict[int, set[str]] = defaultdict(set)
    generations = itertools.count()
    living = [_writer(root, next(generations), links) for _ in range(writers)]
    for _ in range(kills):
        process, pipe = living.pop(chance.randrange(len(living)))
        select.select([pipe], [], [], 10)  # one that has not begun would not be worth a kill
        time.sleep(chance.expovariate(1 / 0.01))
        _kill(process, pipe, acknowledged)
        living.append(_writer(root, next(generations), links))
    for process, pipe in living:
        _kill(process, pipe, acknowledged)
    return acknowledged


def _writer(root: Path, generation: int, links: bool) -> tuple[int, int]:
    """A process that publishes cell after cell, and the pipe on which it acknowledges them."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    if not links:
        without_links()
    journal = Journal(root)
    for rank in itertools.count(1 + OVERLAP * generation):
        answer = result(rank, f"of writer {generation}")
        journal.publish(answer)
        os.write(writing, f"{rank} {_hash(root, answer.cell.key)}\n".encode())
    raise AssertionError  # it only ends by a kill


def _kill(process: int, pipe: int, acknowledged: dict[int, set[str]]) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with os.fdopen(pipe) as lines:
        for line in lines:
            rank, named = line.split()
            acknowledged[int(rank)].add(named)


def _hash(root: Path, key: str) -> str:
    return hashlib.sha256((root / "cells" / f"{key}.json").read_bytes()).hexdigest()


def judged(root: Path, acknowledged: dict[int, set[str]]) -> dict[str, int]:
    """The fate of the acknowledged cells, in counts."""
    journal = Journal(root)
    leftovers = len(verify(root).leftovers)
    journal.write_table()
    state = verify(root)
    recorded = {each.cell.rank: _hash(root, each.cell.key) for each in journal.results()}
    return {
        "acknowledged": len(acknowledged),
        "recorded": len(recorded),
        "lost": len(acknowledged.keys() - recorded.keys()),
        "changed": sum(named != {recorded.get(rank)} for rank, named in acknowledged.items()),
        "doubled": len(journal.results()) - len(recorded),
        "unreadable": len(state.damaged) + len(state.unreadable),
        "second_results_kept_aside": len(state.quarantined),
        "leftovers": leftovers,
        "leftovers_after_tidying": len(state.leftovers),
    }


if __name__ == "__main__":
    main()
