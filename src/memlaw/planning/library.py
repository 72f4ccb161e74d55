"""A library of laws: files that `memlaw fit --save` wrote, and which of them is nearest to what is planned."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memlaw.core.canonical import canonical_json
from memlaw.core.errors import FitError
from memlaw.law import LawFit, Origin, borrow, fit_law, over_parameters, published
from memlaw.planning.recall_loss import CellRecall

FOLDER = Path("laws")
"""Where laws are kept unless another directory is named."""

PUBLISHED = "published"
"""The name of the law of the paper's figure in a listing."""

BORROWED_FACTOR = 4.0
"""How far off the rank of a borrowed law may be, either way. Measured once: asked for the parameters that a
2-million-parameter model of width 128 needed to get below ln 2, Qwen3-8B's law predicted 1.2 to 1.9 times as many."""

BORROWED = (
    "Borrowed: this law was fitted to {model}, not to this model. Adapters are compared by their number of "
    "parameters, and the rank is expected to be right only within a factor of 4. For a law of this model, run "
    "`memlaw probe DATA --budget 10m --out probe`, then plan with `--law probe`."
)


@dataclass(frozen=True)
class KnownLaw:
    """A law, and what its cells say about the loss that recall needs."""

    law: LawFit
    cells: tuple[CellRecall, ...] = ()
    near: tuple[str, ...] = ()
    """In what it differs from what it is used for, a sentence each."""

    def to_json(self) -> str:
        """The file of a law: that of the law alone with one more entry."""
        cells = [[cell.loss_final, cell.exact, cell.records, cell.tokens] for cell in self.cells]
        return canonical_json({**json.loads(self.law.to_json()), _CELLS: cells})

    @staticmethod
    def from_json(text: str, *, name: str) -> KnownLaw:
        """Inverse of `to_json`; `name` is what messages call the file. Raises FitError for anything else."""
        try:
            values = json.loads(text)
            rows = values.pop(_CELLS, []) if isinstance(values, dict) else []
            cells = tuple(CellRecall(float(loss), *map(int, counts)) for loss, *counts in rows)
            if not all(map(_can_be, cells)):
                raise ValueError("a loss or counts of recalled records that cannot be")
        except RecursionError:
            raise FitError(
                f"{name} is not a law of memlaw: it is nested too deeply. Write it with `memlaw fit`."
            ) from None
        except json.JSONDecodeError:
            values, cells = text, ()
        except (TypeError, ValueError, OverflowError) as error:
            raise FitError(f"{name} is a damaged law file: {error}. Fit it again.") from None
        plain = values if isinstance(values, str) else json.dumps(values)
        return KnownLaw(LawFit.from_json(plain, name=name), cells)


_CELLS = "recalled"


def _can_be(cell: CellRecall) -> bool:
    return 0 <= cell.loss_final < math.inf and 0 <= cell.exact <= cell.records <= cell.tokens and cell.records > 0


def default_law() -> LawFit:
    """The law for a model without its own: the bounded form on the published Qwen3-8B cells, over parameters."""
    law = fit_law(
        published.points(), "bounded", axis="parameters", source=published.SOURCE, origin=Origin(**published.ORIGIN)
    )
    return borrow(law, factor=BORROWED_FACTOR, caveat=BORROWED.format(model=published.ORIGIN["model"]))


@dataclass(frozen=True)
class PlanContext:
    """What a law is wanted for; None where it is not known."""

    model: str
    """Its name, as it is loaded."""
    outline: str
    placement: str
    tokens: int
    """Target tokens."""
    tokenizer_fingerprint: str | None = None
    model_fingerprint: str | None = None
    data_fingerprint: str | None = None
    loss_init: float | None = None
    loss_memoryless: float | None = None


LawChooser = Callable[[PlanContext], KnownLaw]
"""The law to use, once it is known what for."""


@dataclass(frozen=True)
class Library:
    """The laws of one directory, by the names of their files."""

    laws: dict[str, KnownLaw]
    damaged: tuple[str, ...]
    """Files that are no laws, a sentence each: they cost nobody the others."""


def library(folder: Path) -> Library:
    """Every law in a directory; none where there is no such directory."""
    laws: dict[str, KnownLaw] = {}
    damaged = []
    for path in sorted(folder.glob("*.json")):
        try:
            laws[path.stem] = KnownLaw.from_json(path.read_text(encoding="utf-8"), name=str(path))
        except FitError as error:
            damaged.append(str(error))
        except (OSError, UnicodeDecodeError) as error:
            damaged.append(f"{path} cannot be read: {error}.")
    return Library(laws, tuple(damaged))


def nearest(laws: Iterable[KnownLaw], use: PlanContext) -> KnownLaw:
    """The law that fits this use best, made fit for it; the published one where there is none with error bars.

    A law of the same model comes before all others, then one of the same placement, of the same data, one that can be
    believed, one of a like kind of data, by the losses its cells start at, and one measured at about this length.
    """
    known = [known for known in laws if known.law.covariance is not None]
    if not known:
        return adapt_law(KnownLaw(default_law()), use)
    return adapt_law(min(known, key=lambda one: _distance(one.law, use)), use)


