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
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from memlaw.errors import ConfigError, JournalError, MemlawError
from memlaw.journal import Journal, ProbeSpec
from memlaw.records import (
    Cell,
    CellResult,
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
    digest,
    to_dict,
)

if TYPE_CHECKING:
    from memlaw.adapter import Placement
    from memlaw.model import Base
    from memlaw.training import StackProgress, Trained

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
    entries = {problem["loc"][0] for problem in problems if len(problem["loc"]) > 1}
    sentences = []
    if unknown:
        known = ", ".join(ProbeConfig.model_fields)
        sentences.append(f"Unknown setting {', '.join(unknown)}: it would change nothing. Known: {known}.")
    for problem in problems:
        name = " ".join(f"entry {part}" if isinstance(part, int) else part for part in problem["loc"])
        if problem["type"] == "missing":
            sentences.append(f"A probe needs {name}, such as {name}: [16, 32].")
        elif problem["type"] != "extra_forbidden" and (len(problem["loc"]) > 1 or problem["loc"][0] not in entries):
            sentences.append(f"Setting {name} is {problem['input']!r}: {_uncapitalised(problem['msg'])}.")
    return " ".join(sentences)


def _yaml_fault(error: BaseException) -> str:
    """What is wrong and where, without a word of the file: it may have been a file of facts."""
    text = _one_line(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        text = f"{error.problem} at line {error.problem_mark.line + 1}"
    return re.sub("'.*'", "'...'", text)


def _uncapitalised(text: str) -> str:
    return text[:1].lower() + text[1:]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


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


def _spec(grid: Sequence[Cell], tokens: int, about: dict[str, str]) -> ProbeSpec:
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
class ProbeProgress:
    """Where a probe stands: at the start of a pack, after each step of training, and after each cell recorded."""

    cells: int
    recorded: int
    """Cells with a result that counts, those of earlier runs among them."""
    failed: int
    pack: int
    """The pack in training, from 1."""
    packs: int
    news: CellResult | StackProgress | None
    """The cell just recorded, the step of training just taken, or None at the start of a pack."""


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
) -> ProbeSummary:
    """Train and measure every cell of the grid that the directory `out` does not hold yet.

    An interrupt leaves every finished cell recorded, the pack in training to be gone on with from its last checkpoint,
    and the table rebuilt. Any other error costs the cells it struck:
    they are recorded as failed, and the rest goes on. Raises ConfigError, DataError or AdapterError, before any
    training, for a grid that cannot be run; JournalError if `out` belongs to another run or can no longer be written.
    """
    from memlaw.adapter import parse_placement
    from memlaw.data import target_tokens
    from memlaw.eviction import evicted

    placement = parse_placement(config.placement, base.model)
    for rank in config.ranks:
        placement.check_rank(rank)
    asked = _prefixes(base, memory_set, config.lengths)
    prefixes = {target_tokens(facts): facts for facts in asked.values()}
    cells = {cell.key: cell for cell in _grid(config, list(prefixes), base, memory_set, placement)}
    journal = Journal(out)
    execution = execution or Execution()
    longest = prefixes[max(prefixes)]
    room = TOKENS_PER_PACK if journal.claimed else tokens_per_pack(base, longest, placement, max(config.ranks))
    spec = journal.claim(_spec(list(cells.values()), room, about={"model": base.name, "data": memory_set.source}))
    states = {result.cell.key: result.status for result in journal.results() if result.cell.key in cells}

    def tell(pack: int, news: CellResult | StackProgress | None) -> None:
        if isinstance(news, CellResult):
            states[news.cell.key] = news.status
        if on_progress is not None:
            failed = sum(state == "failed" for state in states.values())
            on_progress(ProbeProgress(len(cells), len(states) - failed, failed, pack, len(spec.packs), news))

    try:
        with evicted(base, placement.first_layer, wanted=execution.evict_prefix):
            for number, keys in enumerate(spec.packs, start=1):
                if not all(map(journal.holds, keys)):
                    pack = [cells[key] for key in keys]
                    facts = prefixes[pack[0].length]
                    tell(number, None)
                    run_pack(base, facts, placement, pack, journal, execution=execution, on_news=partial(tell, number))
    except BaseException:
        with suppress(JournalError):
            journal.write_table()
        raise
    journal.write_table()
    shortened = _shortened({length: target_tokens(facts) for length, facts in asked.items()})
    said = [sentence for sentence in (placement.caution, *shortened) if sentence]
    return _summary(journal, cells, warnings=said)


