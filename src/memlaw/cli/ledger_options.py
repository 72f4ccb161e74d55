"""The options of `memlaw ledger`, and the model that a ledger remembers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memlaw.cli.laws import laws_in
from memlaw.cli.options import (
    Device,
    Dtype,
    OnConflictChoice,
    Placement,
    PromptField,
    TargetField,
    TurnsChoice,
    load_base,
    with_warnings,
)
from memlaw.cli.plan import LawOptions
from memlaw.cli.records import setting
from memlaw.core.config import Execution
from memlaw.core.errors import ConfigError, ModelError
from memlaw.model.files import BUNDLED

if TYPE_CHECKING:
    from memlaw.core.facts import Fact
    from memlaw.data import Reading
    from memlaw.ledger import Settings
    from memlaw.ledger.gate import Terms
    from memlaw.ledger.outlook import Sized
    from memlaw.model.base import Base
    from memlaw.model.tokenizer import Tokenizer
    from memlaw.planning.library import KnownLaw, LawChooser

Directory = Annotated[Path, typer.Argument(metavar="KB", help="Directory of the ledger.")]

Originals = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The facts that a ledger without texts (--no-text) holds or has retracted."),
]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all versions of a new ledger share, beside the training."""

    model: Annotated[str, typer.Option(help="Hub id, local directory, GGUF file, or memlaw/base (bundled).")] = BUNDLED
    dtype: Dtype = "auto"
    device: Device = "auto"
    placement: Placement = None
    text: Annotated[
        bool,
        typer.Option(
            "--text/--no-text",
            help="Keep the facts as text that only you can read; without, updates ask for the originals.",
        ),
    ] = True
    eos: Annotated[bool, typer.Option("--eos/--no-eos", help="End each target with the end-of-sequence token.")] = True

    def load_base(self) -> Base:
        """The model, under a name that stays true in another directory: later commands load it by that name."""
        local = self.model != BUNDLED and Path(self.model).exists()
        return load_base(str(Path(self.model).absolute()) if local else self.model, self.dtype, self.device)


@dataclass(frozen=True, kw_only=True)
class _Law(LawOptions):
    """A law to forecast with."""

    def chooser(self) -> LawChooser:
        """The law to say with how much fits; files are read here, before the model."""
        from memlaw.sweep.laws import law_chooser

        return law_chooser(self.law, self.cells, shelf=self._shelf)

    @property
    def own(self) -> bool:
        """Whether a law was named, or is in the library; otherwise there is only the published one."""
        return self.law is not None or self.cells is not None or bool(self._shelf)

    @functools.cached_property
    def _shelf(self) -> Sequence[KnownLaw]:
        return () if self.law is not None else tuple(laws_in(self.laws).values())