def adapt_law(known: KnownLaw, use: PlanContext) -> KnownLaw:
    """The law as it can be used there, saying how near it is: a law of another model or placement is borrowed over the
    number of adapter parameters, with its doubt widened. Raises FitError if their number is not known."""
    law, origin, near = known.law, known.law.origin, _differences(known.law, use)
    if law.caveat or origin is None or (_same_model(law, use) and _holds_at(law, use.placement)):
        return replace(known, near=near)
    if law.axis == "rank":
        if origin.parameters_per_rank is None:
            raise FitError(
                f"The law of {law.source} was fitted over ranks at another placement or model, and its file does not "
                "say how many parameters a rank has there, so it says nothing about this one. Fit it again from its "
                "probe, or plan with a law of this model."
            )
        law = over_parameters(law, origin.parameters_per_rank)
    caveat = BORROWED.format(model=origin.model or "another model")
    if _same_model(law, use):
        caveat = (
            f"This law was fitted at {origin.placement}, not at {use.placement}. Adapters are compared by their "
            "number of parameters, and the rank is only taken to be right within a factor of 4."
        )
    return KnownLaw(borrow(law, factor=BORROWED_FACTOR, caveat=caveat), known.cells, near)


def _same_model(law: LawFit, use: PlanContext) -> bool:
    """By the weights where both are known, else by name and shape."""
    origin = law.origin
    if origin is None:
        return False
    if origin.model_fingerprint and use.model_fingerprint:
        return origin.model_fingerprint == use.model_fingerprint
    shapes = {origin.outline, use.outline} - {None}
    return origin.model == use.model and len(shapes) < 2


def _holds_at(law: LawFit, placement: str) -> bool:
    """A law over parameters may come from several placements: then none is named, and it holds at any."""
    if law.origin is None:
        return False
    return law.origin.placement == placement or (law.origin.placement is None and law.axis == "parameters")


def _same_data(law: LawFit, use: PlanContext) -> bool:
    known = None if law.origin is None else law.origin.data_fingerprint
    return known is not None and known == use.data_fingerprint


def _distance(law: LawFit, use: PlanContext) -> tuple[float, ...]:
    low, high = law.lengths
    return (
        not _same_model(law, use),
        not _holds_at(law, use.placement),
        not _same_data(law, use),
        law.status != "ok",
        _apart(use.loss_init, law.loss_init) + _apart(use.loss_memoryless, law.loss_memoryless),
        abs(math.log(use.tokens / min(max(use.tokens, low), high))),
    )


def _apart(loss: float | None, table: Sequence[tuple[float, float]]) -> float:
    """How far a loss is from those of the cells, as a logarithm; 0 where one of them is not known."""
    if loss is None or not table:
        return 0.0
    return abs(math.log(loss / statistics.fmean(at for _, at in table)))


def _differences(law: LawFit, use: PlanContext) -> tuple[str, ...]:
    origin = law.origin
    if origin is None:
        return ("Its file does not say which model, placement and data it was fitted to.",)
    said = []
    if not _same_model(law, use):
        shape = " Their shapes are the same: --calibrate compares the weights." if _alike(law, use) else ""
        said.append(f"Its model is {origin.model or 'not known'}, not {use.model}.{shape}")
    elif not (origin.model_fingerprint and use.model_fingerprint):
        said.append("The weights were not compared, only name and shape: --calibrate compares them.")
    if origin.tokenizer_fingerprint and use.tokenizer_fingerprint not in (None, origin.tokenizer_fingerprint):
        said.append(
            "Its lengths were counted by another tokenizer, under which the same text has another number of tokens."
        )
    if not _holds_at(law, use.placement):
        said.append(f"Its adapters sit at {origin.placement or 'several placements'}, not at {use.placement}.")
    if origin.data and not _same_data(law, use):
        said.append(f"Its cells stored {origin.data}.")
    return tuple(said)


def _alike(law: LawFit, use: PlanContext) -> bool:
    """Whether two models of other names have one shape, and their weights were not compared."""
    known = law.origin is not None and law.origin.outline == use.outline
    return known and use.model_fingerprint is None


def listing(laws: dict[str, KnownLaw]) -> list[dict[str, Any]]:
    """What `memlaw laws --json` prints: one row a law, the published one last."""
    return [_row(name, known.law) for name, known in (*laws.items(), (PUBLISHED, KnownLaw(default_law())))]


def _row(name: str, law: LawFit) -> dict[str, Any]:
    origin = law.origin
    known: Sequence[str] = ("model", "placement", "data", "method", "steps", "date", "version")
    return {
        "name": name,
        **{key: None if origin is None else getattr(origin, key) for key in known},
        "form": law.form,
        "status": law.status,
        "axis": law.axis,
        "ranks": list(law.ranks),
        "lengths": list(law.lengths),
        "n": law.n,
        "r2": law.r2,
    }
