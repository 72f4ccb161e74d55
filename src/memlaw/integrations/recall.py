"""The recall of a memory set during training."""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from memlaw.adapter.wrapper import refuse_peft_model
from memlaw.core.errors import ConfigError
from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.core.precision import TOLERANCE
from memlaw.core.recall import RecallReport
from memlaw.core.side_effects import SideEffects
from memlaw.data import encode
from memlaw.data.load import Facts, load_memory_set
from memlaw.data.spelling import changed_facts, changed_warning
from memlaw.diagnosis.measure import measure
from memlaw.diagnosis.side_effects import Alone, alone, yardstick
from memlaw.diagnosis.side_effects import side_effects as compare
from memlaw.integrations.step import processes
from memlaw.model.base import Base, wrap
from memlaw.model.reach import reachable_ids


class RecallCallback(TrainerCallback):  # type: ignore[misc]
    """Measures a memory set every `every` steps, logs its recall, and stops training once all records are certified.

    Logged beside the training loss of the same step: `recall/ordered` (share of tokens with p > 1/2),
    `recall/stubborn` (number of all other tokens), `recall/min_margin` (nats), `recall/earliest_stubborn` (position, if
    any token is stubborn) and `recall/exact_match` (share of records that greedy decoding reproduces). A certificate
    needs a margin above the tolerance of the precision in which the Trainer computes.

    With `side_effects`, also what the training costs (`memlaw.side_effects`): `side_effects/loss_difference` and
    `side_effects/kl` (nats a token of neutral text), `side_effects/top1_agreement` and, where there are any near
    misses, `side_effects/near_miss`. A PEFT model is compared with itself without its adapter, any other with what it
    was when this training began.

    In `Trainer(callbacks=[...])` it comes after the callbacks of `report_to`; `watch_recall` puts it before them.
    """

    def __init__(
        self,
        memory_set: Facts,
        *,
        every: int,
        stop_when_recalled: bool = True,
        tokenizer: Any = None,
        side_effects: bool | str | os.PathLike[str] = False,
    ) -> None:
        """`memory_set` as in `memlaw.recall`; `tokenizer` if the Trainer has no processing_class; `side_effects` True,
        or the path of a neutral text to measure them on."""
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ConfigError(f"every is {every!r}: choose a whole number of steps from 1 up.")
        self.memory_set, self.every, self.stop_when_recalled = memory_set, every, stop_when_recalled
        self.report: RecallReport | None = None
        """The latest measurement."""
        self.side_effects: SideEffects | None = None
        """The latest side effects, if asked for."""
        self._measure_effects = side_effects
        self._before: Alone | None = None
        self.first = False
        """It comes before all callbacks that report to a tracker."""
        self._tokenizer = tokenizer
        self._prepared: _Prepared | None = None
        self._unlogged: dict[str, float] = {}

    def on_train_begin(self, args: Any, _state: Any, _control: Any, *, model: Any, **kwargs: Any) -> None:
        trackers = [name for name in args.report_to or () if name != "none"]
        if trackers and not self.first:
            warnings.warn(
                f"{', '.join(trackers)} will not get the recall/ values, since callbacks passed to the Trainer run "
                "after its trackers: call watch_recall(trainer, ...) instead.",
                stacklevel=2,
            )
        if self._measure_effects is not False:
            self._before = self._alone(self._prepare(model, kwargs.get("processing_class")))

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        prepared = self._prepare(model, kwargs.get("processing_class"))
        self.report = _of_first_process(measure(prepared.base, prepared.facts, decode=True))
        self._unlogged = recall_values(self.report)
        if self._before is not None:
            self.side_effects = compare(prepared.base, self._before)
            self._unlogged |= side_effect_values(self.side_effects)
        control.should_log = True
        if self.stop_when_recalled and _certified(self.report, args):
            control.should_training_stop = True

    def on_log(self, _args: Any, state: Any, _control: Any, *, logs: dict[str, float], **_kwargs: Any) -> None:
        logs.update(self._unlogged)
        state.log_history[-1].update(self._unlogged)
        self._unlogged = {}

    def _alone(self, prepared: _Prepared) -> Alone:
        """The model without its adapter, or as it is now."""
        disabled = getattr(prepared.base.model, "disable_adapter", None)
        neutral = None if self._measure_effects is True else Path(str(self._measure_effects))
        with nullcontext() if disabled is None else disabled():
            before = alone(prepared.base, yardstick(prepared.base, prepared.memory_set, neutral=neutral))
        return before if disabled is not None else before.kept()

    def _prepare(self, model: Any, processing_class: Any) -> _Prepared:
        tokenizer = processing_class if self._tokenizer is None else self._tokenizer
        if tokenizer is None:
            raise ConfigError(
                "Recall is measured in tokens, but the trainer has no tokenizer: pass processing_class=tokenizer to "
                "the Trainer, or tokenizer=... here."
            )
        if self._prepared is None or self._prepared.base.model is not model:
            base = wrap(model, tokenizer)
            refuse_peft_model(base)
            memory_set = load_memory_set(self.memory_set, tokenizer, partial(reachable_ids, base))
            facts = encode(memory_set, tokenizer, context=base.context, stops=base.stops)
            if changed := changed_facts(base, facts):
                warnings.warn(f"{changed_warning(changed, len(facts))} Training will not stop early.", stacklevel=2)
            self._prepared = _Prepared(base, memory_set, facts)
        return self._prepared


@dataclass(frozen=True)
class _Prepared:
    """The model in training, and what it is to recall."""

    base: Base
    memory_set: MemorySet
    facts: tuple[EncodedFact, ...]


def watch_recall(
    trainer: Any,
    memory_set: Facts,
    *,
    every: int,
    stop_when_recalled: bool = True,
    tokenizer: Any = None,
    side_effects: bool | str | os.PathLike[str] = False,
) -> RecallCallback:
    """Add a `RecallCallback` before all other callbacks of a Trainer, so that its trackers get the values too."""
    callback = RecallCallback(
        memory_set,
        every=every,
        stop_when_recalled=stop_when_recalled,
        tokenizer=tokenizer,
        side_effects=side_effects,
    )
    callback.first = True
    trainer.callback_handler.callbacks.insert(0, callback)
    return callback


def recall_values(report: RecallReport) -> dict[str, float]:
    """The numbers of a report that are logged."""
    earliest = [item.earliest_stubborn for item in report.items if item.earliest_stubborn is not None]
    values = {
        "recall/ordered": report.ordered / report.tokens,
        "recall/stubborn": report.tokens - report.ordered,
        "recall/min_margin": report.min_margin,
    }
    if earliest:
        values["recall/earliest_stubborn"] = min(earliest)
    if report.acc_em is not None:
        values["recall/exact_match"] = report.acc_em
    return values


def side_effect_values(effects: SideEffects) -> dict[str, float]:
    """The numbers of side effects that are logged."""
    names = ("loss_difference", "kl", "top1_agreement", "near_miss")
    return {f"side_effects/{name}": value for name in names if (value := getattr(effects, name)) is not None}


def _certified(report: RecallReport, args: Any) -> bool:
    """Whether all records are certified, even if autocast makes the forward less precise than the weights."""
    autocast = TOLERANCE["bfloat16"] if args.bf16 else TOLERANCE["float16"] if args.fp16 else 0.0
    return report.certified == report.records and report.min_margin > max(autocast, report.tolerance)


def _of_first_process(report: RecallReport) -> RecallReport:
    """The same report in all processes: if they differed by a rounding, they could stop at different steps."""
    reports = [report]
    if processes() > 1:
        dist.broadcast_object_list(reports)
    return reports[0]
