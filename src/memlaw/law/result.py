"""The result of a fit: parameters with their uncertainty, predictions, the inverse of the law, and its file."""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, overload

import numpy as np
from pydantic import TypeAdapter, ValidationError

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
"""Target tokens up to which the inverse is searched; a law that still holds there holds at any length."""


@dataclass(frozen=True)
class Holdout:
    """How well a law predicts cells that it was not fitted to."""

    held_out: str
    """The specification, such as length=MAX."""
    cells: int
    """Cells held out."""
    mape: float
    """Mean |predicted / measured - 1| of their dL, percent."""
    coverage90: float
    """Share of their runs inside the 90% prediction interval of one new run."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the cells of a law were measured on; None if not known."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # for reading files; instances made in Python are not checked

    model: str | None = None
    """Hub id or path, as loaded."""
    model_fingerprint: str | None = None
    outline: str | None = None
    """Digest of the model's shape; models of one architecture and size share it."""
    tokenizer_fingerprint: str | None = None
    placement: str | None = None
    parameters_per_rank: float | None = None
    """Effective parameters of an adapter of rank 1; None if the cells are of several placements."""
    data: str | None = None
    """Kind of text, in words."""
    data_fingerprint: str | None = None
    method: str | None = None
    optimizer: str = "adamw"
    """Files that do not name it are older than any other optimizer of a probe."""
    steps: int | None = None
    dtype: str | None = None
    date: str | None = None
    """ISO 8601."""
    version: str | None = None
    """Version of memlaw."""


