"""memlaw probe: train and measure a grid of adapters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    integers,
)
from memlaw.cli.output import SHOWN, emit, note, paragraph
from memlaw.core.canonical import to_dict
from memlaw.core.config import Execution
from memlaw.core.errors import ConfigError

if TYPE_CHECKING:
    from memlaw.core.cells import CellResult
    from memlaw.sweep.engines.base import Engine, Resources


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
    from memlaw.cli.fit import bits_lines
    from memlaw.cli.progress import probe_bar
    from memlaw.sweep.budget import parse_seconds, within_budget
    from memlaw.sweep.config import ProbeConfig
    from memlaw.sweep.engines.base import Inline
    from memlaw.sweep.engines.shards import Shard
    from memlaw.sweep.laws import probe_results
    from memlaw.sweep.probe import probe as run
    from memlaw.sweep.scheduler import ProbeRun

    given = {
        "ranks": integers("--ranks", ranks),
        "lengths": integers("--lengths", lengths),
        "methods": None if methods is None else [name.strip() for name in methods.split(",")],
        "seeds": integers("--seeds", seeds),
        "placement": placement,
        "steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
    }
    flags: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    seconds = None if budget is None else parse_seconds(budget)
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
        settings, chooser = within_budget(base, memory_set, seconds, config, flags)
    with probe_bar() as on_progress:
        summary = run(
            base,
            memory_set,
            settings,
            out,
            ProbeRun(
                execution=execution,
                engine=where or Inline(),
                resources=resources,
                shard=part,
                chooser=chooser,
                on_progress=on_progress,
            ),
        )
    if chooser is not None and chooser.why:
        note(chooser.why)
    for warning in summary.warnings:
        note(f"Warning: {warning}")
    if summary.failed:
        for line in failure_lines(probe_results(out)):
            note(line)
    finished = f"{out}: {summary.finished} of {summary.cells} cells finished, {summary.failed} failed."
    emit(as_json, to_dict(summary), [finished, *bits_lines(probe_results(out))])


def _engine(isolate: bool, minutes: float | None, name: str, ray_address: str | None) -> Engine | None:
    """What trains the packs; None for this process."""
    from memlaw.sweep.engines.isolated import Isolated

    if isolate and name != "inline":
        raise ConfigError("--isolate is an engine of its own: Ray's workers are processes of their own already.")
    if ray_address is not None and name != "ray":
        raise ConfigError("--ray-address is that of a Ray cluster: add --engine ray.")
    if name == "ray":
        from memlaw.sweep.engines.ray import OnRay

        return OnRay(ray_address)
    if minutes is not None and not isolate:
        raise ConfigError("--minutes-per-pack needs a process that can be stopped: add --isolate.")
    return Isolated(minutes) if isolate else None


def _resources(device: str, cpus: int, gpus: float | None) -> Resources:
    """What a pack takes on Ray; a GPU unless told otherwise, where the model goes to one."""
    import torch

    from memlaw.sweep.engines.base import Resources

    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return Resources(cpus=cpus, gpus=float(on_gpu) if gpus is None else gpus)


def failure_lines(results: Iterable[CellResult]) -> Iterator[str]:
    """Which cells of a probe have no measurement, and why."""
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
