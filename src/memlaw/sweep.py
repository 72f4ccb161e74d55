"""A probe: a grid of ranks x lengths x methods x seeds becomes cells, the cells become packs that train as one stack,
and every cell that is done goes into the journal.

Results travel through the journal only, so a probe can be killed anywhere and started again: it trains what is missing.
Which cells share a stack is decided by the grid and written down before the first step. It never depends on what is
missing, since the company in which a cell is trained may change its last bits: a pack with any cell missing is trained
again whole, and its finished cells keep the result they have.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from memlaw.driver import Choose, Driver, ProbeProgress
from memlaw.engines import Engine, Inline, Resources
from memlaw.engines.schedule import Shard
from memlaw.errors import ConfigError, JournalError
from memlaw.journal import Journal, ProbeSpec
from memlaw.packs import one_line, reloadable
from memlaw.records import (
    Cell,
    EncodedFact,
    Execution,
    Init,
    MemorySet,
    Method,
    Rule,
    Scaling,
    Schedule,
    TrainConfig,
    Until,
    to_dict,
)

if TYPE_CHECKING:
    from memlaw.adapter import Placement
    from memlaw.model import Base

ADAPTERS_PER_PACK = 32
"""Most adapters trained as one stack: what a kill can cost."""

TOKENS_PER_PACK = 8192
"""Most target tokens of a stack on the CPU, over all its adapters: more would not be faster."""

MEMORY_PER_PACK = 0.5
"""Share of the free memory that a step of a stack may hold."""


# --- what is asked for -----------------------------------------------------------------------------------------------


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(set(values)))


_Axis = [Field(min_length=1), AfterValidator(_distinct)]
_Whole = Annotated[int, Field(strict=True)]
_Positive = Annotated[_Whole, Field(ge=1)]


class ProbeConfig(BaseModel):
    """The grid of a probe and how each of its cells is trained; a YAML file has the same names.

    The order of an axis and repeated values mean nothing. Meaning, defaults and ranges of the settings of training are
    those of `TrainConfig`. Raises ConfigError for settings that are unknown, missing or out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ranks: Annotated[tuple[_Positive, ...], *_Axis]
    lengths: Annotated[tuple[_Positive, ...], *_Axis]
    """Target tokens; each takes the longest prefix of whole records with at most that many, or cuts one long target."""
    methods: Annotated[tuple[Method, ...], *_Axis] = (TrainConfig.method,)
    seeds: Annotated[tuple[_Whole, ...], *_Axis] = (TrainConfig.seed,)
    placement: str | None = None
    """Where the adapters sit; None: the default place of the model."""

    rule: Rule = TrainConfig.rule
    steps: _Whole = TrainConfig.steps
    until: Until = TrainConfig.until
    margin: float = TrainConfig.margin
    position: float = TrainConfig.position
    focus: float = TrainConfig.focus
    boundaries: tuple[_Whole, ...] = TrainConfig.boundaries
    learning_rate: float = TrainConfig.learning_rate
    schedule: Schedule = TrainConfig.schedule
    batch_size: _Whole = TrainConfig.batch_size
    clip: float = TrainConfig.clip
    weight_decay: float = TrainConfig.weight_decay
    dropout: float = TrainConfig.dropout
    scale: float = TrainConfig.scale
    scaling: Scaling = TrainConfig.scaling
    init: Init = TrainConfig.init

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(_explained(error)) from None
        for method, seed in itertools.product(self.methods, self.seeds):
            self.train(method, seed)  # refuses what is out of range

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> ProbeConfig:
        """Read a YAML file of settings; `overrides` (flags that were given) win over it. Raises ConfigError."""
        try:
            settings = yaml.safe_load(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(f"Cannot read the settings in {path}: {error.strerror or error}.") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not YAML: {_yaml_fault(error)}. Write one `name: value` a line.") from None
        if not isinstance(settings, dict):
            raise ConfigError(f"{path} holds no settings. Write one `name: value` a line, such as `ranks: [1, 2, 4]`.")
        try:
            return cls(**{str(name): value for name, value in (settings | dict(overrides or {})).items()})
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def train(self, method: Method, seed: int) -> TrainConfig:
        """The training of one cell."""
        shared = {f.name: getattr(self, f.name) for f in fields(TrainConfig) if f.name not in ("method", "seed")}
        return TrainConfig(method=method, seed=seed, **shared)


def _explained(error: ValidationError) -> str:
    """What is wrong with the settings, one sentence for each."""
    problems = error.errors()
    unknown = sorted(str(problem["loc"][0]) for problem in problems if problem["type"] == "extra_forbidden")
    entries = {problem["loc"][:1] for problem in problems if len(problem["loc"]) > 1}
    sentences = []
    if unknown:
        known = ", ".join(ProbeConfig.model_fields)
        sentences.append(f"Unknown setting {', '.join(unknown)}: it would change nothing. Known: {known}.")
    for problem in problems:
        name = " ".join(f"entry {part}" if isinstance(part, int) else part for part in problem["loc"]) or "name"
        if problem["type"] == "missing":
            sentences.append(f"A probe needs {name}, such as {name}: [16, 32].")
        elif problem["type"] != "extra_forbidden" and (len(problem["loc"]) > 1 or problem["loc"][:1] not in entries):
            sentences.append(f"Setting {name} is {problem['input']!r}: {_uncapitalised(problem['msg'])}.")
    return " ".join(sentences)


def _yaml_fault(error: BaseException) -> str:
    """What is wrong and where, without a word of the file: it may have been a file of facts."""
    text = one_line(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        text = f"{error.problem} at line {error.problem_mark.line + 1}"
    return re.sub("'.*'", "'...'", text)


def _uncapitalised(text: str) -> str:
    return text[:1].lower() + text[1:]


# --- grid -> cells -> packs ------------------------------------------------------------------------------------------


def plan_packs(cells: Sequence[Cell], tokens: int = TOKENS_PER_PACK) -> tuple[tuple[Cell, ...], ...]:
    """Which cells train together: those of one length, in stacks of equal size of at most `ADAPTERS_PER_PACK` adapters
    and `tokens` target tokens in all, unless one alone has more.

    A function of the grid, and what it gives is written down, so that a cell always trains in the same company.
    Neighbouring ranks share a stack, which pads every adapter to the largest rank in it.
    """
    packs: list[tuple[Cell, ...]] = []
    for length, group in itertools.groupby(sorted(cells, key=lambda cell: cell.length), key=lambda cell: cell.length):
        same = sorted(group, key=lambda cell: (cell.rank, cell.train.method, cell.train.seed))
        most = max(1, min(ADAPTERS_PER_PACK, tokens // length))
        size = math.ceil(len(same) / math.ceil(len(same) / most))
        packs += (tuple(same[start : start + size]) for start in range(0, len(same), size))
    return tuple(packs)


def _grid(
    config: ProbeConfig, lengths: Sequence[int], base: Base, memory_set: MemorySet, placement: Placement
) -> list[Cell]:
    return [
        Cell(
            model=base.fingerprint,
            tokenizer=base.tokenizer_fingerprint,
            data=memory_set.fingerprint,
            placement=str(placement),
            rank=rank,
            length=length,
            train=config.train(method, seed),
            dtype=base.dtype,
            libraries=_libraries(),
            device=base.device.partition(":")[0],
        )
        for length, rank, method, seed in itertools.product(lengths, config.ranks, config.methods, config.seeds)
    ]


def tokens_per_pack(base: Base, facts: Sequence[EncodedFact], placement: Placement, rank: int) -> int:
    """How many target tokens a stack may have in all, from what a step of one adapter on the longest fact holds."""
    import torch

    from memlaw.memory import free_bytes
    from memlaw.training import bytes_per_token

    fact = max(facts, key=lambda fact: fact.length)
    room = MEMORY_PER_PACK * free_bytes(base.device) / bytes_per_token(base, fact, placement, rank)
    return min(int(room), TOKENS_PER_PACK) if torch.device(base.device).type == "cpu" else int(room)


def _libraries() -> str:
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def _about(base: Base, memory_set: MemorySet) -> dict[str, Any]:
    """What people, and `memlaw plan`, like to know of a probe although it sets no cell apart."""
    from memlaw.adapter import outline_of_model

    return {
        "model": base.name,
        "outline": outline_of_model(base.model).digest,
        "data": memory_set.source,
        "warnings": [*base.warnings, *memory_set.warnings],
    }


def _spec(grid: Sequence[Cell], tokens: int, about: dict[str, Any]) -> ProbeSpec:
    packs = tuple(tuple(cell.key for cell in pack) for pack in plan_packs(grid, tokens))
    return ProbeSpec(_identity(grid), packs, about)


_AXES = {"rank": "ranks", "length": "lengths", "method": "methods", "seed": "seeds"}


def _identity(cells: Sequence[Cell]) -> dict[str, Any]:
    """What determines the results of a grid: the values along its axes, and everything its cells have in common."""
    flat = [_flat(cell) for cell in cells]
    axes = {plural: sorted({cell[name] for cell in flat}) for name, plural in _AXES.items()}
    return axes | {name: value for name, value in flat[0].items() if name not in _AXES}


def _flat(cell: Cell) -> dict[str, Any]:
    settings = to_dict(cell)
    return {**settings.pop("train"), **settings}


def _prefixes(base: Base, memory_set: MemorySet, lengths: Sequence[int]) -> dict[int, tuple[EncodedFact, ...]]:
    """Length asked for -> the facts that come closest to as many target tokens without exceeding them."""
    from memlaw.data import check_context, encode, take

    encoded = encode(memory_set, base.tokenizer, context=None)
    prefixes = {length: take(encoded, length) for length in lengths}
    if base.context is not None:
        check_context(itertools.chain.from_iterable(prefixes.values()), base.context)
    return prefixes


# --- running ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeSummary:
    """What a probe came to."""

    out: str
    cells: int
    finished: int
    failed: int
    """Cells without a measurement: their training diverged, or something went wrong."""
    diverged: int
    """Those among `failed` that would diverge again; the others are tried again by the next run."""
    warnings: tuple[str, ...] = ()


def probe(
    base: Base,
    memory_set: MemorySet,
    config: ProbeConfig,
    out: str | os.PathLike[str],
    *,
    execution: Execution | None = None,
    on_progress: Callable[[ProbeProgress], None] | None = None,
    engine: Engine | None = None,
    resources: Resources | None = None,
    shard: Shard | None = None,
    choose: Choose | None = None,
) -> ProbeSummary:
    """Train and measure every cell of the grid that the directory `out` does not hold yet.

    Packs are trained here one after the other, or where `engine` says, each with `resources`; with a `shard`, only
    those that fall to it. `choose` decides before each pack which comes next, or that it is enough. A pack may be
    trained more than once, whatever the engine, since workers die and so do drivers; the journal takes the first result
    of a cell, so every result is there exactly once.

    Ctrl-C or SIGTERM ends the workers and leaves every finished cell recorded, a pack in training to be gone on with
    from its last checkpoint, and the table rebuilt. Any other error costs the cells it struck: they are tried again
    twice and then stay recorded as failed, while the rest goes on. Raises ConfigError, DataError or AdapterError,
    before any training, for what cannot be run; JournalError if `out` belongs to another run or can no longer be
    written.
    """
    from memlaw.adapter import parse_placement
    from memlaw.data import target_tokens
    from memlaw.eviction import evicted

    engine = engine or Inline()
    _check_engine(engine, base, choose)
    placement = parse_placement(config.placement, base.model)
    for rank in config.ranks:
        placement.check_rank(rank)
    asked = _prefixes(base, memory_set, config.lengths)
    prefixes = {target_tokens(facts): facts for facts in asked.values()}
    cells = {cell.key: cell for cell in _grid(config, list(prefixes), base, memory_set, placement)}
    journal = Journal(out)
    longest = prefixes[max(prefixes)]
    room = TOKENS_PER_PACK if journal.claimed else tokens_per_pack(base, longest, placement, max(config.ranks))
    spec = journal.claim(_spec(list(cells.values()), room, about=_about(base, memory_set)))
    packs = [tuple(cells[key] for key in keys) for keys in spec.packs]
    execution = execution or Execution()
    driver = Driver(base, placement, packs, prefixes, journal, execution, shard=shard, on_progress=on_progress)
    try:
        with evicted(base, placement.first_layer, wanted=execution.evict_prefix and engine.in_process):
            driver.run(engine, resources or _resources(engine, base), choose)
    except BaseException:
        with suppress(JournalError):
            journal.write_table()
        raise
    journal.write_table()
    shortened = _shortened({length: target_tokens(facts) for length, facts in asked.items()})
    said = [sentence for sentence in (placement.caution, *shortened) if sentence]
    return _summary(journal, driver.keys, warnings=said)


def _check_engine(engine: Engine, base: Base, choose: Choose | None) -> None:
    if engine.in_process:
        return
    reloadable(base)
    if choose is not None:
        raise ConfigError(
            "Which pack comes next can only be chosen where packs are trained one after the other in this process: "
            "leave out the engine."
        )


def _resources(engine: Engine, base: Base) -> Resources:
    """What a pack takes unless told: what it would here, or its share of a machine with others."""
    import torch

    if engine.parallel:
        return Resources(gpus=float(torch.device(base.device).type == "cuda"))
    return Resources(cpus=torch.get_num_threads())


def _shortened(lengths: Mapping[int, int]) -> list[str]:
    """One sentence if lengths asked for are not those of the cells."""
    pairs = [f"{asked} became {actual}" for asked, actual in lengths.items() if asked != actual]
    return [f"Facts are kept whole, so of the lengths asked for {', '.join(pairs)}."] if pairs else []


def _summary(journal: Journal, keys: Collection[str], warnings: Sequence[str]) -> ProbeSummary:
    states = [result.status for result in journal.results() if result.cell.key in keys]
    finished, diverged = states.count("finished"), states.count("diverged")
    return ProbeSummary(
        out=str(journal.root),
        cells=len(keys),
        finished=finished,
        failed=len(states) - finished,
        diverged=diverged,
        warnings=(*warnings, *dict.fromkeys(journal.findings)),
    )
