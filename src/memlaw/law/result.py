"""What a fit tells: its numbers with their doubts, its predictions, the law turned round, and its file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

import numpy as np

from memlaw.core.canonical import canonical_json, to_dict
from memlaw.core.errors import ConfigError, FitError
from memlaw.core.points import Estimate
from memlaw.core.recall import LN2
from memlaw.law.curve import FORMS, Curve, Form
from memlaw.law.growth import Array
from memlaw.law.points import Axis
from memlaw.law.residuals import SCALES, Residuals

Intervals = Literal["standard", "profile", "bootstrap"]

_FILE_VERSION = 2

_LONGEST = 1e12
"""Target tokens beyond which a law that still holds is said to hold at any length."""


@dataclass(frozen=True)
class Holdout:
    """How a law fitted without some cells predicts them."""

    held_out: str
    cells: int
    """Cells held out and judged."""
    mape: float
    """Mean |predicted / measured - 1| of their dL, percent."""
    coverage90: float
    """Share of their runs inside the 90% prediction interval of one new run."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the cells of a law were measured on; None where that is not known."""

    model: str | None = None
    """Its name, as it is loaded."""
    model_fingerprint: str | None = None
    outline: str | None = None
    """Digest of the model's shape, which models of one kind share."""
    tokenizer_fingerprint: str | None = None
    placement: str | None = None
    parameters_per_rank: float | None = None
    """Effective parameters of an adapter of rank 1; None where placements differ."""
    data: str | None = None
    """What kind of text, in a person's words."""
    data_fingerprint: str | None = None
    method: str | None = None
    steps: int | None = None
    dtype: str | None = None
    date: str | None = None
    """ISO 8601."""
    version: str | None = None
    """Of memlaw."""


