"""A stack in training on disk: interrupted anywhere, it resumes to the same last bit.

A checkpoint is a folder of two files and a manifest of their SHA-256; it gets its name when all three are on disk. The
tensors are the adapters and their averages, the moments of their optimizer, the last loss of each token and the sliding
windows. All else that a step needs is a function of the settings and the number of the step.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memlaw.adapter.stack import AdapterStack
from memlaw.core import files
from memlaw.core.canonical import canonical_json, digest
from memlaw.core.cells import ALGORITHM_VERSION
from memlaw.core.config import identity as settings_of
from memlaw.core.errors import ConfigError, one_line
from memlaw.model.outline import Site
from memlaw.model.tensor_file import sha256
from memlaw.training.engine import Engine
from memlaw.training.optimizers.by_name import OPTIMIZERS
from memlaw.training.result import Ending, Trained
from memlaw.training.run import Run
from memlaw.training.stalling import Fewest
from memlaw.training.state import State

TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class _StateNumbers:
    """The numbers of a `State`."""

    runs: tuple[int, ...]
    step: int
    rows_at_once: int | None
    updates: int
    """Of its optimizer."""
    risen_for: tuple[int, ...] = ()
    """Empty in the checkpoints of older versions."""
    fewest: tuple[Fewest, ...] = ()
    halvings: tuple[float, ...] = ()
    forwarded: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Numbers:
    """Everything in a checkpoint but its tensors: the content of STATE."""

    identity: str
    step: int
    """The highest step of any adapter, for people who ask how far training is."""
    seconds: float
    states: tuple[_StateNumbers, ...]
    results: dict[int, Ending]


_NUMBERS = TypeAdapter(_Numbers)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A training between two steps."""

    states: list[State]
    results: dict[int, Trained]
    seconds: float


class Checkpoint:
    """Where a training saves itself, at most every `minutes`; the first time after as many minutes.

    `path` is a folder and `path/1`, `path/2`, ... are the checkpoints. The newest two are kept, so one is always whole.
    """

    def __init__(self, path: Path, *, minutes: float = 10.0) -> None:
        self.path, self.minutes = Path(path), minutes
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= 60 * self.minutes

    def save(self, engine: Engine, snapshot: Snapshot) -> None:
        """Raises OSError if it cannot be written; the previous checkpoint is still there then."""
        files.make_folders(self.path)
        files.sweep(self.path)
        saved = files.numbered(self.path)
        for surplus in saved[1:]:
            files.discard(surplus)
        number = 1 + (int(saved[0].name) if saved else 0)
        with files.new_folder(self.path / str(number)) as folder:
            _write(folder, _numbers(engine, snapshot), _tensors(engine, snapshot))
        self._last = time.monotonic()

    def load(self, engine: Engine) -> Snapshot | None:
        """The newest intact checkpoint; None if there is none. Warns of damaged ones and removes them.

        Raises ConfigError if it belongs to another training or another version of memlaw.
        """
        saved = files.numbered(self.path)
        for place, folder in enumerate(saved, start=1):
            try:
                numbers, tensors = _read(folder)
            except ConfigError:
                raise
            except (OSError, ValueError, SafetensorError) as error:
                start = "at the first step" if place == len(saved) else "from the previous checkpoint"
                warnings.warn(
                    f"The checkpoint {folder} is damaged ({one_line(error)}): training restarts {start}.", stacklevel=2
                )
                files.discard(folder)
                continue
            self._check_ours(numbers, engine)
            return _snapshot(engine, numbers, tensors)
        return None

    def _check_ours(self, numbers: _Numbers, engine: Engine) -> None:
        if numbers.identity != identity(engine):
            raise ConfigError(
                f"{self.path} is the checkpoint of another training: the model, the facts, the settings, or the "
                "version of memlaw or torch differ. Repeat the command that started it, or remove the folder to start "
                "over."
            )

    def discard(self) -> None:
        """Remove the checkpoints, once the results are saved elsewhere. Other files in the folder stay."""
        for folder in (*files.numbered(self.path), *files.leftovers(self.path)):
            files.discard(folder)
        with suppress(OSError):  # the folder was never made, or holds other files
            self.path.rmdir()


def identity(engine: Engine) -> str:
    """SHA-256 of everything that determines the result of a training, to the last bit on one machine."""
    return digest(
        {
            "model": engine.fingerprint,
            "dtype": str(engine.dtype),
            "device": torch.device(engine.device).type,
            "facts": [[*fact.ids, fact.prompt_length] for fact in engine.facts],
            "sites": [[site.path for site in run.placement.sites] for run in engine.runs],
            "runs": [[run.rank, settings_of(run.config)] for run in engine.runs],
            "compiled": engine.compiled,
            **({} if engine.rehearsal is None else {"rehearsed": [fact.ids for fact in engine.runs[0].near_misses]}),
            **({} if engine.neutral is None else {"neutral": sha256(engine.neutral)}),
            **({} if not engine.forgets else {"floors": [fact.floor for fact in engine.facts]}),
            **({} if all(run.start is None for run in engine.runs) else {"start": list(map(_start, engine.runs))}),
            "algorithm": ALGORITHM_VERSION,
            "torch": torch.__version__,
        }
    )


