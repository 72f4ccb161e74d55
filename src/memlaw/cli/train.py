"""memlaw train: train an adapter that recalls the facts verbatim."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memlaw.cli.options import AsJson, ExecutionOptions, Inputs, Neutral, Placement
from memlaw.cli.output import counted, emit, note
from memlaw.cli.records import setting
from memlaw.core.canonical import to_dict
from memlaw.core.config import AUTO, PRESETS, Method, Optimizer, TrainConfig, Until
from memlaw.core.errors import ConfigError, TrainError, suggest
from memlaw.core.precision import AS_LOADED, MARGINS, QUANTISED
from memlaw.core.settings import names
from memlaw.core.side_effects import sentence
from memlaw.model.files import is_gguf, source_of

if TYPE_CHECKING:
    from memlaw.training.result import Trained


_training = partial(setting, TrainConfig, presets=PRESETS)


def _rate(text: str) -> float:
    """A learning rate as typed: a number, or "auto"."""
    return AUTO if text == "auto" else float(text)


def _arithmetic(model: str, dtype: str) -> str:
    """The precision in which a model is served that is loaded in `dtype`: a quantised file, as it is."""
    if not is_gguf(model):
        return dtype
    from memlaw.model.gguf import is_quantised

    return QUANTISED[0] if is_quantised(source_of(model)) else dtype


def _margins() -> str:
    return ", ".join(f"{dtype} {margin:g}" for dtype, margin in MARGINS.items() if dtype != "float64")


@dataclass(frozen=True, kw_only=True)
class NewAdapter:
    """The adapter to train."""

    rank: Annotated[int, typer.Option(help="LoRA rank; `memlaw plan` suggests one.")]
    out: Annotated[Path, typer.Option(help="Directory to save the adapter in, in PEFT's format.")]
    placement: Placement = None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How it is trained: a preset, and the settings that differ from it."""

    method: Annotated[Method | None, _training("method")] = None
    until: Annotated[Until | None, _training("until")] = None
    margin: Annotated[float | None, _training("margin")] = None
    steps: Annotated[int | None, _training("steps")] = None
    learning_rate: Annotated[
        float | None, _training("learning_rate", "--learning-rate", "--lr", metavar="auto|RATE", parser=_rate)
    ] = None
    optimizer: Annotated[Optimizer | None, _training("optimizer")] = None
    momentum: Annotated[float | None, _training("momentum")] = None
    protect: Annotated[float | None, _training("protect")] = None
    batch_size: Annotated[int | None, _training("batch_size")] = None
    seed: Annotated[int | None, _training("seed")] = None
    judged_in: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="PRECISION,...",
            help="Precision in which the facts must come back, or several, such as q8_0,q4_0: they are trained on the "
            f"base as it is there, and the default margin is the largest of theirs ({_margins()}).  [default: that of "
            "--dtype, or else float32; of a quantised GGUF file, its own]",
            show_default=False,
        ),
    ] = None
    preset: Annotated[
        str,
        typer.Option(
            help="Defaults of these settings: default (Muon, OT until recalled), adamw or paper (as published)."
        ),
    ] = "default"

    def config(self, dtype: str, model: str) -> TrainConfig:
        """The preset, with the options that were given; `dtype` is that of the base `model`, as typed. Raises
        ConfigError; ModelError for a GGUF file that cannot be read."""
        if self.preset not in PRESETS:
            raise ConfigError(f"Unknown preset {self.preset!r}; known: {', '.join(PRESETS)}.")
        known = names(TrainConfig)
        given = {name: value for name, value in vars(self).items() if name in known and value is not None}
        precisions = self._precisions()
        margin = self._margin(precisions or (_arithmetic(model, dtype),))
        return replace(PRESETS[self.preset], **margin | self._weights(precisions) | given)

    def _precisions(self) -> tuple[str, ...]:
        """Those in which recall will be judged; empty if not given."""
        asked = tuple(dict.fromkeys(() if self.judged_in is None else self.judged_in.split(",")))
        for one in asked:
            if one not in MARGINS:
                raise ConfigError(
                    f"--for {one!r} is not a precision in which recall can be judged. "
                    f"{suggest(one, MARGINS)}Known: {', '.join(MARGINS)}."
                )
        return asked

    def _margin(self, precisions: Sequence[str]) -> dict[str, float]:
        """The margin that all precisions need; a preset without one keeps none unless asked."""
        if self.judged_in is None and not PRESETS[self.preset].margin:
            return {}
        return {"margin": max(MARGINS.get(one, MARGINS["float32"]) for one in precisions)}

    def _weights(self, precisions: Sequence[str]) -> dict[str, Any]:
        """The setting that has the base trained on as it is in these precisions."""
        rounding = [one for one in precisions if one not in AS_LOADED]
        if rounding and (len(precisions) > 1 or rounding[0] in QUANTISED):
            raise ConfigError(
                f"--for {self.judged_in} trains on other weights than those that are loaded, and a ledger judges its "
                "facts on these. Make the ledger for the model as it is served: --model FILE.gguf."
            )
        return {}


