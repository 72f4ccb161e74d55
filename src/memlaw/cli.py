"""The command line: parse, call one function, print. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import functools
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from typer.core import TyperGroup

from memlaw import __version__
from memlaw.data import OnConflict
from memlaw.errors import ConfigError, MemlawError, TrainError
from memlaw.records import Execution, Method, RecallReport, TrainConfig, Until, canonical_json, to_dict

if TYPE_CHECKING:
    from memlaw.budget import Budget
    from memlaw.data import Tokenizer
    from memlaw.engines import Engine, Resources
    from memlaw.laws import KnownLaw
    from memlaw.model import Base
    from memlaw.outline import Outline
    from memlaw.planning import Names
    from memlaw.records import EncodedFact, MemorySet
    from memlaw.sweep import ProbeConfig

KEPT = {
    "probe": "Every finished cell is kept: the same command goes on from there.",
    "demo": "Every finished cell is kept: the same command goes on from there.",
}
"""What an interrupted command leaves behind; the others nothing."""


class Commands(TyperGroup):
    """A sentence and exit code 2 for bad input, 130 for Ctrl-C, a traceback for neither."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """`memlaw probe --status DIR` asks for nothing that a probe needs: it is a command of its own."""
        if args[0] == "probe" and "--status" in args:
            args = ["status", *(arg for arg in args[1:] if arg != "--status")]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MemlawError as error:
            _note(f"Error: {error}")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            _note(f"Interrupted. {KEPT.get(ctx.invoked_subcommand, 'Nothing was written.')}")
            raise typer.Exit(130) from error
        except BrokenPipeError:  # whoever read the output has seen enough: typer ends in silence
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _note(
                f"Error: {where}{error.strerror or error}. Mend that and run the command again; nothing kept is lost."
            )
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=Commands,
    help="What can a LoRA adapter hold, does it hold it, and how to make it hold more.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line and exit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what a library will rename is no news to who uses memlaw
        warnings.showwarning = lambda message, *_args, **_kwargs: _note(f"Warning: {message}")
        app(prog_name="memlaw")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"memlaw {__version__}")
        raise typer.Exit


@app.callback()
def memlaw(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """The options of no command."""


# --- what the commands on facts and a model share --------------------------------------------------------------------


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
        from memlaw.model import load

        _quiet_transformers()
        base = load(self.model, dtype=self.dtype, device=self.device)
        for warning in base.warnings:
            _note(f"Warning: {warning}")
        return base

    def memory_set(self, base: Base) -> MemorySet:
        """The facts; what deserves a warning goes to stderr."""
        from memlaw.api import memory_set_of

        memory_set = memory_set_of(
            base,
            self.data,
            eos=self.eos,
            on_conflict=self.on_conflict,
            prompt_field=self.prompt_field,
            target_field=self.target_field,
        )
        for warning in memory_set.warnings:
            _note(f"Warning: {warning}")
        return memory_set

    @property
    def asks_the_model(self) -> bool:
        """Whether the facts cannot be known without the model: a task draws tokens that its head can produce."""
        from memlaw.tasks import SPEC_PREFIX

        return self.data.startswith(SPEC_PREFIX)

    def outlined(self) -> tuple[Outline, tuple[EncodedFact, ...], Names]:
        """The model's outline, the facts as its tokens and the names of both, by its files alone: without torch."""
        from memlaw.data import encode, load_tokenizer, read
        from memlaw.outline import outline_of_files

        outline, tokenizer = outline_of_files(self.model), load_tokenizer(self.model)
        memory_set = read(
            self.data,
            eos=self.eos,
            on_conflict=self.on_conflict,
            tokenizer=tokenizer,
            prompt_field=self.prompt_field,
            target_field=self.target_field,
        )
        for warning in memory_set.warnings:
            _note(f"Warning: {warning}")
        return outline, encode(memory_set, tokenizer, context=outline.context), self.names(memory_set, tokenizer)

    def names(self, memory_set: MemorySet, tokenizer: Tokenizer) -> Names:
        """What a plan calls the model and the facts, and what tells them apart."""
        from memlaw.data import tokenizer_fingerprint
        from memlaw.planning import Names

        return Names(self.model, self.data, self.reading, tokenizer_fingerprint(tokenizer), memory_set.fingerprint)

    @property
    def reading(self) -> tuple[str, ...]:
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


