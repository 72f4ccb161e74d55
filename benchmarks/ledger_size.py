"""What an update of 10 facts costs a ledger that holds 100, 1,000 or 10,000, and what the commands cost that only read.

    OMP_NUM_THREADS=1 python benchmarks/ledger_size.py [--sizes 100,1000,10000] [--repeats 3] [--rank 16]

Real is everything that is measured: the update, with the default law, trains 10 random codes, rehearses the 100 facts
of the last adapter, measures, and publishes a version beside 1, 10 or 100 adapters. Only how the ledger came about is
not: to train 10,000 facts takes hours, so the stored ones are such that the bundled base alone gives their targets with
p > 1/2, and their adapters, of the real size, are new ones, which change nothing. They come in versions of 500 facts,
adapters of 100. The facts of the last adapter and the 10 new ones are the same in every ledger; so are the steps and
the tokens forwarded, unless an update does work for facts of other adapters.

One line for each size, in seconds of processor time, medians of --repeats: `update`, `files` (the update but for
training and measuring), `status`, `verify`, `log` of a ledger.db that is up to date, `view` (which makes ledger.db
anew). `wall` is the update on the clock, which on a busy machine counts what others do.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import rounded

from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import save
from memlaw.adapter.stack import AdapterStack
from memlaw.core.facts import Fact
from memlaw.diagnosis.measure import measure
from memlaw.ledger import training, view
from memlaw.ledger.gate import Terms, verdict
from memlaw.ledger.layout import VIEW
from memlaw.ledger.measured import encoded
from memlaw.ledger.records import Adapter, Change, Held, Version, hold, now
from memlaw.ledger.status import status
from memlaw.ledger.store import Store
from memlaw.ledger.update import NewLedger, Request, create, update
from memlaw.ledger.upkeep import verify
from memlaw.model.base import Base, load
from memlaw.planning.library import nearest

PER_ADAPTER = 100
ADAPTERS_PER_VERSION = 5
NEW = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100,1000,10000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    base, sizes = load("memlaw/base"), [int(size) for size in args.sizes.split(",")]
    known = known_facts(base, max(sizes))
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            store = stocked(Path(folder), base, known[-size:], args.rank)
            print(
                json.dumps({"benchmark": "ledger_size", "facts": size, **costs(store, base, args.repeats)}), flush=True
            )


def known_facts(base: Base, count: int) -> list[tuple[Fact, int, float]]:
    """Facts that the base alone brings back, with target tokens and margins in nats."""
    facts = [Fact(f"    def f{place}(", "self", str(place)) for place in range(count + count // 4)]
    items = measure(base, encoded(base, facts, eos=False), decode=True).items
    found = [
        (fact, item.length, item.margin)
        for fact, item in zip(facts, items, strict=True)
        if verdict(item) == "certified"
    ]
    if len(found) < count:
        raise SystemExit(f"The base knows {len(found)} of {len(facts)} facts, and {count} are needed.")
    return found[:count]


def stocked(folder: Path, base: Base, known: Sequence[tuple[Fact, int, float]], rank: int) -> Store:
    """A ledger that holds these facts in adapters that change nothing."""
    store, blank = Store(folder / "ledger"), folder / "blank"
    create(store, base, NewLedger(rank, eos=False))
    settings = store.settings()
    where = placement_on(settings.placement, base.model)
    stack = AdapterStack.start(where.sites, [(rank, settings.train)], device="cpu", dtype="float32")
    save(stack, where, base, blank)
    held: tuple[Held, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    step = PER_ADAPTER * ADAPTERS_PER_VERSION
    for number, first in enumerate(range(0, len(known), step), start=1):
        part = known[first : first + step]
        new = tuple(
            replace(
                hold(fact, settings.key, tokens=tokens, margin=margin, verdict="certified", since=number),
                adapter=len(adapters) + place // PER_ADAPTER + 1,
            )
            for place, (fact, tokens, margin) in enumerate(part)
        )
        opened = sorted({fact.adapter for fact in new})
        held += new
        adapters += tuple(
            Adapter(one, rank, number, sum(fact.tokens for fact in new if fact.adapter == one)) for one in opened
        )
        store.publish(
            Version(number, number - 1, held, (), Change(tuple(fact.id for fact in new)), rank, now(), None, adapters),
            trained=dict.fromkeys(opened, partial(shutil.copytree, blank)),
            texts=[fact for fact, _, _ in part],
        )
    return store


def costs(store: Store, base: Base, repeats: int) -> dict[str, object]:
    """Processor time of an update and of what only reads, each from the same version."""
    start, size = store.head(), sum(path.stat().st_size for path in store.folder(store.head().number).rglob("*"))
    draw = random.Random(1)
    facts = tuple(Fact(f"Code {place}: ", f"{draw.randrange(10**6):06d}", f"new{place}") for place in range(NEW))
    request = Request(facts, terms=Terms(max_harm=math.inf), choose=partial(nearest, ()))
    seconds: dict[str, list[float]] = {}
    walls = []
    for _ in range(repeats):
        store.move_head(start.number)
        view.log(store)
        begun = time.monotonic()
        with clock() as model:
            total = _timed(lambda: update(store, base, request))
        walls.append(time.monotonic() - begun)
        cases = {"update": total, "files": total - model.seconds}
        cases |= {"status": _timed(lambda: status(store)), "verify": _timed(lambda: verify(store))}
        view.log(store)
        cases["log"] = _timed(lambda: view.log(store))
        (store.root / VIEW).unlink()
        cases["view"] = _timed(lambda: view.log(store))
        for name, taken in cases.items():
            seconds.setdefault(name, []).append(taken)
    effort = store.head().effort
    assert effort is not None
    return {
        "adapters": len(start.adapters),
        "versions": len(store.numbers()),
        "bytes_of_version": size,
        "steps": effort.steps,
        "tokens_forwarded": effort.tokens_forwarded,
        **{name: rounded(statistics.median(values)) for name, values in seconds.items()},
        "wall": rounded(statistics.median(walls)),
    }


class Clock:
    """Processor seconds spent in the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def timed(*given: Any, **more: Any) -> Any:
            begun = time.process_time()
            try:
                return work(*given, **more)
            finally:
                self.seconds += time.process_time() - begun

        return timed


@contextmanager
def clock() -> Iterator[Clock]:
    """Counts what an update spends in training and measuring."""
    found, names = Clock(), ("bench", "train_stack", "measured")
    before = {name: getattr(training, name) for name in names}
    for name, work in before.items():
        setattr(training, name, found.around(work))
    try:
        yield found
    finally:
        for name, work in before.items():
            setattr(training, name, work)


def _timed(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
