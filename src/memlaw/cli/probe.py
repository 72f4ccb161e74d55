"""memlaw probe: train and measure a grid of adapters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from memlaw.cli.journal import status as show_status
from memlaw.cli.options import AsJson, ExecutionOptions, Inputs, Placement, integers
from memlaw.cli.output import SHOWN, counted, emit, note, paragraph
from memlaw.cli.records import setting
from memlaw.core.canonical import to_dict
from memlaw.core.config import METHODS, Execution, Optimizer, TrainConfig
from memlaw.core.errors import ConfigError
from memlaw.sweep.config import ProbeConfig

if TYPE_CHECKING:
    from memlaw.core.cells import CellResult
    from memlaw.sweep.engines.base import Engine, Resources
    from memlaw.sweep.engines.shards import Shard
    from memlaw.sweep.probe import ProbeSummary


@dataclass(frozen=True, kw_only=True)
class ProbeDirectory:
    """Where the probe is. `--status` needs neither DATA nor `--out`, so `probe` itself checks that they are given."""

    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the probe; rerun the command to resume.  [required]", show_default=False),
    ] = None
    status: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Only show the progress of the probe in DIR, as `memlaw journal status` does."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ProbeInputs(Inputs):
    """The facts, which `--status` does without."""

    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Facts: JSONL, CSV or text file, saved dataset, Hub id, or a task such as task:random:tokens=128.  "
            "[required]",
            show_default=False,
        ),
    ] = ""


_BY_OPTIMIZER = {name: ProbeConfig(ranks=(1,), lengths=(1,), optimizer=name) for name in get_args(Optimizer)[::-1]}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Which cells to train, and how each of them."""

    ranks: Annotated[str | None, typer.Option(metavar="LIST", help="LoRA ranks, such as 1,2,4,8.")] = None
    lengths: Annotated[str | None, typer.Option(metavar="LIST", help="Target tokens to store, such as 16,32,64.")] = (
        None
    )
    methods: Annotated[
        str | None,
        typer.Option(metavar="LIST", help=f"Any of {', '.join(METHODS)}.  [default: {TrainConfig.method}]"),
    ] = None
    seeds: Annotated[
        str | None, typer.Option(metavar="LIST", help=f"Seeds, such as 0,1,2.  [default: {TrainConfig.seed}]")
    ] = None
    placement: Placement = None
    optimizer: Annotated[Optimizer | None, setting(ProbeConfig, "optimizer")] = None
    steps: Annotated[int | None, setting(ProbeConfig, "steps", presets=_BY_OPTIMIZER)] = None
    learning_rate: Annotated[
        float | None, setting(ProbeConfig, "learning_rate", "--learning-rate", "--lr", presets=_BY_OPTIMIZER)
    ] = None
    batch_size: Annotated[int | None, setting(ProbeConfig, "batch_size")] = None
    config: Annotated[
        Path | None, typer.Option(metavar="YAML", help="File of these and more settings; options override it.")
    ] = None
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Spend at most this time (90s, 10m, 2h) on the cells that most improve a plan for DATA.",
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """The settings of ProbeConfig that were given as options. Raises ConfigError."""
        given = {
            "ranks": integers("--ranks", self.ranks),
            "lengths": integers("--lengths", self.lengths),
            "methods": None if self.methods is None else [name.strip() for name in self.methods.split(",")],
            "seeds": integers("--seeds", self.seeds),
            "placement": self.placement,
            "steps": self.steps,
            "optimizer": self.optimizer,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where the cells are trained, and which share of them."""

    isolate: Annotated[
        bool, typer.Option("--isolate", help="Train each pack (a stack of adapters) in a fresh process.")
    ] = False
    minutes_per_pack: Annotated[
        float | None, typer.Option(help="With --isolate: time limit for one pack.  [default: no limit]")
    ] = None
    engine: Annotated[Literal["inline", "ray"], typer.Option(help="Train here, or on Ray workers.")] = "inline"
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Ray cluster to use.  [default: a temporary one on this machine]"),
    ] = None
    cpus_per_pack: Annotated[int, typer.Option(help="With --engine ray: threads per pack.")] = 1
    gpus_per_pack: Annotated[
        float | None,
        typer.Option(
            help="With --engine ray: GPUs per pack; with 0.5, two packs share one.  "
            "[default: 1 if the model is on a GPU]"
        ),
    ] = None
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Train only share I of N; all N runs use the same --out.")
    ] = None

    def parse_shard(self) -> Shard | None:
        from memlaw.sweep.engines.shards import Shard

        return None if self.shard is None else Shard.parse(self.shard)

    def build_engine(self) -> Engine:
        """What trains the packs. Raises ConfigError for options that contradict each other."""
        from memlaw.sweep.engines.base import Inline
        from memlaw.sweep.engines.isolated import Isolated

        if self.isolate and self.engine != "inline":
            raise ConfigError("--isolate and --engine ray exclude each other: Ray already isolates every pack.")
        if self.ray_address is not None and self.engine != "ray":
            raise ConfigError("--ray-address names a Ray cluster, but the engine is not Ray: add --engine ray.")
        if self.engine == "ray":
            from memlaw.sweep.engines.ray import OnRay

            return OnRay(self.ray_address)
        if self.minutes_per_pack is not None and not self.isolate:
            raise ConfigError("--minutes-per-pack needs a process that can be stopped: add --isolate.")
        return Isolated(self.minutes_per_pack) if self.isolate else Inline()

    def resources(self, device: str) -> Resources | None:
        """What a pack takes on Ray: by default a GPU if the model would be loaded onto one."""
        if self.engine == "inline":
            return None
        import torch

        from memlaw.sweep.engines.base import Resources

        on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        return Resources(
            cpus=self.cpus_per_pack, gpus=float(on_gpu) if self.gpus_per_pack is None else self.gpus_per_pack
        )


@dataclass(frozen=True, kw_only=True)
class ProbeExecution(ExecutionOptions):
    """How packs are trained; none of these options changes a result."""

    prefix_cache: Annotated[Path | None, setting(Execution, "prefix_cache", metavar="DIR")] = None

    def execution(self) -> Execution:
        given = vars(self)
        return Execution(**given | {"prefix_cache": None if self.prefix_cache is None else str(self.prefix_cache)})


def probe(
    *,
    directory: ProbeDirectory,
    grid: Grid,
    where: EngineOptions,
    options: ProbeExecution,
    inputs: ProbeInputs,
    as_json: AsJson = False,
) -> None:
    """Train adapters of several ranks on DATA at several lengths, and measure what each recalls: points for `fit`.

    `memlaw probe --status DIR` shows the progress of a probe, from any machine that can read its directory.
    """
    if directory.status is not None:
        if inputs.data or directory.out:
            raise ConfigError("--status only reads a directory: leave out DATA and --out.")
        show_status(directory=directory.status, as_json=as_json)
        return
    if not inputs.data:
        raise ConfigError("Missing argument 'DATA', the facts to train on (or show a probe's progress with --status).")
    if directory.out is None:
        raise ConfigError("Missing option '--out', the directory of the probe.")
    summary = _run(directory.out, grid, where, options, inputs)
    emit(as_json, to_dict(summary), probe_lines(summary, directory.out))


def _run(out: Path, grid: Grid, where: EngineOptions, options: ProbeExecution, inputs: Inputs) -> ProbeSummary:
    """Train what is missing of the probe in `out`; warnings and failures go to stderr."""
    from memlaw.cli.progress import probe_bar
    from memlaw.sweep.budget import parse_seconds, within_budget
    from memlaw.sweep.laws import probe_results
    from memlaw.sweep.probe import check_out
    from memlaw.sweep.probe import probe as probe_grid
    from memlaw.sweep.scheduler import ProbeRun

    # Every option is checked before the model is loaded, which may take minutes.
    flags, config, chooser = grid.settings(), grid.config, None
    seconds = None if grid.budget is None else parse_seconds(grid.budget)
    run = ProbeRun(
        execution=options.execution(),
        engine=where.build_engine(),
        resources=where.resources(inputs.device),
        shard=where.parse_shard(),
    )
    if seconds is None:
        settings = ProbeConfig(**flags) if config is None else ProbeConfig.from_yaml(config, flags)
        check_out(out, settings)
    base = inputs.load_base()
    if seconds is None:  # the facts of a task take a search over the model's head
        check_out(out, settings, base)
    memory_set = inputs.load_facts(base)
    if seconds is not None:
        settings, chooser = within_budget(base, memory_set, seconds, config, flags)
    with probe_bar() as on_progress:
        run = replace(run, chooser=chooser, on_progress=on_progress)
        summary = probe_grid(base, memory_set, settings, out, run)
    if chooser is not None and chooser.why:
        note(chooser.why)
    for warning in summary.warnings:
        note(f"Warning: {warning}")
    if summary.failed:
        for line in failure_lines(probe_results(out)):
            note(line)
    return summary


def probe_lines(summary: ProbeSummary, out: Path) -> Iterator[str]:
    """How a probe ended, and the most bits it stored per parameter."""
    from memlaw.cli.fit import bits_lines
    from memlaw.sweep.laws import probe_results

    cells = counted(summary.cells, "cell")
    yield f"{out}: {summary.finished:,} of {cells} finished, {summary.failed:,} failed."
    yield from bits_lines(probe_results(out))


def failure_lines(results: Iterable[CellResult]) -> Iterator[str]:
    """The cells of a probe that have no measurement, and why."""
    failed = [result for result in results if result.status != "finished"]
    for result in failed[:SHOWN]:
        cell = result.cell
        yield from paragraph(
            f"rank {cell.rank}, length {cell.length}, {cell.train.method}, seed {cell.train.seed}: {result.status}. "
            f"{result.message[:1].upper()}{result.message[1:]}.",
            indent=2,
        )
    if len(failed) > SHOWN:
        yield f"  ... and {len(failed) - SHOWN:,} more"
