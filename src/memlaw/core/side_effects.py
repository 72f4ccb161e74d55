"""What an adapter does to everything that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SideEffects:
    """How much an adapter changes its base on neutral text, and what it answers to prompts that were not stored.

    With p the base's and q the adapted model's probabilities of the next token, each is a mean over the `tokens` of
    the neutral text, teacher-forced.
    """

    loss_difference: float
    """Mean of -log q(token) + log p(token), nats per token: how much worse the model became at predicting the text."""
    loss_before: float
    """Mean of -log p(token), nats per token."""
    kl: float
    """Mean of KL(p || q), nats per token: how much the predictions changed, whether for better or worse."""
    top1_agreement: float
    """Share of positions at which base and adapted model have the same most probable token."""
    tokens: int
    """Tokens of the neutral text that were predicted."""
    texts: Mapping[str, float]
    """Name of each neutral text -> its own loss difference: "sampled" (from the base) and "prose", or "file"."""
    near_miss: float | None
    """Share of the near misses, prompts shaped like the stored ones, that the adapted model answers with the value of a
    stored fact and the base alone does not; None without any."""
    near_misses: int
    """Near misses that were asked."""
    near_miss_base: float | None
    """Share of the near misses that the base alone answers with a stored value."""


def worst(measured: Iterable[SideEffects | None]) -> SideEffects | None:
    """Those of the adapter that costs the model most; None if none were measured."""
    known = [effects for effects in measured if effects is not None]
    return max(known, key=lambda effects: effects.loss_difference, default=None)


def sentence(effects: SideEffects) -> str:
    """The side effects in one sentence for a user."""
    asked = ""
    if effects.near_miss is not None:
        answered = round(effects.near_miss * effects.near_misses)
        asked = f", {answered} of {effects.near_misses} near misses answered with a stored value"
    same = f"{100 * effects.top1_agreement:.1f}% of its next-token choices unchanged"
    return f"Side effects: {effects.loss_difference:+.3f} nats a token on neutral text, {same}{asked}."
