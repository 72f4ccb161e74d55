"""Small results that look like real ones, for the tests of figures and reports. Seeded; nothing here was measured."""

from __future__ import annotations

import math

import numpy as np

from memlaw.core.cells import Cell, CellResult
from memlaw.core.config import TrainConfig
from memlaw.core.facts import EncodedFact
from memlaw.core.points import LawPoint
from memlaw.core.recall import LN2, RecallReport, TokenRecall
from memlaw.core.side_effects import SideEffects
from memlaw.diagnosis.verdicts import diagnose

EFFECTS = SideEffects(0.02, 3.1, 0.03, 0.98, 3578, {"sampled": 0.01, "prose": 0.04}, 0.25, 8, 0.0)


class PowerLaw:
    """dL = C r^alpha l^-beta."""

    def predict(self, rank: float, length: float) -> float:
        return 14.0 * rank**0.4 * length**-0.3


def points(ranks=(1, 2, 4, 8), lengths=(16, 64, 256), loss_init: float = 10.0) -> list[LawPoint]:
    """Points that lie on PowerLaw, up to the most that can be learned."""
    made = []
    for length in lengths:
        for rank in ranks:
            gain = min(PowerLaw().predict(rank, length), loss_init - 0.01)
            made.append(LawPoint(rank, length, gain, loss_init - gain, parameters=256.0 * rank))
    return made


def cell(
    rank: int, length: int, loss_final: float | None = 0.5, *, acc_token: float | None = 0.75, **changes
) -> CellResult:
    """One cell; `method`, `optimizer`, `data`, `placement` and `seed` go to its identity, the rest to the result."""
    training = {name: changes.pop(name) for name in ("method", "optimizer", "seed") if name in changes}
    train = TrainConfig(**training)
    data, placement = changes.pop("data", "d" * 64), changes.pop("placement", "mlp@3")
    values = {
        "status": "finished",
        "steps": 600,
        "parameters": 256 * rank,
        "loss_init": 10.0,
        "loss_final": loss_final,
        "delta_loss": None if loss_final is None else 10.0 - loss_final,
        "acc_token": acc_token,
        "acc_em": None if acc_token is None else float(acc_token == 1),
        "ordered": None if acc_token is None else int(acc_token * length),
        "certified": None if acc_token is None else int(acc_token == 1),
        "records": 1,
    }
    identity = Cell("m" * 64, "t" * 64, data, placement, rank, length, train, "float32")
    return CellResult(identity, **values | changes)


def diverged(rank: int, length: int, message: str = "The loss became NaN at step 43.") -> CellResult:
    return cell(rank, length, None, acc_token=None, status="diverged", steps=43, message=message)


def fact(name: str, length: int) -> EncodedFact:
    return EncodedFact(name, tuple(range(length + 3)), 3)


def recall(losses: dict[str, list[float]], *, decoded: bool = True, tolerance: float = 1e-5) -> RecallReport:
    """A report on records of these losses, where greedy decoding misses exactly the stubborn tokens."""
    tokens = []
    for nll in losses.values():
        hits = tuple(loss < LN2 for loss in nll)
        tokens.append(TokenRecall(tuple(nll), hits, hits if decoded else None))
    facts = [fact(name, len(nll)) for name, nll in losses.items()]
    return diagnose(facts, tokens, tolerance=tolerance, dtype="float32")


def many(records: int, length: int, *, seed: int = 0, share_stubborn: float = 0.05) -> RecallReport:
    """Records with a few stubborn tokens each."""
    rng = np.random.default_rng(seed)
    losses = rng.gamma(0.6, 0.05, (records, length)).clip(max=0.6)
    stubborn = rng.random((records, length)) < share_stubborn
    losses[stubborn] = 0.7 + rng.exponential(1.0, stubborn.sum())
    assert math.isfinite(losses.sum())
    return recall({f"record-{row}": nll for row, nll in enumerate(losses.tolist())})
