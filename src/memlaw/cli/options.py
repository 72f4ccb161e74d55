"""Options that commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from memlaw.cli.output import note, quiet_transformers
from memlaw.core.errors import ConfigError
from memlaw.data import OnConflict

if TYPE_CHECKING:
    from memlaw.core.facts import EncodedFact, MemorySet
    from memlaw.data import Reading
    from memlaw.model.base import Base
    from memlaw.model.outline import Outline
    from memlaw.model.tokenizer import Tokenizer
    from memlaw.planning.for_facts import Names


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Facts, and the model that is to know them."""

    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Facts: JSONL, CSV, text, a saved dataset, a Hub id, or a task such as task:phonebook:tokens=1000.",
        ),
    ]
    model: Annotated[str, typer.Option(help="Hub id, local directory, or memlaw/base (bundled).")] = "memlaw/base"
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, float64 or auto.")] = "auto"
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")] = "auto"
    eos: Annotated[
        bool | None,
        typer.Option(
            "--eos/--no-eos",
            help="Store the end of sequence too.  [default: yes for records, no for one long target]",
        ),
    ] = None
    on_conflict: Annotated[OnConflict, typer.Option(help="Of several targets of one prompt, keep this.")] = "error"
    prompt_field: Annotated[str | None, typer.Option(metavar="NAME", help="Field or column of the prompts.")] = None
    target_field: Annotated[str | None, typer.Option(metavar="NAME", help="Field or column of the targets.")] = None

    def base(self) -> Base:
        from memlaw.model.base import load

        quiet_transformers()
        base = load(self.model, dtype=self.dtype, device=self.device)
        for warning in base.warnings:
            note(f"Warning: {warning}")
        return base

    def memory_set(self, base: Base) -> MemorySet:
        """The facts; what deserves a warning goes to stderr."""
        from memlaw.data.load import load_memory_set
        from memlaw.model.reach import reachable_ids

        memory_set = load_memory_set(self.data, base.tokenizer, functools.partial(reachable_ids, base), self.reading)
        for warning in memory_set.warnings:
            note(f"Warning: {warning}")
        return memory_set

    @property
    def asks_the_model(self) -> bool:
        """Whether the facts cannot be known without the model: a task draws tokens that its head can produce."""
        from memlaw.data.tasks import SPEC_PREFIX

        return self.data.startswith(SPEC_PREFIX)

    def outlined(self) -> tuple[Outline, tuple[EncodedFact, ...], Names]:
        """The model's outline, the facts as its tokens and the names of both, by its files alone: without torch."""
        from memlaw.data import encode
        from memlaw.data.facts import read_as
        from memlaw.model.outline_from_files import outline_of_files
        from memlaw.model.tokenizer import load_tokenizer

        outline, tokenizer = outline_of_files(self.model), load_tokenizer(self.model)
        memory_set = read_as(self.data, self.reading, tokenizer)
        for warning in memory_set.warnings:
            note(f"Warning: {warning}")
        return outline, encode(memory_set, tokenizer, context=outline.context), self.names(memory_set, tokenizer)

    def names(self, memory_set: MemorySet, tokenizer: Tokenizer) -> Names:
        """What a plan calls the model and the facts, and what tells them apart."""
        from memlaw.model.tokenizer import tokenizer_fingerprint
        from memlaw.planning.for_facts import Names

        tokens = tokenizer_fingerprint(tokenizer)
        return Names(self.model, self.data, self.typed_reading, tokens, memory_set.fingerprint)

    @property
    def reading(self) -> Reading:
        from memlaw.data import Reading

        return Reading(
            eos=self.eos,
            on_conflict=self.on_conflict,
            prompt_field=self.prompt_field,
            target_field=self.target_field,
        )

    @property
    def typed_reading(self) -> tuple[str, ...]:
        """The options given that say how the facts are read, as they are typed."""
        end = {None: (), True: ("--eos",), False: ("--no-eos",)}[self.eos]
        conflict = () if self.on_conflict == "error" else ("--on-conflict", self.on_conflict)
        prompt = () if self.prompt_field is None else ("--prompt-field", self.prompt_field)
        target = () if self.target_field is None else ("--target-field", self.target_field)
        return (*end, *conflict, *prompt, *target)

    def load(self) -> tuple[Base, MemorySet, tuple[EncodedFact, ...]]:
        """The model, the facts, and the facts as its tokens."""
        from memlaw.data import encode

        base = self.base()
        memory_set = self.memory_set(base)
        return base, memory_set, encode(memory_set, base.tokenizer, context=base.context)


def on_inputs(run: Callable[..., None]) -> Callable[..., None]:
    """`run` with the fields of Inputs as options in place of its parameter `inputs`: typer reads a flat signature."""
    hints = get_type_hints(run, include_extras=True) | get_type_hints(Inputs, include_extras=True)
    shared = list(inspect.signature(Inputs).parameters.values())
    flat = [
        parameter.replace(annotation=hints[parameter.name])
        for own in inspect.signature(run).parameters.values()
        for parameter in (shared if own.name == "inputs" else [own])
    ]

    @functools.wraps(run)
    def command(**given: Any) -> None:
        run(inputs=Inputs(**{field.name: given.pop(field.name) for field in fields(Inputs)}), **given)

    command.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    command.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return command


Placement = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="mlp@LAYER, down_proj@4, q_proj,v_proj, all-linear.  [default: the MLP's last module, two thirds up]",
    ),
]

Steps = Annotated[int | None, typer.Option(help="Optimizer steps; under --until recalled, at most.")]

LearningRate = Annotated[float | None, typer.Option("--learning-rate", "--lr", help="AdamW's step size at first.")]

BatchSize = Annotated[int | None, typer.Option(help="Records a step; 0 = all of them.")]

Compile = Annotated[bool, typer.Option("--compile", help="Compile the upper layers: for many thousands of steps.")]

EvictPrefix = Annotated[
    bool, typer.Option("--evict-prefix", help="Keep the layers below the adapter in main memory, off the GPU.")
]

CheckpointMinutes = Annotated[float, typer.Option(help="Minutes between two checkpoints of a training.")]

Laws = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A library of laws, see `memlaw laws`.  [default: laws]", envvar="MEMLAW_LAWS"),
]

ShowText = Annotated[
    bool, typer.Option("--show-text", help="Include target texts, which are secrets; the file is its owner's alone.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def integers(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not a list of whole numbers such as 1,2,4.") from None
