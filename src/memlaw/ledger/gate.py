"""Whether a trained update may become a version: every fact certified, nothing retracted left, harm within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memlaw.core.errors import ConfigError, listed
from memlaw.core.recall import RecallReport, RecordRecall
from memlaw.core.side_effects import SideEffects
from memlaw.ledger.records import Verdict
from memlaw.ledger.unwanted import FACTOR, Gone


@dataclass(frozen=True)
class Terms:
    """What an update must keep to. Raises ConfigError for a bound below 0."""

    max_harm: float = 0.1
    """Largest `SideEffects.loss_difference`, nats a token; infinity for no bound."""
    allow_loss: int = 0
    """Facts that need not be certified."""

    def __post_init__(self) -> None:
        if not self.max_harm >= 0:
            raise ConfigError(
                f"max_harm (--max-harm) is {self.max_harm}: choose nats a token, from 0 up, that an update may cost "
                "the model, or inf for no bound."
            )
        if self.allow_loss < 0:
            raise ConfigError(
                f"allow_loss (--allow-loss) is {self.allow_loss}: choose how many facts may be lost, a whole number "
                "from 0 up."
            )


@dataclass(frozen=True)
class Measured:
    """An adapter, as the gate sees it."""

    report: RecallReport | None
    """Of the facts that should come back; None without any."""
    gone: tuple[Gone, ...]
    """The targets that should not."""
    side_effects: SideEffects | None

    def uncertain(self) -> tuple[RecordRecall, ...]:
        """The facts that are not certified."""
        items = () if self.report is None else self.report.items
        return tuple(item for item in items if verdict(item) != "certified")


def verdict(item: RecordRecall) -> Verdict:
    """How a fact stands: certified; ordered if it comes back by a margin that rounding may undo; lost."""
    if item.certified:
        return "certified"
    return "ordered" if item.exact and item.margin > 0 else "lost"


def objections(measured: Measured, terms: Terms) -> tuple[str, ...]:
    """Why an update may not become a version, as sentences; empty if it may."""
    found = (_facts(measured, terms), _retracted(measured.gone), _harm(measured.side_effects, terms))
    return tuple(sentence for sentence in found if sentence)


def _facts(measured: Measured, terms: Terms) -> str:
    missing = measured.uncertain()
    if measured.report is None or len(missing) <= terms.allow_loss:
        return ""
    reasons = sorted({item.reason for item in missing if item.reason is not None})
    why = f" ({', '.join(reasons)})" if reasons else ""
    return (
        f"{len(missing)} of {measured.report.records} facts would not be certified{why}: "
        f"{listed(item.id for item in missing)}. Give them room with a higher --rank or --auto-grow, retract what is "
        f"no longer needed, or publish without them: --allow-loss {len(missing)}."
    )


def _retracted(gone: Sequence[Gone]) -> str:
    left = [one for one in gone if not one.holds]
    if not left:
        return ""
    return (
        f"{len(left)} retracted targets would still come back, or be more than {FACTOR:g} times as probable as under "
        f"the base alone: {listed(one.id for one in left)}. Give the update more room with a higher --rank."
    )


def _harm(effects: SideEffects | None, terms: Terms) -> str:
    if effects is None or effects.loss_difference <= terms.max_harm:
        return ""
    return (
        f"The model would lose {effects.loss_difference:.3f} nats a token on neutral text, and at most "
        f"{terms.max_harm:g} are allowed. Give the facts room with a higher --rank or a --placement in more modules, "
        "which costs the model less, or allow more: --max-harm."
    )