# --- commands --------------------------------------------------------------------------------------------------------


@app.command(short_help="All of it once, on the bundled base")
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Directory of everything the demo writes.")] = Path("demo"),
    as_json: AsJson = False,
) -> None:
    """Everything once, on the bundled base: probe, fit, plan, train, recall, report (a few minutes)."""
    from memlaw.demo import run

    _quiet_transformers()
    document, lines = run(out, say=_note)
    _emit(as_json, document, lines)


@app.command(short_help="What would keep the facts from being recalled")
@on_inputs
def check(
    *,
    adapter: Annotated[Path | None, typer.Option(metavar="DIR", help="An adapter that is to recall them.")] = None,
    law: Annotated[
        Path | None,
        typer.Option(help="To judge the rank by: of `memlaw fit --save`, or a probe.  [default: that of Qwen3-8B]"),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="LoRA rank to judge.  [default: the adapter's, where memlaw wrote it]")
    ] = None,
    placement: Placement = None,
    inputs: Inputs,
    as_json: AsJson = False,
) -> None:
    """What would keep DATA from being recalled, before any training: findings, each with its way out."""
    from memlaw.api import memory_set_of
    from memlaw.lint import check_on
    from memlaw.model import load
    from memlaw.summary import check_lines
    from memlaw.workspace import known_law

    known = None if law is None else known_law(law)
    # What the other commands note on stderr is among the findings here.
    _quiet_transformers()
    base = load(inputs.model, dtype=inputs.dtype, device=inputs.device)
    reading = {name: getattr(inputs, name) for name in ("eos", "on_conflict", "prompt_field", "target_field")}
    memory_set = memory_set_of(base, inputs.data, **reading)
    found = check_on(base, memory_set, adapter=adapter, law=known, rank=rank, placement=placement)
    _emit(as_json, found.to_dict(), check_lines(found))


@app.command(short_help="Will it fit? The rank the facts need")
@on_inputs
def plan(
    *,
    law: Annotated[
        Path | None,
        typer.Option(help="A file of `memlaw fit --save`, or a probe.  [default: the nearest in --laws]"),
    ] = None,
    laws: Laws = None,
    cells: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A probe of a few cells of facts like these, to fit the law to.")
    ] = None,
    target: Annotated[str, typer.Option(help="all, a share such as 0.99 or 99%, or a mean loss: loss=0.1.")] = "all",
    rank: Annotated[int | None, typer.Option(help="Say how much this rank holds.  [default: the planned one]")] = None,
    placement: Placement = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Load the model: measure its loss on the facts, time a few real steps.")
    ] = False,
    inputs: Inputs,
    as_json: AsJson = False,
) -> None:
    """Will it fit? The rank DATA needs, how sure that is, what it costs, and a LoraConfig to paste."""
    from memlaw.plan import Target
    from memlaw.planning import plan_for, plan_from_files
    from memlaw.summary import plan_lines
    from memlaw.workspace import law_chooser

    aim, shelf = Target.parse(target), {} if law is not None else _laws_in(laws)
    choose = law_chooser(law, cells, shelf=shelf.values())
    if calibrate or inputs.asks_the_model:
        from memlaw.adapter import parse_placement

        base, memory_set, facts = inputs.load()
        names = inputs.names(memory_set, base.tokenizer)
        where = parse_placement(placement, base.model)
        answer = plan_for(base, facts, where, choose, names=names, target=aim, rank=rank, timed=calibrate)
    else:
        from memlaw.placement import resolve

        outline, facts, names = inputs.outlined()
        where = resolve(placement, outline)
        answer = plan_from_files(outline, facts, where, choose, names=names, target=aim, rank=rank)
    _emit(as_json, answer.to_dict(), plan_lines(answer))


