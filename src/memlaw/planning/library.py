"""A library of laws: files written by `memlaw fit --save`, and the choice of the one nearest to what is planned."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt, TypeAdapter

from memlaw.core.canonical import canonical_json
from memlaw.core.errors import FitError
from memlaw.law import LawFit, Origin, borrow, fit_law, over_parameters, published
from memlaw.law.result import damage_reported, parse_law_file
from memlaw.planning.recall_loss import CellRecall

FOLDER = Path("laws")
"""The default directory of a library."""

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


_CELLS = "recalled"


@dataclass(frozen=True)
class KnownLaw:
    """A law, with what its cells say about the loss that recall needs."""

    law: LawFit
    cells: tuple[CellRecall, ...] = ()
    near: tuple[str, ...] = ()
    """How its model, placement and data differ from those it is used for, one sentence each."""

    def to_json(self) -> str:
        """The content of a law file: that of `LawFit.to_json` with one more entry for the cells."""
        cells = [[cell.loss_final, cell.exact, cell.records, cell.tokens] for cell in self.cells]
        return canonical_json({**json.loads(self.law.to_json()), _CELLS: cells})

    @staticmethod
    def from_json(text: str, *, name: str) -> KnownLaw:
        """Inverse of `to_json`; reads files of `LawFit.to_json` too. `name` is the file's name in messages.

        Raises FitError if the text is not a law.
        """
        values = parse_law_file(text, name=name)
        with damage_reported(name):
            cells = _cells_reader().validate_python({_CELLS: values.pop(_CELLS, [])})[_CELLS]
        return KnownLaw(LawFit.from_dict(values, name=name), tuple(CellRecall(*cell) for cell in cells))


def _possible(cell: tuple[float, int, int, int]) -> tuple[float, int, int, int]:
    _, exact, records, tokens = cell
    if not exact <= records <= tokens or records == 0:
        raise ValueError(f"{exact} of {records} records with {tokens} target tokens are impossible counts")
    return cell


_Loss = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_Cell = Annotated[tuple[_Loss, NonNegativeInt, NonNegativeInt, NonNegativeInt], AfterValidator(_possible)]
"""loss_final, exact, records, tokens: a `CellRecall` as law files hold it."""


@cache
def _cells_reader() -> TypeAdapter[dict[str, list[_Cell]]]:
    return TypeAdapter(dict[str, list[_Cell]])


def default_law() -> LawFit:
    """The law for a model without its own: the bounded form on the published Qwen3-8B cells, over parameters."""
    law = fit_law(
        published.points(), "bounded", axis="parameters", source=published.SOURCE, origin=Origin(**published.ORIGIN)
    )
    return borrow(law, factor=BORROWED_FACTOR, caveat=BORROWED.format(model=published.ORIGIN["model"]))


@dataclass(frozen=True)
class PlanContext:
    """What a law is needed for; None if not known."""

    model: str
    """Hub id or path, as loaded."""
    outline: str
    """Digest of the model's shape."""
    placement: str
    tokens: int
    """Target tokens."""
    optimizer: str | None = None
    """The optimizer that will train."""
    tokenizer_fingerprint: str | None = None
    model_fingerprint: str | None = None
    data_fingerprint: str | None = None
    loss_init: float | None = None
    """L_init, nats per token."""
    loss_memoryless: float | None = None
    """L_init', nats per token."""


LawChooser = Callable[[PlanContext], KnownLaw]
"""Returns the law to plan with in a context."""


@dataclass(frozen=True)
class Library:
    """The laws of one directory, by file name."""

    laws: dict[str, KnownLaw]
    damaged: tuple[str, ...]
    """One sentence for each file that could not be read; the other laws remain usable."""


def library(folder: Path) -> Library:
    """Every law in a directory; an empty library if the directory does not exist."""
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


def nearest(laws: Iterable[KnownLaw], context: PlanContext) -> KnownLaw:
    """The law nearest to this context, adapted to it; the published law if none here has error bars.

    Compared in this order: same model, same placement, same data, same optimizer, status ok, similar losses before
    training (a similar kind of data), and a fitted length near this one.
    """
    usable = [known for known in laws if known.law.covariance is not None]
    if not usable:
        return adapt_law(KnownLaw(default_law()), context)
    return adapt_law(min(usable, key=lambda known: _distance(known.law, context)), context)


