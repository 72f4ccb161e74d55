"""memlaw train: make it stick."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memlaw.cli.options import (
    AsJson,
    BatchSize,
    CheckpointMinutes,
    Compile,
    EvictPrefix,
    Inputs,
    LearningRate,
    Placement,
    Steps,
)
from memlaw.cli.output import counted, emit, note
from memlaw.core.config import Execution, Method, TrainConfig, Until
from memlaw.core.errors import ConfigError, TrainError

if TYPE_CHECKING:
    from memlaw.training.result import Trained


def train(
    *,
    rank: Annotated[int, typer.Option(help="LoRA rank; `memlaw plan` says which.")],
    out: Annotated[Path, typer.Option(help="Directory of the adapter, in PEFT's format.")],
    placement: Placement = None,
    method: Annotated[
        Method | None,
        typer.Option(
            help="Train on all target tokens (sft), on those not yet recalled (ot), on those at and behind the first "
            "error (sw), or like ot on more and more of the records (curriculum)."
        ),
    ] = None,
    until: Annotated[Until | None, typer.Option(help="Stop when all is recalled, or take all the steps.")] = None,
    margin: Annotated[float | None, typer.Option(help="Nats under ln 2 that every token must reach.")] = None,
    steps: Steps = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    seed: Annotated[int | None, typer.Option(help="Of the initial weights and the order of the records.")] = None,
    preset: Annotated[
        str, typer.Option(help="Settings to start from: default (ot until recalled), or paper (as published).")
    ] = "default",
    compiled: Compile = False,
    evict_prefix: EvictPrefix = False,
    checkpoint_minutes: CheckpointMinutes = Execution.checkpoint_minutes,
    inputs: Inputs,
    as_json: AsJson = False,
) -> None:
    """Make it stick: train an adapter that recalls DATA verbatim."""
    from memlaw.adapter.on_model import placement_on
    from memlaw.cli.progress import training_bar
    from memlaw.training.adapter import train_adapter
    from memlaw.training.run import Run

    config = _train_config(
        preset,
        method=method,
        until=until,
        margin=margin,
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
    )
    execution = Execution(compiled=compiled, evict_prefix=evict_prefix, checkpoint_minutes=checkpoint_minutes)
    base, memory_set, _ = inputs.load()
    where = placement_on(placement, base.model)
    if where.caution:
        note(where.caution)
    with training_bar(f"rank {rank}") as on_step:
        run = Run(rank, where, config)
        trained = train_adapter(base, memory_set, run, out=out, execution=execution, on_step=on_step)
    if trained.status != "finished":
        raise TrainError(f"Training {trained.status}: {trained.message}. Nothing was saved.")
    document = {
        "adapter": str(out),
        "steps": trained.steps,
        "seconds": round(trained.seconds, 3),
        "recalled": trained.recalled,
        "loss_init": trained.loss_init,
        "loss_final": trained.loss_final,
        "rank": rank,
        "placement": str(where),
        "parameters": trained.parameters,
    }
    emit(as_json, document, train_lines(trained, out))
    if not trained.recalled:
        note(
            f"Not everything is recalled. More --steps or a higher --rank get further (`memlaw plan` says which rank); "
            f"`memlaw recall {inputs.data} --model {inputs.model} --adapter {out} --decode` shows what is missing."
        )


def _train_config(preset: str, **given: Any) -> TrainConfig:
    """The preset with the options that were given."""
    from memlaw.core.config import PRESETS

    if preset not in PRESETS:
        raise ConfigError(f"There is no preset {preset!r}; known: {', '.join(PRESETS)}.")
    return replace(PRESETS[preset], **{name: value for name, value in given.items() if value is not None})


def train_lines(trained: Trained, out: Path) -> Iterator[str]:
    """Make it stick."""
    margin = f" by {trained.config.margin:g} nats or more" if trained.config.margin else ""
    ended = f"every target token is ordered{margin}" if trained.recalled else "some target tokens are still stubborn"
    yield f"{out}: rank {trained.rank} at {trained.placement}, {counted(trained.parameters, 'parameter')}."
    yield (
        f"{counted(trained.steps, 'step')} in {trained.seconds:.0f} s, loss {trained.loss_init:.3f} -> "
        f"{trained.loss_final:.4f} nats a token; {ended}."
    )