@app.command(short_help="The laws there are to plan with")
def laws(
    *,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Where they are kept.  [default: laws]", envvar="MEMLAW_LAWS")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The laws that `memlaw fit --save` kept: of which model, placement and data, how good, how old."""
    from memlaw.laws import listing
    from memlaw.summary import laws_lines

    rows = listing(_laws_in(folder))
    _emit(as_json, {"laws": rows}, laws_lines(rows))


@app.command(short_help="Make it stick: an adapter that recalls the facts verbatim")
@on_inputs
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
    from memlaw.adapter import parse_placement
    from memlaw.api import train_on
    from memlaw.progress import training_bar
    from memlaw.summary import train_lines

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
    base, memory_set, facts = inputs.load()
    where = parse_placement(placement, base.model)
    if where.caution:
        _note(where.caution)
    with training_bar(f"rank {rank}") as on_step:
        trained = train_on(base, memory_set, facts, rank, where, config, out=out, execution=execution, on_step=on_step)
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
    _emit(as_json, document, train_lines(trained, out))
    if not trained.recalled:
        _note(
            f"Not everything is recalled. More --steps or a higher --rank get further (`memlaw plan` says which rank); "
            f"`memlaw recall {inputs.data} --model {inputs.model} --adapter {out} --decode` shows what is missing."
        )


@app.command(short_help="Did it stick? Every token, and a certificate for each fact")
@on_inputs
def recall(
    *,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Adapter to judge, memlaw's or PEFT's.  [default: the bare model]"),
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode too: only then can a fact be certified.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write every token's numbers here; `memlaw report` shows DIR/recall.json.")
    ] = None,
    show_text: ShowText = False,
    inputs: Inputs,
    as_json: AsJson = False,
) -> None:
    """Did it stick? Per-token diagnosis of DATA, and a certificate for each fact that will come back verbatim."""
    from contextlib import nullcontext

    from memlaw.adapter import attach
    from memlaw.diagnosis import report_to_dict
    from memlaw.measure import measure, token_texts, unfaithful
    from memlaw.summary import recall_lines
    from memlaw.workspace import keep

    base, memory_set, facts = inputs.load()
    if lossy := unfaithful(base, memory_set, facts):
        _note(
            f"Warning: the tokens of {len(lossy)} of {len(facts)} facts ({', '.join(map(repr, lossy[:3]))}"
            f"{', ...' if len(lossy) > 3 else ''}) do not spell their targets: the tokenizer drops or changes "
            "characters. A certificate is about the tokens."
        )
    with nullcontext() if adapter is None else attach(base, adapter):
        report = measure(base, facts, decode=decode, explain=True)
    advice = _advice(report, adapter)
    document = report_to_dict(report, texts=token_texts(base, facts) if show_text else None, advice=advice)
    if out is not None:
        keep(out, canonical_json(document), private=show_text)
    _emit(as_json, document, recall_lines(report, advice))


def _advice(report: RecallReport, adapter: Path | None) -> list[str]:
    """What would help, where an adapter was judged: the bare base is not expected to recall anything."""
    from memlaw.adapter import load_info
    from memlaw.advice import advise

    if adapter is None:
        return []
    info = load_info(adapter) or {}
    train = info.get("train")
    config = TrainConfig(**train) if train else None
    return [str(a) for a in advise(report, rank=info.get("rank"), placement=info.get("placement"), config=config)]


