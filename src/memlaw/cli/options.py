"""Options that several commands share."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memlaw.cli.output import note, quiet_transformers
from memlaw.cli.records import setting
from memlaw.core.config import Execution
from memlaw.core.errors import ConfigError
from memlaw.data import OnConflict, Turns

if TYPE_CHECKING:
    from memlaw.core.facts import EncodedFact, MemorySet
    from memlaw.data import Reading
    from memlaw.model.base import Base
    from memlaw.model.outline import Outline
    from memlaw.model.tokenizer import Tokenizer
    from memlaw.planning.for_facts import Names


Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, float64 or auto.")]

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")]


OnConflictChoice = Annotated[
    OnConflict, typer.Option(help="Which target to keep if a prompt has several; error refuses the data.")
]

TurnsChoice = Annotated[
    Turns,
    typer.Option(help="Answers of a chat to store: all, each with its history as prompt, or only the last."),
]

PromptField = Annotated[str | None, typer.Option(metavar="NAME", help="Field or column of the prompts.")]

TargetField = Annotated[str | None, typer.Option(metavar="NAME", help="Field or column of the targets.")]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The facts, and the model that stores them."""

    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Facts: JSONL, CSV or text file, saved dataset, Hub id, or a task such as task:phonebook:tokens=1000.",
        ),
    ]
    model: Annotated[str, typer.Option(help="Hub id, local directory, GGUF file, or memlaw/base (bundled).")] = (
        "memlaw/base"
    )
    dtype: Dtype = "auto"
    device: Device = "auto"
    eos: Annotated[
        bool | None,
        typer.Option(
            "--eos/--no-eos",
            help="End each target with the end-of-sequence token.  [default: yes for records, no for one long target]",
        ),
    ] = None
    on_conflict: OnConflictChoice = "error"
    turns: TurnsChoice = "all"
    prompt_field: PromptField = None
    target_field: TargetField = None

    def load_base(self) -> Base:
        return load_base(self.model, self.dtype, self.device)

    def read_facts(self, base: Base) -> MemorySet:
        from memlaw.cli.progress import judging_bar
        from memlaw.data.load import load_memory_set
        from memlaw.model.reach import reachable_ids

        with judging_bar() as progress:
            random_ids = functools.partial(reachable_ids, base, progress)
            return load_memory_set(self.data, base.tokenizer, random_ids, self.reading)

    def load_facts(self, base: Base) -> MemorySet:
        """Read the facts; warnings about them go to stderr."""
        return with_warnings(self.read_facts(base))

    def load(self) -> tuple[Base, MemorySet, tuple[EncodedFact, ...]]:
        """The model, the facts, and the facts in the model's tokens."""
        from memlaw.data import encode

        base = self.load_base()
        memory_set = self.load_facts(base)
        return base, memory_set, encode(memory_set, base.tokenizer, context=base.context, stops=base.stops)

    @property
    def needs_model(self) -> bool:
        """A task draws tokens that the model's head can produce, so its facts depend on the weights."""
        from memlaw.data.tasks import SPEC_PREFIX

        return self.data.startswith(SPEC_PREFIX)

    def read_outline(self) -> tuple[Outline, tuple[EncodedFact, ...], Names]:
        """The model's outline, the facts in its tokens and the names of both, from files alone: without torch."""
        from memlaw.data import encode
        from memlaw.data.facts import read_as
        from memlaw.model.outline_from_files import outline_of_files
        from memlaw.model.tokenizer import load_tokenizer, stop_ids_of_files

        outline, tokenizer = outline_of_files(self.model), load_tokenizer(self.model)
        memory_set = with_warnings(read_as(self.data, self.reading, tokenizer))
        stops = stop_ids_of_files(self.model, tokenizer)
        encoded = encode(memory_set, tokenizer, context=outline.context, stops=stops)
        return outline, encoded, self.names(memory_set, tokenizer)

    def names(self, memory_set: MemorySet, tokenizer: Tokenizer) -> Names:
        """How a plan names and identifies the model and the facts."""
        from memlaw.model.tokenizer import tokenizer_fingerprint
        from memlaw.planning.for_facts import Names

        fingerprint = tokenizer_fingerprint(tokenizer)
        return Names(self.model, self.data, self._reading_flags, fingerprint, memory_set.fingerprint)

    @property
    def reading(self) -> Reading:
        from memlaw.data import Reading

        return Reading(
            eos=self.eos,
            on_conflict=self.on_conflict,
            turns=self.turns,
            prompt_field=self.prompt_field,
            target_field=self.target_field,
        )

    @property
    def _reading_flags(self) -> tuple[str, ...]:
        """The options for reading the facts that were given, as typed: a plan's `memlaw train` repeats them."""
        end = {None: (), True: ("--eos",), False: ("--no-eos",)}[self.eos]
        conflict = () if self.on_conflict == "error" else ("--on-conflict", self.on_conflict)
        turns = () if self.turns == "all" else ("--turns", self.turns)
        prompt = () if self.prompt_field is None else ("--prompt-field", self.prompt_field)
        target = () if self.target_field is None else ("--target-field", self.target_field)
        return (*end, *conflict, *turns, *prompt, *target)


def load_base(model: str, dtype: str, device: str) -> Base:
    """The model; warnings about it go to stderr."""
    from memlaw.model.base import load

    quiet_transformers()
    base = load(model, dtype=dtype, device=device)
    for warning in base.warnings:
        note(f"Warning: {warning}")
    return base


def with_warnings(memory_set: MemorySet) -> MemorySet:
    """The facts; warnings about them go to stderr."""
    for warning in memory_set.warnings:
        note(f"Warning: {warning}")
    return memory_set


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """Faults of the adapter to go on with."""

    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Judge an adapter of which only a part can be loaded.")
    ] = False
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="Judge an adapter on another base than the one it names.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How training runs; none of these options changes its result."""

    compiled: Annotated[bool, setting(Execution, "compiled", "--compile")] = Execution.compiled
    evict_prefix: Annotated[bool, setting(Execution, "evict_prefix", "--evict-prefix")] = Execution.evict_prefix
    checkpoint_minutes: Annotated[float, setting(Execution, "checkpoint_minutes")] = Execution.checkpoint_minutes

    def execution(self) -> Execution:
        return Execution(**vars(self))


Placement = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="Modules to adapt: mlp@LAYER, down_proj@4, q_proj,v_proj, all-linear.  "
        "[default: the MLP's last module, two thirds of the way up]",
    ),
]

Neutral = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Plain text to measure side effects on.  [default: text sampled from the model, and a page of prose]",
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]

Laws = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Library of laws; see `memlaw laws`.  [default: laws]", envvar="MEMLAW_LAWS"),
]

Weights = Annotated[
    str | None,
    typer.Option(metavar="W,...", help="Factor before what each adapter adds, such as 0.5,0.5.  [default: 1]"),
]


def numbers(weights: str | None) -> list[float] | None:
    """What was given as --weights; None if nothing was. Raises ConfigError."""
    try:
        return None if weights is None else [float(part) for part in weights.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {weights!r} is not a list of numbers such as 0.5,0.5.") from None


ShowText = Annotated[
    bool,
    typer.Option("--show-text", help="Include target texts. They are secrets: only you can read the file."),
]


Junit = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write JUnit XML for CI: one test case for each fact, named by its id."),
]


def integers(option: str, text: str | None) -> list[int] | None:
    """The numbers in "1,2,4"; None for an option not given. Raises ConfigError."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not a list of whole numbers such as 1,2,4.") from None
