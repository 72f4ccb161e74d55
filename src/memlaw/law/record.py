"""What a fit tells: its numbers with their doubts, its predictions, the law turned round, and its file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np

from memlaw.errors import ConfigError, FitError
from memlaw.law.curve import PARAMETERS, POSITIVE, Array, Form, curve, size_for
from memlaw.records import LN2, Estimate, canonical_json, to_dict

Axis = Literal["rank", "parameters"]

_FILE_VERSION = 1
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
    """Share of them inside their 90% prediction interval."""


@dataclass(frozen=True)
class LawFit:
    """dL(r, l) = C r^alpha l^-beta + b, or its bounded form; dL in nats per target token, l in target tokens.

    Where `axis` is "parameters", r is the number of effective parameters and every `rank` below means that number.
    """

    form: Form
    status: str
    """"ok", or a sentence: why the numbers cannot be trusted, or why there are none."""
    n: int
    """Cells fitted."""
    parameters: Mapping[str, Estimate]
    """C, alpha, beta, b and, in the bounded form, n (how sharply dL bends to L_init). Empty if nothing was fitted."""
    covariance: tuple[tuple[float, ...], ...] | None
    """Of (ln C, alpha, beta, b[, ln n]); None where the cells cannot tell it."""
    r2: float | None
    mape: float | None
    """Mean |predicted / measured - 1| of dL, in percent."""
    sigma: float | None
    """Standard deviation of one cell around the law, nats."""
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
    source: str = "the points given"
    """Where the cells come from, in a person's words."""
    caveat: str = ""
    """What to know before using it elsewhere than on the cells it was fitted to."""

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
    def theta(self) -> Array:
        """(ln C, alpha, beta, b[, ln n]): the coordinates that `covariance` is about."""
        values = ((name, self._parameter(name).value) for name in PARAMETERS[self.form])
        return np.array([math.log(value) if name in POSITIVE else value for name, value in values])

    def _parameter(self, name: str) -> Estimate:
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
        lengths, losses = np.array(self.loss_init).T
        return np.asarray(np.interp(np.log(length), np.log(lengths), losses))

    def _ceiling(self, length: float | Array, loss_init: float | Array | None) -> Array | None:
        if self.form == "paper":
            return None
        return self.loss_init_at(length) if loss_init is None else np.asarray(loss_init, dtype=float)

    def _curve(
        self, rank: float | Array, length: float | Array, loss_init: float | Array | None
    ) -> tuple[Array, Array]:
        ceiling = self._ceiling(length, loss_init)
        cells = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, dtype=float)) for v in (rank, length)))
        level = None if ceiling is None else np.broadcast_to(ceiling, cells[0].shape)
        return curve(self.theta, cells[0], cells[1], level)

    @overload
    def predict(self, rank: float, length: float, *, loss_init: float | None = None) -> float: ...
    @overload
    def predict(self, rank: Array, length: Array, *, loss_init: Array | None = None) -> Array: ...
    def predict(
        self, rank: float | Array, length: float | Array, *, loss_init: float | Array | None = None
    ) -> float | Array:
        """dL in nats; `loss_init` replaces the measured table, and matters to the bounded form only."""
        value, _ = self._curve(rank, length, loss_init)
        return float(value[0]) if np.ndim(rank) == np.ndim(length) == 0 else value

    def interval(
        self, rank: Array, length: Array, *, level: float = 0.9, loss_init: Array | None = None
    ) -> tuple[Array, Array]:
        """Where dL of one new cell lies with probability `level`: the doubt of the law and the scatter of a cell.

        predict -+ t sqrt(sigma^2 + g' covariance g), g the slope in the parameters. Raises FitError without error bars.
        """
        from scipy.special import stdtrit

        value, slopes = self._curve(rank, length, loss_init)
        if self.covariance is None or self.sigma is None:
            raise FitError(f"This law has no error bars, so no interval. {self.status}")
        spread = np.sqrt(self.sigma**2 + np.einsum("ij,jk,ik->i", slopes, np.array(self.covariance), slopes))
        reach = stdtrit(self.freedom, (1 + level) / 2) * spread
        ceiling = self._ceiling(length, loss_init)
        return value - reach, value + reach if ceiling is None else np.minimum(value + reach, ceiling)

    # --- backwards

    def rank_for(self, length: float, *, loss_final: float = LN2, loss_init: float | None = None) -> float:
        """The rank, not rounded, at which `length` tokens are predicted to end at `loss_final` nats (mean).

        0 where they do so without any; infinite where no rank brings them there.
        """
        start = self._start(length, loss_final, loss_init)
        ceiling = None if self.form == "paper" else start
        return float(size_for(self.theta, length, start - loss_final, ceiling))

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
            "n": self.n,
            "r2": self.r2,
            "mape": self.mape,
            "parameters": {name: to_dict(estimate) for name, estimate in self.parameters.items()},
            "holdout": None if holdout is None else to_dict(holdout),
            "axis": self.axis,
            "source": self.source,
        }

    def to_json(self) -> str:
        """The file format of a law: one line of canonical JSON."""
        return canonical_json({"memlaw_law": _FILE_VERSION, **dataclasses.asdict(self)})

    @staticmethod
    def from_json(text: str, *, name: str = "the law") -> LawFit:
        """Inverse of `to_json`; `name` is what messages call the file. Raises FitError for anything else."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise FitError(f"{name} is not JSON (line {error.lineno}). Write it with `memlaw fit`.") from None
        if not isinstance(values, dict) or "memlaw_law" not in values:
            raise FitError(f"{name} is JSON, but not a law of memlaw. Write it with `memlaw fit`.")
        version = values.pop("memlaw_law")
        if version != _FILE_VERSION:
            raise FitError(f"{name} is a law file of version {version!r}; this memlaw reads {_FILE_VERSION}.")
        try:
            return _from_plain(values)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise FitError(f"{name} is a damaged law file: {error}. Fit it again.") from None


def _from_plain(values: dict[str, Any]) -> LawFit:
    """Numbers are made floats one by one, so that a wrong type shows here and not in a plan."""
    covariance = values["covariance"]
    estimates = {
        name: Estimate(float(estimate["value"]), *(_maybe(estimate[key]) for key in ("stderr", "low", "high")))
        for name, estimate in values["parameters"].items()
    }
    if values["form"] not in PARAMETERS or (estimates and set(estimates) != set(PARAMETERS[values["form"]])):
        raise ValueError(f"form {values['form']!r} with the parameters {', '.join(estimates)}")
    return LawFit(
        **values
        | {
            "parameters": {name: estimates[name] for name in PARAMETERS[values["form"]] if estimates},
            "covariance": None if covariance is None else tuple(tuple(map(float, row)) for row in covariance),
            "loss_init": tuple((float(length), float(loss)) for length, loss in values["loss_init"]),
            "freedom": int(values["freedom"]),
            **{key: _maybe(values[key]) for key in ("r2", "mape", "sigma")},
            **{key: (float(values[key][0]), float(values[key][1])) for key in ("ranks", "sizes", "lengths")},
        }
    )


def _maybe(value: Any) -> float | None:
    return None if value is None else float(value)
