"""What the frozen base and an existing adapter make possible."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from memlaw.adapter.faults import NOTHING, Allow
from memlaw.adapter.info import AdapterFaultError, load_info, recorded_training
from memlaw.adapter.peft import attach
from memlaw.core.config import UNTIL_RECALLED
from memlaw.core.errors import ModelError
from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.diagnosis.findings import Finding, Severity
from memlaw.model.base import Base
from memlaw.model.head import frozen_head
from memlaw.model.parts import frozen
from memlaw.model.reach import reach_bounds

BARELY = 0.5 * math.exp(UNTIL_RECALLED.margin)
"""The probability that `memlaw train` requires of every token: one half plus its default margin (0.553)."""


def base_findings(base: Base) -> Iterator[Finding]:
    """Warnings raised when the base was loaded."""
    for warning in base.warnings:
        fix = "Check whether this report lists unreachable-token; otherwise no action is needed."
        yield Finding("info", None, "base", warning, fix)


def reach_findings(base: Base, encoded: Sequence[EncodedFact]) -> Iterator[Finding]:
    """Targets with tokens that no adapter below the frozen head can bring to p > 1/2, or only just above."""
    try:
        bounds = reach_of_tokens(base, sorted({token for fact in encoded for token in fact.target}))
    except ModelError as error:
        yield Finding(
            "info",
            None,
            "reach-unknown",
            f"Could not determine which tokens an adapter can bring to p > 1/2: {error}",
            "Train, then check with `memlaw recall` whether the same tokens stay stubborn.",
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
                f"No adapter below the frozen head can bring {_tokens(never, fact)} to p > 1/2. No rank, method or "
                "number of steps can make recall of this target certain.",
                "Reword the target, or train the head as well (PEFT: modules_to_save=['lm_head']).",
                never,
            )
        if barely:
            yield Finding(
                "warning",
                fact.id,
                "barely-reachable",
                f"With the frozen head, {_tokens(barely, fact)} can reach barely more than p = 1/2. They are the last "
                "to be recalled and the first to be lost.",
                "If they stay stubborn, reword the target or train the head as well.",
                barely,
            )


def _tokens(positions: Sequence[int], fact: EncodedFact) -> str:
    return f"{len(positions):,} of its {fact.length:,} target tokens (first at position {positions[0]})"


def reach_of_tokens(base: Base, tokens: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Token -> (lower, upper) bound of the largest probability that any hidden state can give it."""
    with frozen(base.model):
        bounds = reach_bounds(frozen_head(base.model), tokens)
    return dict(zip(tokens, zip(bounds.lower.tolist(), bounds.upper.tolist(), strict=True), strict=True))


def adapter_findings(
    base: Base, memory_set: MemorySet, encoded: Sequence[EncodedFact], directory: Path, allow: Allow = NOTHING
) -> Iterator[Finding]:
    """What keeps an adapter from being judged or from having an effect, and other facts that it was trained on.

    A fault that `allow` allows is a warning, and the others are looked for. Raises AdapterError for an adapter that is
    missing or damaged.
    """
    try:
        info = load_info(directory)
        faults, changes = _effect(base, encoded, directory, allow)
    except AdapterFaultError as fault:
        yield _finding("error", fault)
        return
    yield from (_finding("warning", accepted) for accepted in faults)
    if info is not None:
        for warning in recorded_training(info)[1]:
            yield Finding("info", None, "adapter-of-a-later-memlaw", warning, "Upgrade memlaw.")
    if info is not None and info.facts_fingerprint not in (None, memory_set.fingerprint):
        yield Finding(
            "info",
            None,
            "adapter-of-other-facts",
            f"The adapter {directory} was trained on different prompts or targets, or with a different --eos setting.",
            "Use exactly the facts it was trained on: same prompts, same template, same --eos.",
        )
    if not changes:
        yield Finding(
            "error",
            None,
            "adapter-is-zero",
            f"The adapter {directory} loads but changes no logit: its weights are those from before training.",
            "Save the adapter after training, from the trained model.",
        )


def _finding(severity: Severity, fault: AdapterFaultError) -> Finding:
    return Finding(severity, None, fault.code, fault.message, fault.fix)


def _effect(
    base: Base, encoded: Sequence[EncodedFact], directory: Path, allow: Allow
) -> tuple[tuple[AdapterFaultError, ...], bool]:
    """The faults that were allowed, and whether the adapter changes any logit of the shortest fact."""
    fact = min(encoded, key=lambda fact: len(fact.ids), default=None)
    bare = None if fact is None else _logits(base, fact)
    with attach(base, directory, allow) as faults:
        return faults, fact is None or bare is None or not torch.equal(_logits(base, fact), bare)


def _logits(base: Base, fact: EncodedFact) -> Tensor:
    with frozen(base.model), torch.no_grad():
        ids = torch.tensor([fact.ids[: base.context]], device=base.device)
        logits: Tensor = base.model(input_ids=ids, use_cache=False).logits
        return logits