@dataclass(frozen=True, kw_only=True)
class LawFit:
    """A fitted law dL(s, l); in the paper's form dL = C s^alpha l^-beta + b (arXiv 2605.30260).

    dL is the fall of the mean loss in nats per target token, s the adapter's size in units of `axis` (LoRA rank or
    effective parameters), l the length in target tokens. The other forms: `memlaw.law`.

    `predict`, `rank_for` and `length_for` call the size `rank`: for a law over parameters, pass and expect parameters.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    form: Form
    status: str
    """ "ok", or a sentence that says why the numbers cannot be trusted or why there are none."""
    warnings: tuple[str, ...] = ()
    """Remarks on the cells, such as saturated cells that were left out."""
    n: int
    """Number of cells fitted."""
    runs: int
    """Number of points in these cells; more than `n` if there are replicates."""
    parameters: Mapping[str, Estimate]
    """Parameters of the form: C, alpha, beta, b; also n in the bounded form (how sharply dL bends towards L_init); k,
    q, a in the log form. Empty if nothing was fitted."""
    intervals: Intervals = "standard"
    """Kind of the 95% intervals. standard: value -+ t stderr; profile: profile likelihood; bootstrap: percentiles over
    resampled cells and replicates."""
    covariance: tuple[tuple[float, ...], ...] | None
    """Covariance matrix of `theta`, [p, p]; None if the cells do not determine it."""
    r2: float | None
    """R^2 of dL; None for too few cells, of which any law explains nearly everything."""
    mape: float | None
    """Mean |predicted / measured - 1| of dL, percent; None with `r2`."""
    residuals: Residuals
    """Scale on which squared residuals were minimised."""
    sigma: float | None
    """Standard deviation of a single new run around the law: nats, or a share of dL for relative residuals."""
    freedom: int
    """Degrees of freedom of sigma: cells minus fitted parameters; 0 without error bars."""
    axis: Axis
    """Unit of the size s."""
    ranks: tuple[float, float]
    """Lowest and highest rank fitted."""
    sizes: tuple[float, float]
    """Smallest and largest size fitted, in units of `axis`."""
    lengths: tuple[float, float]
    """Shortest and longest length fitted, target tokens."""
    loss_init: tuple[tuple[float, float], ...]
    """(length, measured L_init in nats per token) by rising length; empty if no final loss is known."""
    loss_memoryless: tuple[tuple[float, float], ...] = ()
    """(length, L_init' in nats per token) by rising length."""
    source: str = "the points given"
    """Where the cells come from, in words."""
    caveat: str = ""
    """What limits the use of this law beyond its own cells, such as that it was borrowed."""
    origin: Origin | None = None

    @property
    def C(self) -> Estimate:  # noqa: N802 - the paper's name
        """Scale of the power law: its nats at size 1 and length 1."""
        return self._parameter("C")

    @property
    def alpha(self) -> Estimate:
        """Capacity exponent."""
        return self._parameter("alpha")

    @property
    def beta(self) -> Estimate:
        """Exponent of the length."""
        return self._parameter("beta")

    @property
    def b(self) -> Estimate:
        """Offset in nats, independent of size and length; in the bounded form, the gain from the token distribution."""
        return self._parameter("b")

    @property
    def curve(self) -> Curve:
        """The formula of its form, with slopes and inverse."""
        return FORMS[self.form]

    @property
    def theta(self) -> Array:
        """[p], the parameters as fitted: logarithms of the positive ones (C, k, n), the others as they are."""
        values = ((name, self._parameter(name).value) for name in self.curve.names)
        return np.array([math.log(value) if name in self.curve.positive else value for name, value in values])

    @property
    def correlation(self) -> tuple[tuple[float, ...], ...] | None:
        """Correlation matrix of `theta`, [p, p]; None without a covariance, or if the cells have no scatter."""
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

    def loss_init_at(self, length: float | Array) -> Array:
        """L_init in nats per token: interpolated in ln length, constant outside the fitted lengths.

        Raises FitError if no cell has a final loss.
        """
        if not self.loss_init:
            raise FitError(
                "No cell of this law has a final loss, so L_init, the largest possible dL, is unknown. Pass loss_init, "
                "or fit points that have a final_loss column."
            )
        return _interpolated(self.loss_init, length)

    def loss_memoryless_at(self, length: float | Array) -> Array:
        """L_init' in nats per token, interpolated as L_init is. Raises FitError if no cell has it."""
        if not self.loss_memoryless:
            raise FitError("No cell of this law has an L_init'. Probes measure it: fit the law to a probe.")
        return _interpolated(self.loss_memoryless, length)

    def start_at(self, length: float | Array, loss_init: float | Array) -> Array:
        """The loss from which the form counts, in nats: L_init, or min(L_init, L_init') in the memory form."""
        if not self.curve.memoryless:
            return np.asarray(loss_init, dtype=float)
        return np.minimum(self.loss_memoryless_at(length), loss_init)

    def _evaluated(self, size: float | Array, length: float | Array, loss_init: float | Array | None) -> _Evaluated:
        theta = self.theta
        begin: float | Array = math.nan
        if loss_init is not None:
            begin = loss_init
        elif self.loss_init or self.curve.bounded:
            begin = self.loss_init_at(length)
        sizes, lengths, begins = np.broadcast_arrays(
            *(np.atleast_1d(np.asarray(value, dtype=float)) for value in (size, length, begin))
        )
        start = self.start_at(lengths, begins)
        value, slopes = self.curve.value(theta, np.log(sizes), np.log(lengths), start)
        return _Evaluated(value, slopes, start, begins - start if self.curve.memoryless else np.zeros_like(value))

    @overload
    def predict(self, rank: float, length: float, *, loss_init: float | None = None) -> float: ...
    @overload
    def predict(self, rank: Array, length: Array, *, loss_init: Array | None = None) -> Array: ...
    def predict(
        self, rank: float | Array, length: float | Array, *, loss_init: float | Array | None = None
    ) -> float | Array:
        """dL in nats per token at size `rank` and length `length`.

        `loss_init` (nats) replaces the measured L_init; only the bounded and memory forms depend on it.
        """
        at = self._evaluated(rank, length, loss_init)
        delta = at.value + at.given
        return float(delta[0]) if np.ndim(rank) == np.ndim(length) == 0 else delta

    def interval(
        self, size: Array, length: Array, *, level: float = 0.9, loss_init: Array | None = None
    ) -> tuple[Array, Array]:
        """The interval that contains dL of one new run with probability `level`, in nats per token.

        T^-1(T(dL) -+ t sqrt(sigma^2 + g' covariance g)), with T the scale of the residuals, g the slope of T(dL) in
        theta and t Student's quantile: the uncertainty of the law and the scatter of a run. A bounded form never
        exceeds L_init. Raises FitError without error bars.
        """
        from scipy.special import stdtrit

        at = self._evaluated(size, length, loss_init)
        if self.covariance is None or self.sigma is None:
            raise FitError(f"This law has no error bars, so it has no prediction interval. {self.status}")
        scale = SCALES[self.residuals]
        slopes = at.slopes * scale.slope(at.value, at.start)[:, None]
        spread = np.sqrt(self.sigma**2 + np.einsum("ij,jk,ik->i", slopes, np.array(self.covariance), slopes))
        reach = stdtrit(self.freedom, (1 + level) / 2) * spread
        centre = scale.transform(at.value, at.start)
        low, high = scale.invert(centre - reach, at.start), scale.invert(centre + reach, at.start)
        high = np.minimum(high, at.start) if self.curve.bounded else high
        return low + at.given, high + at.given

    def extrapolation(self, size: float, length: float) -> str | None:
        """A sentence that says what lies outside the fitted range; None if nothing does."""
        named = f"rank {size:,.4g}" if self.axis == "rank" else f"{size:,.0f} adapter parameters"
        asked = ((length, f"{length:,} target tokens", self.lengths), (size, named, self.sizes))
        outside = [
            f"{name} (fitted: {low:,.0f} to {high:,.0f})" for at, name, (low, high) in asked if not low <= at <= high
        ]
        if not outside:
            return None
        return (
            f"Outside the measured range: {'; '.join(outside)}. The interval assumes that the law continues unchanged."
        )

    def rank_for(self, length: float, *, loss_final: float = LN2, loss_init: float | None = None) -> float:
        """The size (not rounded) at which `length` tokens are predicted to end at a mean loss of `loss_final` nats.

        Solves L_init - dL(size, length) = loss_final. 0 if no adapter is needed, infinite if no size is enough.
        Raises ConfigError for a loss that is not above 0.
        """
        theta = self.theta  # raises for a law without parameters, before anything else can
        begin = self._checked_start(length, loss_final, loss_init)
        start = float(self.start_at(length, begin))
        return float(self.curve.size_for(theta, length, start - loss_final, start))

    def length_for(self, rank: float, *, loss_final: float = LN2, loss_init: float | None = None) -> float:
        """The length (target tokens, not rounded) that this size is predicted to bring to `loss_final` nats.

        Solves L_init(length) - dL(rank, length) = loss_final. 0 if even one token is too much, infinite if any length
        fits.
        """
        from scipy.optimize import brentq

        def spare(log_length: float) -> float:
            length = math.exp(log_length)
            start = self._checked_start(length, loss_final, loss_init)
            return self.predict(rank, length, loss_init=start) - (start - loss_final)

        most = math.log(_LONGEST)
        if spare(0.0) < 0:
            return 0.0
        if spare(most) >= 0:
            return math.inf
        return math.exp(float(brentq(spare, 0.0, most, xtol=1e-12)))

    def _checked_start(self, length: float, loss_final: float, loss_init: float | None) -> float:
        if loss_final <= 0:
            raise ConfigError(
                f"The mean loss to reach is {loss_final} nats, but no finite adapter reaches 0. Choose a small "
                "positive loss: a token is the greedy choice as soon as its own loss is below ln 2 = 0.69."
            )
        return float(self.loss_init_at(length)) if loss_init is None else loss_init

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
        """The content of a law file: one line of canonical JSON."""
        values = dataclasses.asdict(self)
        if values["origin"] is not None and values["origin"]["optimizer"] == Origin.optimizer:
            del values["origin"]["optimizer"]  # so that older versions read it, and old files stay as they were
        return canonical_json({"memlaw_law": _FILE_VERSION, **values})

    @staticmethod
    def from_json(text: str, *, name: str = "the law") -> LawFit:
        """Inverse of `to_json`, for files of this and earlier versions. `name` is the file's name in messages.

        Raises FitError if the text is not a law.
        """
        return LawFit.from_dict(parse_law_file(text, name=name), name=name)

    @staticmethod
    def from_dict(values: Mapping[str, Any], *, name: str = "the law") -> LawFit:
        """The law in the parsed JSON of a law file. Raises FitError if it is not one."""
        values = dict(values)
        version = values.pop("memlaw_law", None)
        if version not in (1, _FILE_VERSION):
            raise FitError(
                f"{name} is a law file of version {version!r}; this memlaw reads versions 1 and {_FILE_VERSION}."
            )
        if version == 1:  # had no replicates and no other residuals
            values |= {"runs": values.get("n"), "residuals": "absolute"}
        with damage_reported(name):
            return _in_order(_reader().validate_python(values))


class _Evaluated(NamedTuple):
    """The curve at m cells."""

    value: Array
    """[m], dL in nats, counted from `start`."""
    slopes: Array
    """[m, p], slopes of `value` in theta."""
    start: Array
    """[m], the loss from which the form counts; NaN if it is neither known nor needed."""
    given: Array
    """[m], nats gained before `start`, without memory."""


def parse_law_file(text: str, *, name: str) -> dict[str, Any]:
    """The JSON object of a law file. Raises FitError if the text is anything else."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise FitError(f"{name} is not JSON (line {error.lineno}). Write it with `memlaw fit --save`.") from None
    except RecursionError:
        raise FitError(f"{name} is JSON nested too deeply to be a law. Write it with `memlaw fit --save`.") from None
    if not isinstance(values, dict) or "memlaw_law" not in values:
        raise FitError(f"{name} is JSON, but not a law of memlaw. Write it with `memlaw fit --save`.")
    return values


@contextmanager
def damage_reported(name: str) -> Iterator[None]:
    """Turn a value that does not belong in a law file into a FitError that names the file and the entry."""
    try:
        yield
    except ValidationError as error:
        raise FitError(f"{name} is a damaged law file: {_first_fault(error)}. Fit the law again.") from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise FitError(f"{name} is a damaged law file: {error}. Fit the law again.") from None


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    entry = ".".join(map(str, fault["loc"])) or "the file"
    if fault["type"] == "missing":
        return f"it has no entry {entry}"
    if fault["type"] == "unexpected_keyword_argument":
        return f"its entry {entry} is unknown"
    if fault["type"] == "value_error":
        return f"{entry} is {reprlib.repr(fault['input'])}; {fault['ctx']['error']}"
    return f"{entry} is {reprlib.repr(fault['input'])}; {fault['msg'][:1].lower()}{fault['msg'][1:]}"


@cache
def _reader() -> TypeAdapter[LawFit]:
    return TypeAdapter(LawFit)


def _in_order(fit: LawFit) -> LawFit:
    """The law with its parameters in the order of its form: files sort them by name."""
    names = fit.curve.names
    if fit.parameters and set(fit.parameters) != set(names):
        raise ValueError(f"a law of the form {fit.form} cannot have the parameters {', '.join(fit.parameters)}")
    return dataclasses.replace(fit, parameters={name: fit.parameters[name] for name in names if fit.parameters})


def _interpolated(table: tuple[tuple[float, float], ...], length: float | Array) -> Array:
    """Losses of a (length, loss) table, linear in ln length between its lengths and constant outside."""
    lengths, losses = np.array(table).T
    return np.asarray(np.interp(np.log(length), np.log(lengths), losses))
