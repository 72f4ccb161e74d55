"""A plan for facts on a model: what the planner's mathematics needs, measured on the base without training."""

from __future__ import annotations

from collections.abc import Sequence

from memlaw.adapter import Placement
from memlaw.data import target_tokens
from memlaw.measure import measure
from memlaw.model import Base, decoder_layers
from memlaw.plan import Plan, TrainingWork, plan
from memlaw.records import EncodedFact
from memlaw.training import UNTIL_RECALLED
from memlaw.workspace import KnownLaw


def plan_for(
    base: Base, facts: Sequence[EncodedFact], placement: Placement, known: KnownLaw, *, target: float = 1.0
) -> Plan:
    """The rank these facts need at this placement, by a known law. Raises ConfigError, FitError."""
    return plan(
        known.law,
        records=len(facts),
        tokens=target_tokens(facts),
        loss_init=measure(base, facts, decode=False).mean_loss,
        placement=placement,
        target=target,
        observed=known.observed,
        scale=UNTIL_RECALLED.scale,
        work=training_work(base, facts, placement),
    )


def training_work(base: Base, facts: Sequence[EncodedFact], placement: Placement) -> TrainingWork:
    """The most that `memlaw train` would do with its own settings; it stops earlier once everything is recalled."""
    suffix = sum(p.numel() for layer in decoder_layers(base.model)[placement.first_layer :] for p in layer.parameters())
    rows = min(UNTIL_RECALLED.batch_size, len(facts))
    tokens = sum(len(fact.ids) for fact in facts) * rows // len(facts)
    return TrainingWork(suffix + base.model.get_output_embeddings().weight.numel(), tokens, UNTIL_RECALLED.steps)