@app.command(short_help="Measure what ranks hold at several lengths: the points of a law")
@on_inputs
def probe(
    *,
    out: Annotated[Path, typer.Option(help="Directory of the probe; run the command again to go on.")],
    ranks: Annotated[str | None, typer.Option(metavar="LIST", help="LoRA ranks, such as 1,2,4,8.")] = None,
    lengths: Annotated[str | None, typer.Option(metavar="LIST", help="Target tokens, such as 16,32,64.")] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="LIST", help="Any of sft, ot, sw, curriculum.  [default: sft]")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="LIST", help="Such as 0,1,2.  [default: 42]")] = None,
    placement: Placement = None,
    steps: Steps = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    config: Annotated[
        Path | None, typer.Option(metavar="YAML", help="A file of these settings, and more; options given win.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="90s, 10m, 2h: train the cells that help a plan for DATA most, no longer."),
    ] = None,
    isolate: Annotated[bool, typer.Option("--isolate", help="A fresh process for each stack of adapters.")] = False,
    minutes_per_pack: Annotated[
        float | None, typer.Option(help="With --isolate: a stack that takes longer has failed.  [default: no limit]")
    ] = None,
    engine: Annotated[Literal["inline", "ray"], typer.Option(help="Train here, or on the workers of Ray.")] = "inline",
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A Ray cluster.  [default: one of this machine, while it lasts]"),
    ] = None,
    cpus_per_pack: Annotated[int, typer.Option(help="Threads of each stack on Ray.")] = 1,
    gpus_per_pack: Annotated[
        float | None,
        typer.Option(help="GPUs of each stack on Ray; 0.5 puts two on one.  [default: 1 if the model is on one]"),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only this share of the work, as one of N runs with one --out.")
    ] = None,
    compiled: Compile = False,
    evict_prefix: EvictPrefix = False,
    prefix_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep what the layers below the adapters make of the facts here.")
    ] = None,
    checkpoint_minutes: CheckpointMinutes = Execution.checkpoint_minutes,
    inputs: Inputs,
    as_json: AsJson = False,
) -> None:
    """Measure what adapters of several ranks hold of DATA at several lengths: the points of the law.

    `memlaw probe --status DIR` says where a probe stands, from any machine that sees its directory.
    """
    from memlaw.budget import seconds_of
    from memlaw.engines.schedule import Shard
    from memlaw.progress import probe_bar
    from memlaw.summary import bits_lines, failure_lines
    from memlaw.sweep import ProbeConfig
    from memlaw.sweep import probe as run
    from memlaw.workspace import probe_results

    given = {
        "ranks": _integers("--ranks", ranks),
        "lengths": _integers("--lengths", lengths),
        "methods": None if methods is None else [name.strip() for name in methods.split(",")],
        "seeds": _integers("--seeds", seeds),
        "placement": placement,
        "steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
    }
    flags = {name: value for name, value in given.items() if value is not None}
    seconds = None if budget is None else seconds_of(budget)
    execution = Execution(
        compiled=compiled,
        evict_prefix=evict_prefix,
        prefix_cache=None if prefix_cache is None else str(prefix_cache),
        checkpoint_minutes=checkpoint_minutes,
    )
    where = _engine(isolate, minutes_per_pack, engine, ray_address)
    resources = None if engine == "inline" else _resources(inputs.device, cpus_per_pack, gpus_per_pack)
    part = None if shard is None else Shard.parse(shard)
    if seconds is None:
        settings = ProbeConfig(**flags) if config is None else ProbeConfig.from_yaml(config, flags)
    base = inputs.base()
    memory_set = inputs.memory_set(base)
    chooser = None
    if seconds is not None:
        settings, chooser = _budgeted(base, memory_set, seconds, config, flags)
    with probe_bar() as on_progress:
        summary = run(
            base,
            memory_set,
            settings,
            out,
            execution=execution,
            on_progress=on_progress,
            engine=where,
            resources=resources,
            shard=part,
            choose=chooser,
        )
    if chooser is not None and chooser.why:
        _note(chooser.why)
    for warning in summary.warnings:
        _note(f"Warning: {warning}")
    if summary.failed:
        for line in failure_lines(probe_results(out)):
            _note(line)
    finished = f"{out}: {summary.finished} of {summary.cells} cells finished, {summary.failed} failed."
    _emit(as_json, to_dict(summary), [finished, *bits_lines(probe_results(out))])