def adapt_law(known: KnownLaw, context: PlanContext) -> KnownLaw:
    """The law as it applies in this context, with the differences named.

    A law of another model or placement is borrowed: sizes become adapter parameters, and its uncertainty is widened.
    Raises FitError if the number of adapter parameters is not known.
    """
    law, origin, near = known.law, known.law.origin, _differences(known.law, context)
    if law.caveat or origin is None or (_same_model(law, context) and _same_placement(law, context)):
        return replace(known, near=near)
    if law.axis == "rank":
        if origin.parameters_per_rank is None:
            raise FitError(
                f"The law of {law.source} was fitted over ranks at another placement or model, and its file does not "
                "say how many parameters a rank has there, so it cannot be converted to this one. Fit it again from "
                "its probe, or plan with a law of this model."
            )
        law = over_parameters(law, origin.parameters_per_rank)
    caveat = BORROWED.format(model=origin.model or "another model")
    if _same_model(law, context):
        caveat = (
            f"This law was fitted at {origin.placement}, not at {context.placement}. Adapters are compared by their "
            "number of parameters, and the rank is expected to be right only within a factor of 4."
        )
    return KnownLaw(borrow(law, factor=BORROWED_FACTOR, caveat=caveat), known.cells, near)


def _same_model(law: LawFit, context: PlanContext) -> bool:
    """Compared by weights if both are known, otherwise by name and shape."""
    origin = law.origin
    if origin is None:
        return False
    if origin.model_fingerprint and context.model_fingerprint:
        return origin.model_fingerprint == context.model_fingerprint
    shapes = {origin.outline, context.outline} - {None}
    return origin.model == context.model and len(shapes) < 2


def _same_placement(law: LawFit, context: PlanContext) -> bool:
    """A law over parameters fitted to several placements names none, and applies at any."""
    if law.origin is None:
        return False
    placement = law.origin.placement
    return placement == context.placement or (placement is None and law.axis == "parameters")


def _same_data(law: LawFit, context: PlanContext) -> bool:
    known = None if law.origin is None else law.origin.data_fingerprint
    return known is not None and known == context.data_fingerprint


def _other_optimizer(law: LawFit, context: PlanContext) -> bool:
    return law.origin is not None and context.optimizer not in (None, law.origin.optimizer)


def _distance(law: LawFit, context: PlanContext) -> tuple[float, ...]:
    """What `nearest` minimises, entry by entry; False sorts before True."""
    low, high = law.lengths
    return (
        not _same_model(law, context),
        not _same_placement(law, context),
        not _same_data(law, context),
        _other_optimizer(law, context),
        law.status != "ok",
        _loss_gap(context.loss_init, law.loss_init) + _loss_gap(context.loss_memoryless, law.loss_memoryless),
        abs(math.log(context.tokens / min(max(context.tokens, low), high))),
    )


def _loss_gap(loss: float | None, table: Sequence[tuple[float, float]]) -> float:
    """|ln(loss / mean loss of the cells)|; 0 if either is not known."""
    if loss is None or not table:
        return 0.0
    return abs(math.log(loss / statistics.fmean(cell_loss for _, cell_loss in table)))


def _differences(law: LawFit, context: PlanContext) -> tuple[str, ...]:
    """How the law's cells differ from the context, one sentence each."""
    origin = law.origin
    if origin is None:
        return ("Its file does not say which model, placement and data it was fitted to.",)
    sentences = []
    if not _same_model(law, context):
        shape = " The shapes are the same: add --calibrate to compare the weights." if _same_shape(law, context) else ""
        sentences.append(f"Its model is {origin.model or 'not known'}, not {context.model}.{shape}")
    elif not (origin.model_fingerprint and context.model_fingerprint):
        sentences.append("Only the model's name and shape were compared: add --calibrate to compare the weights.")
    if origin.tokenizer_fingerprint and context.tokenizer_fingerprint not in (None, origin.tokenizer_fingerprint):
        sentences.append(
            "Its lengths were counted with another tokenizer, which splits the same text into a different number of "
            "tokens."
        )
    if not _same_placement(law, context):
        sentences.append(f"Its adapters sit at {origin.placement or 'several placements'}, not at {context.placement}.")
    if _other_optimizer(law, context):
        sentences.append(f"Its cells were trained with {origin.optimizer}, not with {context.optimizer}.")
    if origin.data and not _same_data(law, context):
        sentences.append(f"Its cells stored {origin.data}.")
    return tuple(sentences)


def _same_shape(law: LawFit, context: PlanContext) -> bool:
    """Whether the shapes are equal and the weights were not compared."""
    same = law.origin is not None and law.origin.outline == context.outline
    return same and context.model_fingerprint is None


def listing(laws: dict[str, KnownLaw]) -> list[dict[str, Any]]:
    """The rows of `memlaw laws --json`, one for each law, the published one last."""
    return [_row(name, known.law) for name, known in (*laws.items(), (PUBLISHED, KnownLaw(default_law())))]


_LISTED = ("model", "placement", "data", "method", "optimizer", "steps", "date", "version")


def _row(name: str, law: LawFit) -> dict[str, Any]:
    return {
        "name": name,
        **{key: None if law.origin is None else getattr(law.origin, key) for key in _LISTED},
        "form": law.form,
        "status": law.status,
        "axis": law.axis,
        "ranks": list(law.ranks),
        "lengths": list(law.lengths),
        "n": law.n,
        "r2": law.r2,
    }
