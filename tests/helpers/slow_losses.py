"""MemFT written out (arXiv 2605.30260, section 4): plain Python in float64, one sample and one token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Token = tuple[float, bool]
"""(nll in nats, the target is the argmax)"""


@dataclass
class Window:
    """The window of sw on one sample."""

    anchor: int | None = None
    stood: int = 0
    """Successive steps at which the anchor did not move."""
    expansion: float = 1.0

    def step(self, tokens: Sequence[Token], places: Sequence[int] | None = None) -> None:
        """One step of the sample: find its first error, and whether that has moved; `places` as in `sample_weights`."""
        places = range(len(tokens)) if places is None else places
        anchor = next((place for place, (_, hit) in zip(places, tokens, strict=True) if not hit), None)
        if anchor is not None and anchor == self.anchor:
            self.stood += 1
            if self.stood >= 3:
                self.expansion = min(self.expansion + 0.5, 4.0)
        else:
            self.stood, self.expansion = 0, 1.0
        self.anchor = anchor

    def factor(self, t: int) -> float:
        if self.anchor is None:
            return 1.0
        if t - self.anchor < 50 * self.expansion:
            return math.exp(-max(t - self.anchor, 0) / 20)
        return 0.01


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def sample_weights(
    tokens: Sequence[Token],
    *,
    method: str,
    critical: float = math.log(2),
    position: float = 0.0,
    focus: float = 0.0,
    window: Window | None = None,
    places: Sequence[int] | None = None,
) -> list[float]:
    """The weight of each target token of one sample; under sw, after `window.step(tokens, places)`.

    `places` are those of the targets in the sequence of the sample; without gaps, 0, 1, 2, ...
    """
    disordered = [t for t, (nll, _) in enumerate(tokens) if nll >= critical]
    weights = []
    for t, (nll, _) in enumerate(tokens):
        if method == "sft":
            weight = 1.0
        elif method == "sw":
            assert window is not None
            weight = sigmoid(10 * (nll - critical)) * window.factor(t if places is None else places[t])
        else:
            weight = 1.0 if t in disordered else 0.0
        if t in disordered and len(disordered) > 1:
            weight *= math.exp(-position * disordered.index(t) / (len(disordered) - 1))
        if disordered:
            weight *= len(disordered) ** -focus
        weights.append(weight)
    return weights


def loss(losses: Sequence[float], weights: Sequence[float], rule: str = "zero") -> float:
    """sum_t w_t L_t / (sum_t w_t + eps) over all tokens of all samples."""
    if rule == "fallback" and sum(weights) == 0:
        weights = [1.0] * len(losses)
    return sum(w * nll for w, nll in zip(weights, losses, strict=True)) / (sum(weights) + 1e-8)


def token(logits: Sequence[float], target: int) -> Token:
    """-log softmax(logits)[target], and whether the target is the argmax, where the first of equal logits wins."""
    top = max(logits)
    total = sum(math.exp(x - top) for x in logits)
    return top + math.log(total) - logits[target], logits.index(top) == target


def token_gradient(logits: Sequence[float], target: int) -> list[float]:
    """d nll / d logits = softmax(logits) - onehot(target)."""
    top = max(logits)
    exps = [math.exp(x - top) for x in logits]
    return [e / sum(exps) - (v == target) for v, e in enumerate(exps)]