def _shortened(lengths: Mapping[int, int]) -> list[str]:
    """One sentence if lengths asked for are not those of the cells."""
    pairs = [f"{asked} became {actual}" for asked, actual in lengths.items() if asked != actual]
    return [f"Facts are kept whole, so of the lengths asked for {', '.join(pairs)}."] if pairs else []


def _summary(journal: Journal, cells: Mapping[str, Cell], warnings: Sequence[str]) -> ProbeSummary:
    states = [result.status for result in journal.results() if result.cell.key in cells]
    finished, diverged = states.count("finished"), states.count("diverged")
    return ProbeSummary(
        out=str(journal.root),
        cells=len(cells),
        finished=finished,
        failed=len(cells) - finished,
        diverged=diverged,
        warnings=(*warnings, *dict.fromkeys(journal.findings)),
    )


def run_pack(
    base: Base,
    facts: Sequence[EncodedFact],
    placement: Placement,
    cells: Sequence[Cell],
    journal: Journal,
    *,
    execution: Execution | None = None,
    on_news: Callable[[CellResult | StackProgress], None] | None = None,
) -> None:
    """Train `cells` as one stack on `facts`; measure those that the journal does not hold, and record each at once.

    While the stack trains, its checkpoint lies beside the cells in the journal's directory. An error is recorded with
    the cells it struck. Raises JournalError if nothing can be recorded any more.
    """
    from memlaw.training import Checkpoint, train_stack

    execution = execution or Execution()
    name = digest([cell.key for cell in cells])
    checkpoint = Checkpoint(journal.root / "checkpoints" / f"{name}.safetensors", minutes=execution.checkpoint_minutes)

    def record(result: CellResult) -> None:
        journal.publish(result)
        if on_news is not None:
            on_news(result)

    def fail(cell: Cell, reason: str) -> None:
        if not journal.holds(cell.key):
            record(_unmeasured(cell, placement, len(facts), reason))

    with _failing(cells, fail):
        runs = [(cell.rank, cell.train) for cell in cells]
        stack = train_stack(
            base, facts, placement, runs, on_step=on_news, checkpoint=checkpoint, compiled=execution.compiled
        )
        for cell, trained in zip(cells, stack, strict=True):
            if not journal.holds(cell.key):
                with _failing([cell], fail):
                    record(_measured(base, facts, placement, cell, trained))
        checkpoint.discard()


@contextmanager
def _failing(cells: Sequence[Cell], fail: Callable[[Cell, str], None]) -> Iterator[None]:
    """Turn an error into the failure of `cells`; a journal that cannot be written is everybody's."""
    try:
        yield
    except JournalError:
        raise
    except Exception as error:
        for cell in cells:
            fail(cell, _reason(error))


def _reason(error: Exception) -> str:
    """Why something failed, for the journal. Target text is not for logs: only errors that quote no data are quoted."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}, in {place.name}"
    quotable = isinstance(error, MemlawError | RuntimeError | MemoryError | OSError)
    text = f": {_one_line(error)}" if quotable else ""
    return f"{type(error).__name__}{text} ({where})".encode(errors="replace").decode()


def _measured(
    base: Base, facts: Sequence[EncodedFact], placement: Placement, cell: Cell, trained: Trained
) -> CellResult:
    from memlaw.measure import measure

    ended = replace(
        _unmeasured(cell, placement, len(facts), trained.message),
        status=trained.status,
        steps=trained.steps,
        loss_init=trained.loss_init if math.isfinite(trained.loss_init) else None,
    )
    if trained.loss_final is None:
        return ended
    with trained.attached(base.model):
        report = measure(base, facts, decode=True)
    return replace(
        ended,
        loss_final=trained.loss_final,
        delta_loss=trained.loss_init - trained.loss_final,
        acc_token=report.acc_token,
        acc_em=report.acc_em,
        ordered=report.ordered,
        certified=report.certified,
    )


def _unmeasured(cell: Cell, placement: Placement, records: int, message: str) -> CellResult:
    return CellResult(
        cell=cell,
        status="failed",
        steps=0,
        parameters=placement.parameters(cell.rank),
        loss_init=None,
        loss_final=None,
        delta_loss=None,
        acc_token=None,
        acc_em=None,
        ordered=None,
        certified=None,
        records=records,
        message=message,
    )