def _engine(isolate: bool, minutes: float | None, name: str, ray_address: str | None) -> Engine | None:
    """What trains the packs; None for this process."""
    from memlaw.engines.isolated import Isolated

    if isolate and name != "inline":
        raise ConfigError("--isolate is an engine of its own: Ray's workers are processes of their own already.")
    if ray_address is not None and name != "ray":
        raise ConfigError("--ray-address is that of a Ray cluster: add --engine ray.")
    if name == "ray":
        from memlaw.engines.on_ray import OnRay

        return OnRay(ray_address)
    if minutes is not None and not isolate:
        raise ConfigError("--minutes-per-pack needs a process that can be stopped: add --isolate.")
    return Isolated(minutes) if isolate else None


def _resources(device: str, cpus: int, gpus: float | None) -> Resources:
    """What a pack takes on Ray; a GPU unless told otherwise, where the model goes to one."""
    import torch

    from memlaw.engines import Resources

    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return Resources(cpus=cpus, gpus=float(on_gpu) if gpus is None else gpus)


@app.command(hidden=True, short_help="Where a probe stands")
def status(
    *,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `memlaw probe` writes to.")],
    as_json: AsJson = False,
) -> None:
    """Where the probe in DIR stands, from its journal alone."""
    from memlaw.journal import status as standing
    from memlaw.summary import status_lines

    found = standing(directory)
    _emit(as_json, to_dict(found), status_lines(found))


journal = typer.Typer(help="The files of a probe: check, mend and export them.", no_args_is_help=True)
app.add_typer(journal, name="journal")

Probed = Annotated[Path, typer.Argument(metavar="DIR", help="What `memlaw probe` wrote.")]


@journal.command(short_help="Read every file and check its SHA-256; change nothing")
def verify(*, directory: Probed, as_json: AsJson = False) -> None:
    """Read every file of a probe and check its SHA-256. Exits with 2 if one is damaged; nothing is changed."""
    from memlaw.journal import verify as inspect_files
    from memlaw.summary import verify_lines

    found = inspect_files(directory)
    _emit(as_json, to_dict(found), verify_lines(found))
    if not found.intact:
        raise typer.Exit(2)


@journal.command(short_help="Put damaged files aside and write results.parquet again")
def rebuild(*, directory: Probed, as_json: AsJson = False) -> None:
    """Put damaged files of a probe into quarantine, and write results.parquet again from the intact ones."""
    from memlaw.journal import rebuild as mend

    found = mend(directory)
    _emit(as_json, to_dict(found), [*found.findings, f"{found.out}: results.parquet has {found.rows:,} rows."])


@journal.command(short_help="All results as one table: .csv, .jsonl or .parquet")
def export(
    *,
    directory: Probed,
    out: Annotated[Path, typer.Option(help="The file; its suffix says which format.")],
    as_json: AsJson = False,
) -> None:
    """Write all results of a probe as one table."""
    from memlaw.journal import export as write_out

    rows = write_out(directory, out)
    _emit(as_json, {"out": str(out), "rows": rows}, [f"{out}: {rows:,} rows."])


def _budgeted(
    base: Base, memory_set: MemorySet, seconds: float, config: Path | None, flags: dict[str, Any]
) -> tuple[ProbeConfig, Budget]:
    """The grid to choose from, unless ranks and lengths are given, and what chooses."""
    from memlaw.adapter import parse_placement
    from memlaw.budget import Budget, Goal, grid
    from memlaw.data import encode
    from memlaw.sweep import ProbeConfig

    facts = encode(memory_set, base.tokenizer, context=base.context)
    where = parse_placement(flags.get("placement"), base.model)
    settings = ProbeConfig(**(grid(facts, where) | flags)) if config is None else ProbeConfig.from_yaml(config, flags)
    if len(settings.methods) > 1:
        raise ConfigError("A budget is for one law, and a law is of one method: give one of --methods.")
    where = parse_placement(settings.placement, base.model)
    return settings, Budget(seconds, Goal.of(base, facts, where))