@dataclass(frozen=True, kw_only=True)
class LawFit:
    """dL(r, l) in one of the forms; dL in nats per target token, r a LoRA rank, l in target tokens.

    Where `axis` is "parameters", r is the number of effective parameters and every `rank` below means that number.
    """

    form: Form
    status: str
    """"ok", or a sentence: why the numbers cannot be trusted, or why there are none."""
    warnings: tuple[str, ...] = ()
    """What is worth knowing about the cells although the law was fitted to them."""
    n: int
    """Cells fitted."""
    runs: int
    """Points behind them: more than cells where there are replicates."""
    parameters: Mapping[str, Estimate]
    """Of the form: C, alpha, beta, b; n in the bounded form (how sharply dL bends to L_init); k, q, a in log. Empty if
    nothing was fitted."""
    intervals: Intervals = "standard"
    """What `low` and `high` of the parameters are: Student's t times the standard error; where the profile likelihood
    drops; percentiles of a bootstrap over cells and their replicates."""
    covariance: tuple[tuple[float, ...], ...] | None
    """Of theta; None where the cells cannot tell it."""
    r2: float | None
    mape: float | None
    """Mean |predicted / measured - 1| of dL, in percent."""
    residuals: Residuals
    """On which scale the squares are least."""
    sigma: float | None
    """Standard deviation of one new run around the law: nats, or a share of dL under relative residuals."""
    freedom: int
    """Degrees of freedom behind sigma: the cells less what they were fitted with; 0 without error bars."""
    axis: Axis
    ranks: tuple[float, float]
    """Range fitted."""
    sizes: tuple[float, float]
    """Range fitted, in units of `axis`."""
    lengths: tuple[float, float]
    """Range fitted, target tokens."""
    loss_init: tuple[tuple[float, float], ...]
    """(length, measured L_init in nats), rising in length; empty where no final loss was known."""
    loss_memoryless: tuple[tuple[float, float], ...] = ()
    """(length, L_init' in nats), likewise."""
    source: str = "the points given"
    """Where the cells come from, in a person's words."""
    caveat: str = ""
    """What to know before using it elsewhere than on the cells it was fitted to."""
    origin: Origin | None = None

    @property
    def C(self) -> Estimate:  # noqa: N802 - the paper's name
        """Nats at size 1 and length 1."""
        return self._parameter("C")

    @property
    def alpha(self) -> Estimate:
        """Capacity exponent."""
        return self._parameter("alpha")

    @property
    def beta(self) -> Estimate:
        """Length penalty."""
        return self._parameter("beta")

    @property
    def b(self) -> Estimate:
        """Nats of dL that no size or length changes: in the bounded form, the token distribution learned."""
        return self._parameter("b")

    @property
    def curve(self) -> Curve:
        """The mathematics of its form."""
        return FORMS[self.form]

    @property
    def theta(self) -> Array:
        """The coordinates that `covariance` is about: the parameters, ln C, ln k and ln n for C, k and n."""
        values = ((name, self._parameter(name).value) for name in self.curve.names)
        return np.array([math.log(value) if name in self.curve.positive else value for name, value in values])

    @property
    def correlation(self) -> tuple[tuple[float, ...], ...] | None:
        """Of theta, in the order of `parameters`; None where the covariance is not known, or nothing scatters."""
        if self.covariance is None:
            return None
        covariance = np.array(self.covariance)
        deviation = np.sqrt(np.diag(covariance))
        if not np.all(deviation > 0):
            return None
        return tuple(tuple(map(float, row)) for row in covariance / np.outer(deviation, deviation))

    def _parameter(self, name: str) -> Estimate:
        if name not in self.curve.names:
            raise FitError(f"A law of the {self.form} form has no {name}; it has {', '.join(self.curve.names)}.")
        if name not in self.parameters:
            raise FitError(f"This law has no {name}. {self.status}")
        return self.parameters[name]

    # --- forwards

    def loss_init_at(self, length: float | Array) -> Array:
        """L_init in nats: measured, interpolated in log length, constant outside. Raises FitError if none is known."""
        if not self.loss_init:
            raise FitError(
                "No cell of this law has a final loss, so L_init, the most that can be learned, is unknown. Give "
                "loss_init, or fit points that have a final_loss column."
            )
        return _interpolated(self.loss_init, length)

    def loss_memoryless_at(self, length: float | Array) -> Array:
        """L_init' in nats, likewise. Raises FitError if none is known."""
        if not self.loss_memoryless:
            raise FitError("No cell of this law has an L_init'. Probes measure it; fit one of their laws.")
        return _interpolated(self.loss_memoryless, length)

    def start_at(self, length: float | Array, loss_init: float | Array) -> Array:
        """Where the form begins to count (nats): L_init, or in the memory form its cells' L_init', if that is less."""
        if not self.curve.memoryless:
            return np.asarray(loss_init, dtype=float)
        return np.minimum(self.loss_memoryless_at(length), loss_init)

    def _at(
        self, rank: float | Array, length: float | Array, loss_init: float | Array | None
    ) -> tuple[Array, Array, Array, Array]:
        """What the curve says of each cell and its slopes in theta, from where it counts (NaN where that is neither
        known nor needed), and the nats that were gained before."""
        theta = self.theta
        start: float | Array = math.nan
        if loss_init is not None:
            start = loss_init
        elif self.loss_init or self.curve.bounded:
            start = self.loss_init_at(length)
        size, at, begun = np.broadcast_arrays(
            *(np.atleast_1d(np.asarray(value, dtype=float)) for value in (rank, length, start))
        )
        counted = self.start_at(at, begun)
        return *self.curve.value(theta, np.log(size), np.log(at), counted), counted, begun - counted

    @overload
    def predict(self, rank: float, length: float, *, loss_init: float | None = None) -> float: ...
    @overload
    def predict(self, rank: Array, length: Array, *, loss_init: Array | None = None) -> Array: ...
    def predict(
        self, rank: float | Array, length: float | Array, *, loss_init: float | Array | None = None
    ) -> float | Array:
        """dL in nats; `loss_init` replaces the measured table, and matters to the bounded form only."""
        value, _, _, before = self._at(rank, length, loss_init)
        value = value + before if self.curve.memoryless else value
        return float(value[0]) if np.ndim(rank) == np.ndim(length) == 0 else value

    def interval(
        self, rank: Array, length: Array, *, level: float = 0.9, loss_init: Array | None = None
    ) -> tuple[Array, Array]:
        """Where dL of one new run lies with probability `level`: the doubt of the law and the scatter of a run.

        T(predict) -+ t sqrt(sigma^2 + g' covariance g) and back from T, the scale of the residuals; g the slope in
        theta. Never above L_init in the bounded form. Raises FitError without error bars.
        """
        from scipy.special import stdtrit

        value, slopes, start, before = self._at(rank, length, loss_init)
        if self.covariance is None or self.sigma is None:
            raise FitError(f"This law has no error bars, so no interval. {self.status}")
        scale = SCALES[self.residuals]
        slopes = slopes * scale.slope(value, start)[:, None]
        spread = np.sqrt(self.sigma**2 + np.einsum("ij,jk,ik->i", slopes, np.array(self.covariance), slopes))
        reach = stdtrit(self.freedom, (1 + level) / 2) * spread
        centre = scale.of(value, start)
        low, high = scale.back(centre - reach, start), scale.back(centre + reach, start)
        high = np.minimum(high, start) if self.curve.bounded else high
        return (low + before, high + before) if self.curve.memoryless else (low, high)

    def extrapolation(self, rank: float, length: float) -> str | None:
        """What lies outside the fitted cells, as a sentence; None where nothing does."""
        named = f"rank {rank:,.4g}" if self.axis == "rank" else f"{rank:,.0f} adapter parameters"
        asked = ((length, f"{length:,} target tokens", self.lengths), (rank, named, self.sizes))
        outside = [
            f"{name} (fitted: {low:,.0f} to {high:,.0f})" for at, name, (low, high) in asked if not low <= at <= high
        ]
        if not outside:
            return None
        return f"Outside what was measured: {'; '.join(outside)}. The interval assumes that the law goes on unchanged."

    # --- backwards

    def rank_for(self, length: float, *, loss_final: float = LN2, loss_init: float | None = None) -> float:
        """The rank, not rounded, at which `length` tokens are predicted to end at `loss_final` nats (mean).

        0 where they do so without any; infinite where no rank brings them there.
        """
        theta, begun = self.theta, self._start(length, loss_final, loss_init)
        start = float(self.start_at(length, begun))
        return float(self.curve.size_for(theta, length, start - loss_final, start))

    def length_for(self, rank: float, *, loss_final: float = LN2, loss_init: float | None = None) -> float:
        """The number of target tokens, not rounded, that this rank is predicted to bring to `loss_final` nats (mean).

        0 where not even one token, infinite where any number.
        """
        from scipy.optimize import brentq

        def spare(log_length: float) -> float:
            length = math.exp(log_length)
            start = self._start(length, loss_final, loss_init)
            return self.predict(rank, length, loss_init=start) - (start - loss_final)

        most = math.log(_LONGEST)
        if spare(0.0) < 0:
            return 0.0
        if spare(most) >= 0:
            return math.inf
        return math.exp(float(brentq(spare, 0.0, most, xtol=1e-12)))

    def _start(self, length: float, loss_final: float, loss_init: float | None) -> float:
        if loss_final <= 0:
            raise ConfigError(
                f"A mean loss of {loss_final} nats is asked for, but no finite adapter reaches 0. Ask for a small "
                "positive loss: every token is the greedy choice once its own is under ln 2."
            )
        return float(self.loss_init_at(length)) if loss_init is None else loss_init

    # --- out and in

    def summary(self, holdout: Holdout | None = None) -> dict[str, Any]:
        """What `memlaw fit --json` prints."""
        return {
            "form": self.form,
            "status": self.status,
            "warnings": list(self.warnings),
            "n": self.n,
            "runs": self.runs,
            "r2": self.r2,
            "mape": self.mape,
            "parameters": {name: to_dict(estimate) for name, estimate in self.parameters.items()},
            "intervals": self.intervals,
            "correlation": None if self.correlation is None else [list(row) for row in self.correlation],
            "residuals": self.residuals,
            "holdout": None if holdout is None else to_dict(holdout),
            "axis": self.axis,
            "source": self.source,
            "caveat": self.caveat,
        }

    def to_json(self) -> str:
        """The file format of a law: one line of canonical JSON."""
        return canonical_json({"memlaw_law": _FILE_VERSION, **dataclasses.asdict(self)})

    @staticmethod
    def from_json(text: str, *, name: str = "the law") -> LawFit:
        """Inverse of `to_json`, also of earlier versions; `name` is what messages call the file. Raises FitError for
        anything else."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise FitError(f"{name} is not JSON (line {error.lineno}). Write it with `memlaw fit`.") from None
        if not isinstance(values, dict) or "memlaw_law" not in values:
            raise FitError(f"{name} is JSON, but not a law of memlaw. Write it with `memlaw fit`.")
        version = values.pop("memlaw_law")
        if version not in (1, _FILE_VERSION):
            raise FitError(
                f"{name} is a law file of version {version!r}; this memlaw reads versions 1 and {_FILE_VERSION}."
            )
        try:
            if version == 1:  # one run a cell, errors in nats: nothing else could be said
                values |= {"runs": values["n"], "residuals": "absolute"}
            return _from_plain(values)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise FitError(f"{name} is a damaged law file: {error}. Fit it again.") from None


def _from_plain(values: dict[str, Any]) -> LawFit:
    """Numbers are made floats one by one, so that a wrong type shows here and not in a plan."""
    covariance, origin = values["covariance"], values.get("origin")
    estimates = {
        name: Estimate(float(estimate["value"]), *(_maybe(estimate[key]) for key in ("stderr", "low", "high")))
        for name, estimate in values["parameters"].items()
    }
    form = values["form"]
    if form not in FORMS or (estimates and set(estimates) != set(FORMS[form].names)):
        raise ValueError(f"form {form!r} with the parameters {', '.join(estimates)}")
    for key, kind in (("residuals", Residuals), ("axis", Axis), ("intervals", Intervals)):
        if key in values and values[key] not in get_args(kind):
            raise ValueError(f"{key} {values[key]!r}")
    return LawFit(
        **values
        | {
            "parameters": {name: estimates[name] for name in FORMS[form].names if estimates},
            "covariance": None if covariance is None else tuple(tuple(map(float, row)) for row in covariance),
            **{
                key: tuple((float(length), float(loss)) for length, loss in values.get(key, ()))
                for key in ("loss_init", "loss_memoryless")
            },
            "warnings": tuple(map(str, values.get("warnings", ()))),
            "origin": None if origin is None else Origin(**origin),
            **{key: int(values[key]) for key in ("n", "runs", "freedom")},
            **{key: _maybe(values[key]) for key in ("r2", "mape", "sigma")},
            **{key: (float(values[key][0]), float(values[key][1])) for key in ("ranks", "sizes", "lengths")},
        }
    )


def _interpolated(table: tuple[tuple[float, float], ...], length: float | Array) -> Array:
    """Between the lengths of a table in proportion to their logarithms, constant outside."""
    lengths, losses = np.array(table).T
    return np.asarray(np.interp(np.log(length), np.log(lengths), losses))


def _maybe(value: Any) -> float | None:
    return None if value is None else float(value)