@dataclass(frozen=True, kw_only=True)
class OneTraining(TrainingOptions):
    """Settings of an adapter that is trained once."""

    def _weights(self, precisions: Sequence[str]) -> dict[str, Any]:
        needed = any(one not in AS_LOADED for one in precisions)
        return {"served_as": tuple(precisions)} if needed else {}

    rehearse: Annotated[int | None, _training("rehearse")] = None
    protect_on: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Plain text that protection is to keep as it is.  [default: sampled from the model]"
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions:
    """What is measured once it is trained."""

    side_effects: Annotated[
        bool,
        typer.Option(
            "--side-effects/--no-side-effects", help="Measure what the adapter changes elsewhere.  [default: yes]"
        ),
    ] = True
    neutral: Neutral = None

    def check(self) -> None:
        """Raise ConfigError for options that contradict each other."""
        if self.neutral is not None and not self.side_effects:
            raise ConfigError("--neutral is for side effects, which --no-side-effects leaves out: give one of the two.")


def train(
    *,
    adapter: NewAdapter,
    training: OneTraining,
    measuring: MeasuringOptions,
    options: ExecutionOptions,
    inputs: Inputs,
    as_json: AsJson = False,
) -> None:
    """Make it stick: train an adapter that recalls DATA verbatim."""
    from memlaw.adapter.on_model import placement_on
    from memlaw.adapter.peft import check_free
    from memlaw.api import where_it_runs, with_side_effects, yardstick_for
    from memlaw.cli.progress import training_bar
    from memlaw.training.adapter import train_adapter
    from memlaw.training.divergence import SMALLER
    from memlaw.training.protection import text_of_file
    from memlaw.training.run import Run

    measuring.check()
    rank, out, config, execution = (
        adapter.rank,
        adapter.out,
        training.config(inputs.dtype, inputs.model),
        options.execution(),
    )
    check_free(out)  # this and what follows, before what takes long: the model, and a search for the facts of a task
    base = inputs.load_base()
    where = placement_on(adapter.placement, base.model)
    where.check_rank(rank)
    memory_set = inputs.load_facts(base)
    if where.caution:
        note(where.caution)
    kept = None if training.protect_on is None else text_of_file(base, training.protect_on)
    given, judged = None, where_it_runs(base, config)
    if measuring.side_effects and measuring.neutral is not None:  # an error in it must not come after the training
        given = yardstick_for(judged, memory_set, measuring.neutral)
    with training_bar(f"rank {rank}") as on_step:
        run = Run(rank, where, config, neutral=kept)
        trained = train_adapter(base, memory_set, run, out=out, execution=execution, on_step=on_step)
    if trained.status != "finished":
        raise TrainError(f"Training {trained.status}: {trained.message}. Nothing was saved.")
    if measuring.side_effects:
        trained = with_side_effects(judged, memory_set, trained, given or yardstick_for(judged, memory_set), out)
    document = {
        "adapter": str(out),
        "steps": trained.steps,
        "tokens_forwarded": trained.tokens_forwarded,
        "seconds": round(trained.seconds, 3),
        "recalled": trained.recalled,
        "other_text": list(trained.other_text),
        "loss_init": trained.loss_init,
        "loss_final": trained.loss_final,
        "margin": config.margin,
        "served_as": list(config.served_as),
        "learning_rate": trained.config.learning_rate,
        "rank": rank,
        "placement": str(where),
        "parameters": trained.parameters,
        "side_effects": None if trained.side_effects is None else to_dict(trained.side_effects),
    }
    emit(as_json, document, train_lines(trained, out))
    if trained.other_text:
        note(
            f"{counted(len(trained.other_text), 'fact')} cannot come back verbatim, since the tokenizer changes the "
            f"target; `memlaw check {inputs.data} --model {inputs.model}` says how to fix this."
        )
    elif trained.loss_final is not None and trained.loss_final > trained.loss_init:
        lower = trained.config.learning_rate / SMALLER
        note(f"Training raised the loss: try a quarter of the learning rate, {lower:.3g}.")
    elif not trained.recalled:
        note(
            f"Some facts are not recalled yet{_what_to_try(trained)} (`memlaw plan` suggests one); "
            f"`memlaw recall {inputs.data} --model {inputs.model} --adapter {out}{_as(config)} --decode` shows what is "
            "missing."
        )


def _as(config: TrainConfig) -> str:
    """The option of `memlaw recall` that judges where the adapter is to run."""
    return f" --as {config.served_as[0]}" if config.served_as else ""


def _what_to_try(trained: Trained) -> str:
    if trained.steps < trained.config.steps:
        return ", and training came no closer for half of its steps or more. Try a higher --rank"
    return ". Try more --steps or a higher --rank"


def train_lines(trained: Trained, out: Path) -> Iterator[str]:
    """How a training run ended."""
    margin = f" with a margin of at least {trained.config.margin:g} nats" if trained.config.margin else ""
    margin += f" in {' and '.join(trained.config.served_as)}" if trained.config.served_as else ""
    ended = f"every target token is ordered{margin}" if trained.recalled else "some target tokens are still stubborn"
    if trained.other_text:
        ended = (
            f"not recalled verbatim: the tokenizer changes the targets of {counted(len(trained.other_text), 'fact')}"
        )
    yield (
        f"{out}: rank {trained.rank} at {trained.placement}, {counted(trained.parameters, 'parameter')}; learning rate "
        f"{trained.config.learning_rate:g}."
    )
    yield (
        f"{counted(trained.steps, 'step')} in {trained.seconds:.0f} s, loss {trained.loss_init:.3f} -> "
        f"{trained.loss_final:.4f} nats per token; {ended}."
    )
    if trained.side_effects is not None:
        yield sentence(trained.side_effects)