@app.command(short_help="Fit the law to a probe, or to a table of points")
def fit(
    *,
    source: Annotated[
        Path, typer.Argument(metavar="DIR|POINTS.csv", help="A probe, or columns rank,length,delta_loss[,final_loss].")
    ],
    form: Annotated[
        Literal["paper", "power", "log", "bounded", "memory"] | None,
        typer.Option(help="Of the law.  [default: the one that predicts cells left out best]"),
    ] = None,
    axis: Annotated[
        Literal["rank", "parameters"],
        typer.Option(help="What a law calls size: cells of several placements share one over parameters."),
    ] = "rank",
    residuals: Annotated[
        Literal["absolute", "relative", "replicates"],
        typer.Option(help="What is least: squares of nats, of logarithms, or of nats weighed by replicates."),
    ] = "absolute",
    intervals: Annotated[
        Literal["standard", "profile", "bootstrap"], typer.Option(help="Where the 95% intervals come from.")
    ] = "standard",
    method: Annotated[Method | None, typer.Option(help="Cells of this method only.")] = None,
    holdout: Annotated[
        str | None, typer.Option(metavar="CELLS", help="Predict cells left out: length=MAX, rank>=12, corner=MAX.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", "--out", help="Write the law here, for `memlaw plan`; see `memlaw laws`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit the Parametric Memory Law dL = C r^alpha l^-beta + b, with error bars and a status."""
    from memlaw.law import compare, fit_law
    from memlaw.law import holdout as hold_out
    from memlaw.summary import comparison_lines, fit_lines
    from memlaw.workspace import keep, law_points, with_origin

    points = law_points(source, method, axis)
    beside: list[str] = []
    if form is None:
        compared = compare(points, axis=axis, residuals=residuals, source=str(source))
        chosen = compared.best if save is None else compared.best_to_plan
        form, beside = chosen.form, ["", *comparison_lines(compared, chosen.form)]
    law = fit_law(points, form, axis=axis, residuals=residuals, intervals=intervals, source=str(source))
    judged = None if holdout is None else hold_out(points, law.form, holdout, axis=axis, residuals=residuals)
    if save is not None:
        keep(save, with_origin(law, source, method).to_json())
    _emit(as_json, law.summary(judged), [*fit_lines(law, judged), *beside])


@app.command(short_help="One HTML page of everything measured")
def report(
    *,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `memlaw probe` or `memlaw demo` wrote.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")],
    show_text: ShowText = False,
    as_json: AsJson = False,
) -> None:
    """One self-contained HTML page of everything measured in DIR."""
    from memlaw.report import write
    from memlaw.workspace import content

    shown = content(directory)
    out.parent.mkdir(parents=True, exist_ok=True)
    write(shown, out, show_text=show_text)
    _emit(as_json, {"report": str(out)}, [str(out)])


# --- parts -----------------------------------------------------------------------------------------------------------


def _laws_in(folder: Path | None) -> dict[str, KnownLaw]:
    """The laws of a library by name; its damaged files get a warning each."""
    from memlaw.laws import FOLDER, library

    found = library(folder or FOLDER)
    for sentence in found.damaged:
        _note(f"Warning: {sentence}")
    return found.laws


def _train_config(preset: str, **given: Any) -> TrainConfig:
    """The preset with the options that were given."""
    from memlaw.training import PRESETS

    if preset not in PRESETS:
        raise ConfigError(f"There is no preset {preset!r}; known: {', '.join(PRESETS)}.")
    return replace(PRESETS[preset], **{name: value for name, value in given.items() if value is not None})


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _integers(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not a list of whole numbers such as 1,2,4.") from None


def _emit(as_json: bool, document: Mapping[str, Any], lines: Iterable[str]) -> None:
    print(json.dumps(document, allow_nan=False) if as_json else "\n".join(lines), flush=True)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