@dataclass(frozen=True, kw_only=True)
class Size(_Law):
    """How much a new ledger is to hold."""

    rank: Annotated[int | None, typer.Option(help="LoRA rank of the first version; an update can raise it.")] = None
    room: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="In place of --rank: target tokens that fit with probability 95%."),
    ] = None
    like: Annotated[
        str | None,
        typer.Option(metavar="FACTS", help="With --room: a sample of the facts to come.  [default: random codes]"),
    ] = None
    prompt_field: PromptField = None
    target_field: TargetField = None

    def check(self) -> None:
        """Raise ConfigError unless either a rank or a room is asked for."""
        from memlaw.ledger.forecast import check_asked

        check_asked(self.rank, self.room)
        if self.like is not None and self.room is None:
            raise ConfigError("--like says what kind of tokens --room counts: give it with --room, or leave it out.")

    def found(self, base: Base, shared: Shared) -> tuple[int, Sized | None]:
        """The rank, and how it was found where --room asks for it."""
        from memlaw.adapter.on_model import placement_on
        from memlaw.data import Reading
        from memlaw.data.load import load_memory_set
        from memlaw.ledger.forecast import sized as rank_of_room
        from memlaw.model.reach import reachable_ids

        if self.rank is not None:
            return self.rank, None
        choose, where = self.chooser(), placement_on(shared.placement, base.model)
        like: Sequence[Fact] = ()
        if self.like is not None:
            reading = Reading(eos=shared.eos, prompt_field=self.prompt_field, target_field=self.target_field)
            like = with_warnings(
                load_memory_set(self.like, base.tokenizer, functools.partial(reachable_ids, base), reading)
            ).facts
        sized = rank_of_room(base, self.room or 0, where, choose, like, eos=shared.eos)
        return sized.rank, sized


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an update is to do."""

    facts: Annotated[
        str | None, typer.Argument(metavar="FACTS", help="New and changed facts, in any format of `memlaw train`.")
    ] = None
    retract: Annotated[
        list[str] | None, typer.Option(metavar="ID,...", help="Facts that must no longer come back.")
    ] = None
    rank: Annotated[int | None, typer.Option(help="A higher LoRA rank to go on with.  [default: as it is]")] = None
    auto_grow: Annotated[
        bool,
        typer.Option(
            "--auto-grow", help="Give new facts that do not fit a higher rank or another adapter, as the law says."
        ),
    ] = False
    originals: Originals = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change; train nothing.")] = False
    wait: Annotated[bool, typer.Option("--wait", help="Wait for another update to end.")] = False

    def check(self) -> None:
        """Raise ConfigError for an update of nothing."""
        if self.facts is None and not self.retract and self.rank is None:
            raise ConfigError("There is nothing to update with: give a file of facts, --retract or a higher --rank.")

    def ids(self, known: Sequence[str]) -> tuple[str, ...]:
        """The ids to retract: one of `known` stays as it is typed, and anything else is a list with commas."""
        return tuple(name for text in self.retract or () for name in ([text] if text in known else text.split(",")))


@dataclass(frozen=True, kw_only=True)
class Judged(_Law):
    """By what an update is judged, and the law that says how much more will fit."""

    allow_loss: Annotated[
        int, typer.Option(metavar="N", help="Publish even if up to N facts do not come back.", show_default=False)
    ] = 0
    max_harm: Annotated[
        float, typer.Option(metavar="NATS", help="What the update may cost on neutral text, nats a token; inf: all.")
    ] = 0.1

    def terms(self) -> Terms:
        from memlaw.ledger.gate import Terms

        return Terms(self.max_harm, self.allow_loss)


@dataclass(frozen=True, kw_only=True)
class Running:
    """How an update runs; none of these options changes its result."""

    compiled: Annotated[bool, setting(Execution, "compiled", "--compile")] = Execution.compiled
    evict_prefix: Annotated[bool, setting(Execution, "evict_prefix", "--evict-prefix")] = Execution.evict_prefix

    def execution(self) -> Execution:
        return Execution(**vars(self))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be measured again."""

    version: Annotated[int | None, typer.Option(metavar="V", help="Version.  [default: the current one]")] = None
    every: Annotated[bool, typer.Option("--all", help="Also every version before it: what each update cost.")] = False
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What is served, as `export` wrote it.  [default: the version's own]"),
    ] = None
    side_effects: Annotated[
        bool, typer.Option("--side-effects", help="Measure what the adapter changes elsewhere as well.")
    ] = False
    originals: Originals = None

    def check(self) -> None:
        """Raise ConfigError for options that contradict each other."""
        if self.every and self.adapter is not None:
            raise ConfigError("--adapter is one version's adapter, and --all measures each with its own: choose one.")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where facts come from: how records are read, and the model whose tokens they become."""

    on_conflict: OnConflictChoice = "error"
    turns: TurnsChoice = "all"
    prompt_field: PromptField = None
    target_field: TargetField = None
    model: Annotated[
        str | None,
        typer.Option(help="The model that the ledger was made for, if it has moved.  [default: by its name]"),
    ] = None
    dtype: Dtype = "auto"
    device: Device = "auto"

    def reading(self, eos: bool) -> Reading:
        """How records are read; whether targets end is the ledger's to say."""
        from memlaw.data import Reading

        given = {name: value for name, value in vars(self).items() if name in _READ}
        return Reading(eos=eos, **given)


_READ = ("on_conflict", "turns", "prompt_field", "target_field")


class LedgerBase:
    """The model of a ledger and facts for it. The model is loaded when something needs its weights."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self.settings, self.source = settings, source

    @functools.cached_property
    def base(self) -> Base:
        """The model. Raises ModelError if it is not where it was, LedgerError if it is another."""
        from memlaw.ledger.measured import check_base

        try:
            base = load_base(self._name, self.source.dtype, self.source.device)
        except ModelError as error:
            raise self._moved(error) from error
        check_base(base, self.settings)
        return base

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, from files alone."""
        from memlaw.model.tokenizer import load_tokenizer

        try:
            tokenizer: Tokenizer = load_tokenizer(self._name)
        except ModelError as error:
            raise self._moved(error) from error
        return tokenizer

    def read(self, file: str | Path | None) -> tuple[Fact, ...]:
        """Facts of a file; warnings about them go to stderr."""
        from memlaw.data.load import load_memory_set

        if file is None:
            return ()
        reading = self.source.reading(self.settings.eos)
        return with_warnings(load_memory_set(file, self.tokenizer, self._drawable_ids, reading)).facts

    def _drawable_ids(self) -> Sequence[int]:
        """The tokens that a task may draw, which takes the weights."""
        from memlaw.cli.progress import judging_bar
        from memlaw.model.reach import reachable_ids

        with judging_bar() as progress:
            return reachable_ids(self.base, progress)

    @property
    def _name(self) -> str:
        return self.source.model or self.settings.model

    def _moved(self, error: ModelError) -> ModelError:
        if self.source.model is not None:
            return error
        return ModelError(f"{error} The ledger was made for this model: if it has moved, say where it is with --model.")