def _start(run: Run) -> list[Any] | None:
    """Names the adapter that a run goes on from."""
    if run.start is None:
        return None
    return [run.start.ranks, *(sha256(tensor) for tensor in (run.start.scale, *run.start.tensors))]


def _write(folder: Path, numbers: _Numbers, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, folder / TENSORS)
    except SafetensorError as error:  # safetensors wraps an OSError in it
        raise OSError(str(error)) from error
    (folder / STATE).write_text(canonical_json(_NUMBERS.dump_python(numbers, mode="json")))
    files.sign(folder)


def _read(folder: Path) -> tuple[_Numbers, dict[str, Tensor]]:
    files.check_signed(folder)
    content, tensors = (folder / STATE).read_bytes(), load_file(folder / TENSORS)
    try:
        return _NUMBERS.validate_json(content), tensors
    except ValidationError as error:  # the hash is right, so this is not damage: do not let `load` remove it
        fields = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors())
        raise ConfigError(
            f"{folder} is intact, but not a checkpoint of this version of memlaw ({fields}). Resume with the version "
            "that wrote it, or remove the folder to start over."
        ) from None


def _numbers(engine: Engine, snapshot: Snapshot) -> _Numbers:
    steps = (*(state.step for state in snapshot.states), *(result.steps for result in snapshot.results.values()))
    return _Numbers(
        identity=identity(engine),
        step=max(steps, default=0),
        seconds=snapshot.seconds,
        states=tuple(
            _StateNumbers(
                runs=state.runs,
                step=state.step,
                rows_at_once=state.rows_at_once,
                updates=state.optimizer.updates,
                risen_for=state.risen_for,
                fewest=state.fewest,
                halvings=state.halvings,
                forwarded=state.forwarded,
            )
            for state in snapshot.states
        ),
        results={run: _ending(result) for run, result in snapshot.results.items()},
    )


def _ending(result: Trained) -> Ending:
    return Ending(**{field.name: getattr(result, field.name) for field in dataclasses.fields(Ending)})


def _tensors(engine: Engine, snapshot: Snapshot) -> dict[str, Tensor]:
    named = {"window.anchor": engine.windows.anchor, "window.unmoved": engine.windows.unmoved}
    for number, state in enumerate(snapshot.states):
        named[f"{number}.latest"] = state.latest
        named |= _by_place(f"{number}.adapter", state.stack.tensors)
        if state.average is not None:
            named |= _by_place(f"{number}.average", state.average.tensors)
        for name, moments in state.optimizer.moments.items():
            named |= _by_place(f"{number}.{name}", moments)
    for run, result in snapshot.results.items():
        named |= _by_place(f"result.{run}", result.stack.tensors)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def _by_place(name: str, tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{place}": tensor for place, tensor in enumerate(tensors)}


def _snapshot(engine: Engine, numbers: _Numbers, tensors: Mapping[str, Tensor]) -> Snapshot:
    engine.windows.load_state_dict({"anchor": tensors["window.anchor"], "unmoved": tensors["window.unmoved"]})
    saved = _SavedTensors(engine, tensors)
    results = {run: saved.result(run, ending) for run, ending in numbers.results.items()}
    states = [saved.state(place, numbers_of) for place, numbers_of in enumerate(numbers.states)]
    return Snapshot(states, results, numbers.seconds)


@dataclass(frozen=True, eq=False)
class _SavedTensors:
    """The tensors of a checkpoint, and the engine that they go back to."""

    engine: Engine
    tensors: Mapping[str, Tensor]

    def state(self, place: int, numbers: _StateNumbers) -> State:
        stack = self._stack(numbers.runs, self.engine.sites, f"{place}.adapter")
        momenta = [self.engine.runs[run].config.momentum for run in numbers.runs]
        optimizer = OPTIMIZERS[self.engine.runs[0].config.optimizer](stack.tensors, stack.ranks, momenta)
        moments = {name: self._listed(f"{place}.{name}", len(stack.tensors)) for name in optimizer.MOMENTS}
        optimizer.load(numbers.updates, moments)
        return State(
            runs=numbers.runs,
            configs=tuple(self.engine.runs[run].config for run in numbers.runs),
            stack=stack,
            optimizer=optimizer,
            latest=self.tensors[f"{place}.latest"].to(self.engine.device),
            average=self._stack(numbers.runs, self.engine.sites, f"{place}.average") if self.engine.averages else None,
            step=numbers.step,
            rows_at_once=numbers.rows_at_once,
            risen_for=numbers.risen_for,
            fewest=numbers.fewest,
            halvings=numbers.halvings,
            forwarded=numbers.forwarded,
        )

    def result(self, number: int, ending: Ending) -> Trained:
        run = self.engine.runs[number]
        stack = self._stack([number], run.placement.sites, f"result.{number}")
        return Trained(run=run, stack=stack, **dataclasses.asdict(ending))

    def _stack(self, numbers: Sequence[int], sites: Sequence[Site], name: str) -> AdapterStack:
        tensors = self._listed(name, 2 * len(sites))
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        runs = [self.engine.runs[number] for number in numbers]
        return AdapterStack.from_pairs(sites, [(run.rank, run.config) for run in runs], pairs)

    def _listed(self, name: str, count: int) -> list[Tensor]:
        return [self.tensors[f"{name}.{place}"].to(self.engine.device) for place in range(count)]
