"""The Python API: train, recall and probe on a model and tokenizer that are already in memory.

Each is a few lines over the parts; read them as examples of how the parts fit together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import attach
from memlaw.core.config import UNTIL_RECALLED, Execution, TrainConfig
from memlaw.core.errors import ConfigError
from memlaw.core.facts import MemorySet
from memlaw.core.recall import RecallReport
from memlaw.data import border_merges, encode, target_tokens
from memlaw.data.load import Facts, load_memory_set
from memlaw.diagnosis.findings import SEVERITIES, CheckReport, Finding
from memlaw.diagnosis.lint.chat import chat_findings
from memlaw.diagnosis.lint.keys import key_findings
from memlaw.diagnosis.lint.model import adapter_findings, base_findings, reach_findings
from memlaw.diagnosis.lint.tokens import encodable, set_findings, token_findings
from memlaw.diagnosis.measure import measure
from memlaw.model.base import Base, wrap
from memlaw.model.reach import reachable_ids
from memlaw.planning.library import KnownLaw
from memlaw.planning.rank_check import rank_findings
from memlaw.training.adapter import train_adapter
from memlaw.training.result import StackProgress, Trained
from memlaw.training.run import Run

if TYPE_CHECKING:
    from memlaw.sweep.probe import ProbeSummary


def train(
    model: Any,
    tokenizer: Any,
    facts: Facts,
    *,
    rank: int,
    placement: str | None = None,
    out: str | os.PathLike[str] | None = None,
    config: TrainConfig | None = None,
    execution: Execution | None = None,
    on_step: Callable[[StackProgress], None] | None = None,
    **settings: Any,
) -> Trained:
    """Train one adapter until `facts` are recalled (or for a budget), and save it in PEFT's format to `out`.

    `settings` are fields of TrainConfig, such as method="ot"; without a `config` they change the settings that
    `memlaw train` uses. With `out`, an interrupted training goes on where its last checkpoint was when it is repeated.
    `model` is left as it was. Raises AdapterError, ConfigError, DataError.
    """
    chosen = replace(config or UNTIL_RECALLED, **settings)
    base = wrap(model, tokenizer)
    memory_set = load_memory_set(facts, tokenizer, partial(reachable_ids, base))
    run = Run(rank, placement_on(placement, model), chosen)
    return train_adapter(base, memory_set, run, out=out, execution=execution, on_step=on_step)


def recall(
    model: Any,
    tokenizer: Any,
    facts: Facts,
    *,
    adapter: str | os.PathLike[str] | None = None,
    decode: bool = True,
) -> RecallReport:
    """Did it stick? Per-token probabilities and, with `decode`, verbatim recall and certificates of `facts`.

    `model` is a base, a merged model, or a PEFT model; `adapter` is a directory to add to it for the measurement.
    Raises AdapterError, DataError.
    """
    base = wrap(model, tokenizer)
    encoded = encode(load_memory_set(facts, tokenizer, partial(reachable_ids, base)), tokenizer, context=base.context)
    with nullcontext() if adapter is None else attach(base, Path(adapter)):
        return measure(base, encoded, decode=decode, explain=True)


def probe(
    model: Any,
    tokenizer: Any,
    facts: Facts,
    out: str | os.PathLike[str],
    *,
    execution: Execution | None = None,
    **settings: Any,
) -> ProbeSummary:
    """Train and measure a grid of adapters; `settings` are those of ProbeConfig, such as ranks=[1, 2], lengths=[16].

    What `out` already holds is not trained again. Raises ConfigError, DataError, AdapterError, JournalError.
    """
    from memlaw.sweep.config import ProbeConfig
    from memlaw.sweep.probe import probe as run
    from memlaw.sweep.scheduler import ProbeRun

    base = wrap(model, tokenizer)
    memory_set = load_memory_set(facts, tokenizer, partial(reachable_ids, base))
    return run(base, memory_set, ProbeConfig(**settings), out, ProbeRun(execution=execution or Execution()))


__all__ = ["check", "check_on"]


def check(
    model: Any,
    tokenizer: Any,
    facts: Facts,
    *,
    adapter: str | os.PathLike[str] | None = None,
    law: KnownLaw | None = None,
    rank: int | None = None,
    placement: str | None = None,
) -> CheckReport:
    """What would keep `facts` from being recalled by this model, with this adapter or at this rank.

    Nothing is trained and nothing changed. The rank, by default that of an adapter which memlaw wrote, is judged by
    `law` (`memlaw.sweep.laws.known_law`), by default the borrowed one. Raises DataError for facts that cannot be read,
    AdapterError for an adapter that cannot be, ConfigError for a law with no rank to judge.
    """
    base = wrap(model, tokenizer)
    memory_set = load_memory_set(facts, tokenizer, partial(reachable_ids, base))
    return check_on(base, memory_set, adapter=adapter, law=law, rank=rank, placement=placement)


def check_on(
    base: Base,
    memory_set: MemorySet,
    *,
    adapter: str | os.PathLike[str] | None = None,
    law: KnownLaw | None = None,
    rank: int | None = None,
    placement: str | None = None,
) -> CheckReport:
    """`check`, on a base and facts already loaded."""
    if law is not None and rank is None and adapter is None:
        raise ConfigError("A law judges a rank, and none was given. Give a rank (--rank) or an adapter (--adapter).")
    encoded = encodable(memory_set, base.tokenizer)
    merging = border_merges(memory_set, base.tokenizer)

    def findings() -> Iterator[Finding]:
        yield from base_findings(base)
        yield from set_findings(memory_set, base.tokenizer, merging)
        yield from chat_findings(memory_set, base.tokenizer)
        yield from token_findings(memory_set, encoded, base, merging)
        yield from key_findings(memory_set, encoded)
        yield from reach_findings(base, encoded)
        directory = None if adapter is None else Path(adapter)
        if directory is not None:
            yield from adapter_findings(base, memory_set, encoded, directory)
        yield from rank_findings(base, encoded, directory, law, rank, placement)

    found = sorted(findings(), key=lambda finding: SEVERITIES.index(finding.severity))
    return CheckReport(len(memory_set.facts), target_tokens(encoded), tuple(found))
