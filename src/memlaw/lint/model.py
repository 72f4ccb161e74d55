"""What the frozen base lets an adapter do, what an adapter at hand does, and what a rank is predicted to hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memlaw.adapter import attach, load_info, parse_placement
from memlaw.errors import ModelError
from memlaw.findings import Finding, Severity
from memlaw.laws import KnownLaw, nearest, suited
from memlaw.model import Base, frozen
from memlaw.planning import plan_for
from memlaw.reach import frozen_head, reach_bounds
from memlaw.records import EncodedFact, MemorySet
from memlaw.training import UNTIL_RECALLED

BARELY = 0.5 * math.exp(UNTIL_RECALLED.margin)
"""What `memlaw train` asks of every token's probability: one half, with its margin (0.553)."""


def base_findings(base: Base) -> Iterator[Finding]:
    """What loading the base already warned of."""
    for warning in base.warnings:
        yield Finding("info", None, "base", warning, "Look for unreachable-token among these findings; else nothing.")


# --- reach -----------------------------------------------------------------------------------------------------------


def reach_findings(base: Base, encoded: Sequence[EncodedFact]) -> Iterator[Finding]:
    """Targets with tokens that no adapter below the frozen head can bring to p > 1/2, or only just (`memlaw.reach`)."""
    try:
        bounds = _bounds(base, sorted({token for fact in encoded for token in fact.target}))
    except ModelError as error:
        yield Finding(
            "info",
            None,
            "reach-unknown",
            f"Which tokens an adapter can bring to p > 1/2 was not found out: {error}",
            "Train, and see in `memlaw recall` whether the same tokens stay stubborn.",
        )
        return
    for fact in encoded:
        reach = [bounds[token] for token in fact.target]
        never = tuple(t for t, (_, upper) in enumerate(reach) if upper <= 0.5)
        barely = tuple(t for t, (lower, upper) in enumerate(reach) if lower <= BARELY and upper > 0.5)
        if never:
            yield Finding(
                "error",
                fact.id,
                "unreachable-token",
                f"No adapter below the frozen head can give {_tokens(never, fact)} p > 1/2: no rank, method or number "
                "of steps makes this target certain.",
                "Word the target otherwise, or train the head as well (PEFT: modules_to_save=['lm_head']).",
                never,
            )
        if barely:
            yield Finding(
                "warning",
                fact.id,
                "barely-reachable",
                f"The frozen head gives {_tokens(barely, fact)} hardly more than p = 1/2 at best: last to be recalled, "
                "and first to be lost.",
                "Word the target otherwise if they stay stubborn, or train the head as well.",
                barely,
            )


def _tokens(positions: Sequence[int], fact: EncodedFact) -> str:
    return f"{len(positions):,} of its {fact.length:,} target tokens (first at position {positions[0]})"


def _bounds(base: Base, tokens: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Token -> (a probability that is attained, a probability that none exceeds)."""
    with frozen(base.model):
        found = reach_bounds(frozen_head(base.model), tokens)
    return dict(zip(tokens, zip(found.lower.tolist(), found.upper.tolist(), strict=True), strict=True))


# --- an adapter ------------------------------------------------------------------------------------------------------


def adapter_findings(
    base: Base, memory_set: MemorySet, encoded: Sequence[EncodedFact], directory: Path
) -> Iterator[Finding]:
    """An adapter of another base, of other facts, or one that changes nothing. Raises AdapterError for no adapter."""
    info = load_info(directory) or {}
    if info and info["base_fingerprint"] != base.fingerprint:
        yield Finding(
            "error",
            None,
            "adapter-of-another-base",
            f"The adapter {directory} was trained on {info['base']} (weights {info['base_fingerprint'][:12]}), not on "
            f"{base.name} (weights {base.fingerprint[:12]}), where it would give other text without any error.",
            f"Use --model {info['base']}, or train the adapter again.",
        )
        return
    if info.get("facts_fingerprint", memory_set.fingerprint) != memory_set.fingerprint:
        yield Finding(
            "info",
            None,
            "adapter-of-other-facts",
            f"The adapter {directory} was trained on other prompts or targets than these, or with another rule for the "
            "end of sequence.",
            "Ask with exactly the facts that were trained: same prompts, same template, same --eos.",
        )
    if encoded and _changes_nothing(base, min(encoded, key=lambda fact: len(fact.ids)), directory):
        yield Finding(
            "error",
            None,
            "adapter-is-zero",
            f"The adapter {directory} loads and changes no logit: its B is zero, as before training, or its weights "
            "have names that this model has not.",
            "Save the adapter after training, from the model that was trained, and check the names of its modules.",
        )


def _changes_nothing(base: Base, fact: EncodedFact, directory: Path) -> bool:
    bare = _logits(base, fact)
    with attach(base, directory):
        return torch.equal(_logits(base, fact), bare)


def _logits(base: Base, fact: EncodedFact) -> Tensor:
    with frozen(base.model), torch.no_grad():
        ids = torch.tensor([fact.ids[: base.context]], device=base.device)
        logits: Tensor = base.model(input_ids=ids, use_cache=False).logits
        return logits


# --- a rank ----------------------------------------------------------------------------------------------------------


def rank_findings(
    base: Base,
    encoded: Sequence[EncodedFact],
    adapter: Path | None,
    law: KnownLaw | None,
    rank: int | None,
    placement: str | None,
) -> Iterator[Finding]:
    """A rank that the law puts below what these facts need; a warning where even its interval is above that rank.

    Says nothing where no rank is known.
    """
    info: Mapping[str, Any] = (load_info(adapter) if adapter is not None else None) or {}
    rank = info.get("rank") if rank is None else rank
    facts = [fact for fact in encoded if base.context is None or len(fact.ids) <= base.context]
    if rank is None or not facts:
        return
    where = parse_placement(info.get("placement") if placement is None else placement, base.model)
    where.check_rank(rank)
    plan = plan_for(base, facts, where, lambda use: nearest((), use) if law is None else suited(law, use))
    borrowed = " The law is borrowed from another model; `memlaw probe` gives this one its own."
    doubt = borrowed if plan.law.borrowed else ""
    certain: Severity = "warning" if plan.rank.low is None or rank < plan.rank.low else "info"
    if plan.reason is not None:
        yield Finding(
            certain,
            None,
            "no-rank-fits",
            f"{plan.reason}{doubt}",
            "Adapt more modules or layers (--placement all-linear), or split the facts over several adapters.",
        )
    elif plan.rank.value is not None and rank < plan.rank.value:
        high = "or more" if plan.rank.high is None else f"to {plan.rank.high}"
        yield Finding(
            certain,
            None,
            "rank-too-small",
            f"At {where} the law asks for rank {plan.rank.value} (95%: {plan.rank.low} {high}) to recall these "
            f"{plan.tokens:,} target tokens, and the rank is {rank}.{doubt}",
            f"Train at rank {plan.rank.value} or somewhat above.",
        )
