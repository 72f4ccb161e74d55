"""Do 95% intervals contain the truth 95 times in a hundred? Each form fitted to data simulated from its own known law.

    OMP_NUM_THREADS=1 python benchmarks/law_coverage.py [--sets 500] [--bootstrapped 100] [FORM ...]

Cells: 6 ranks x 6 lengths, dL scattering normally by 0.1 nats, about 1% of the largest. `replicated` has a 4 x 4 grid
of three runs a cell, each cell off the law by 0.07 nats and its runs by 0.07 more. Every line is one form and one kind
of interval: the share of the data sets in which each parameter's interval contains its true value, and the share of
new unsaturated runs inside the 90% prediction interval.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator

import numpy as np

from memlaw.core.points import LawPoint
from memlaw.law import Form, Intervals, fit_law
from memlaw.law.curve import FORMS
from memlaw.law.points import is_saturated

TRUTHS: dict[Form, dict[str, float]] = {
    "paper": {"C": 240.0, "alpha": 0.66, "beta": 0.56, "b": -0.4},
    "power": {"C": 240.0, "alpha": 0.66, "beta": 0.56},
    "log": {"k": 2.0, "q": 0.8, "a": 14.0},
    "bounded": {"C": 700.0, "alpha": 0.9, "beta": 0.76, "b": 0.6, "n": 4.0},
    "memory": {"C": 750.0, "alpha": 0.9, "beta": 0.76, "n": 4.0},
}
RANKS, LENGTHS = (1, 2, 4, 8, 16, 32), (500, 1000, 2000, 4000, 6000, 8000)
LOSS_INIT, LOSS_MEMORYLESS, NOISE, SHARED = 12.0, 11.0, 0.1, 0.07


def data_sets(form: Form, sets: int, *, runs: int) -> Iterator[tuple[list[LawPoint], list[LawPoint]]]:
    """The cells to fit, and one new run of each of them."""
    curve = FORMS[form]
    theta = np.array([math.log(v) if name in curve.positive else v for name, v in TRUTHS[form].items()])
    ranks, lengths = (RANKS, LENGTHS) if runs == 1 else (RANKS[:4], LENGTHS[1:5])
    size, length = (grid.ravel().astype(float) for grid in np.meshgrid(ranks, lengths))
    start = LOSS_MEMORYLESS if curve.memoryless else LOSS_INIT
    true = curve.value(theta, np.log(size), np.log(length), np.full(size.shape, start))[0] + LOSS_INIT - start
    for seed in range(sets):
        random = np.random.default_rng([list(TRUTHS).index(form), runs, seed])
        shared = 0.0 if runs == 1 else SHARED * random.standard_normal(size.shape)
        own = NOISE if runs == 1 else math.sqrt(NOISE**2 - SHARED**2)
        measured = true + shared + own * random.standard_normal((runs, *size.shape))
        new = true + NOISE * random.standard_normal(size.shape)
        rows = [*measured, new]
        points = [
            [LawPoint(r, n, d, LOSS_INIT - d if curve.bounded else None, seed=run, loss_memoryless=LOSS_MEMORYLESS)
             for r, n, d in zip(size, length, row.tolist(), strict=True)]
            for run, row in enumerate(rows)
        ]  # fmt: skip
        yield [point for row in points[:-1] for point in row], points[-1]


def coverage(form: Form, intervals: Intervals, sets: int, *, runs: int = 1) -> dict[str, float]:
    """Share of intervals that contain the truth, by parameter; of new runs in their 90% interval as `prediction`."""
    hits: dict[str, list[bool]] = {name: [] for name in (*TRUTHS[form], "prediction")}
    for points, new in data_sets(form, sets, runs=runs):
        fit = fit_law(points, form, intervals=intervals)
        for name, true in TRUTHS[form].items():
            estimate = fit.parameters[name]
            low = -math.inf if estimate.low is None else estimate.low
            high = math.inf if estimate.high is None else estimate.high
            hits[name].append(low <= true <= high)
        size, length, delta = np.array([(p.rank, p.length, p.delta_loss) for p in new if not is_saturated(p)]).T
        low, high = fit.interval(size, length)
        hits["prediction"].extend((low <= delta) & (delta <= high))
    return {name: round(float(np.mean(hit)), 3) for name, hit in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("forms", nargs="*", help="all, if none is named")
    parser.add_argument("--sets", type=int, default=500, help="data sets of each form")
    parser.add_argument("--bootstrapped", type=int, default=100, help="data sets of each form to bootstrap")
    chosen = parser.parse_args()
    kinds: tuple[tuple[Intervals, int, int], ...] = (
        ("standard", chosen.sets, 1),
        ("profile", chosen.sets, 1),
        ("standard", chosen.sets, 3),
        ("bootstrap", chosen.bootstrapped, 1),
    )
    for form in chosen.forms or TRUTHS:
        for intervals, sets, runs in kinds:
            begun = time.process_time()
            found = coverage(form, intervals, sets, runs=runs)
            line = {
                "benchmark": "law_coverage",
                "case": f"{form}, {intervals}{', replicated' if runs > 1 else ''}",
                "sets": sets,
                "covered": found,
                "seconds_per_fit": round((time.process_time() - begun) / sets, 4),
            }
            print(json.dumps(line, allow_nan=False), flush=True)


if __name__ == "__main__":
    main()
