"""A stack in training on disk: interrupted anywhere, it goes on to the same last bit.

A folder of two files and a manifest of their SHA-256, which gets its name when all is on disk. The tensors are the
adapters, both moments of their optimizer, the last loss of each token and the sliding windows; everything else of a
step is a function of the settings and the step's number.
"""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memlaw.adapter.stack import AdapterStack
from memlaw.core import files
from memlaw.core.canonical import canonical_json, digest
from memlaw.core.cells import ALGORITHM_VERSION
from memlaw.core.errors import ConfigError
from memlaw.model.outline import Site
from memlaw.training.engine import Engine
from memlaw.training.optimizer import StackedAdamW
from memlaw.training.result import Trained
from memlaw.training.state import State

TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A training between two steps."""

    states: list[State]
    results: dict[int, Trained]
    seconds: float


class Checkpoint:
    """Where a training saves itself, and how often: at most every `minutes`, and not before the first have passed.

    `path` is a folder, `path/1`, `path/2`, ... are what was saved. The one before the newest is kept, and goes when
    there is a newer one to be written.
    """

    def __init__(self, path: Path, *, minutes: float = 10.0) -> None:
        self.path, self.minutes = Path(path), minutes
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= 60 * self.minutes

    def save(self, engine: Engine, snapshot: Snapshot) -> None:
        """Raises OSError if it cannot be written; what was saved last is still there then."""
        files.make_folders(self.path)
        files.sweep(self.path)
        saved = files.numbered(self.path)
        for surplus in saved[1:]:
            files.discard(surplus)
        number = 1 + (int(saved[0].name) if saved else 0)
        with files.new_folder(self.path / str(number)) as folder:
            _write(folder, _about(engine, snapshot), _tensors(engine, snapshot))
        self._last = time.monotonic()

    def load(self, engine: Engine) -> Snapshot | None:
        """The newest that was saved and is intact; None if there is none. Raises ConfigError if it is another's.

        Warns of what is damaged, and removes it.
        """
        saved = files.numbered(self.path)
        for place, folder in enumerate(saved, start=1):
            try:
                about, tensors = _read(folder)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                follows = "from its beginning" if place == len(saved) else "from the one before"
                warnings.warn(
                    f"The checkpoint {folder} is damaged ({error}): training starts again {follows}.", stacklevel=2
                )
                files.discard(folder)
                continue
            self._check_ours(about, engine)
            return _snapshot(engine, about, tensors)
        return None

    def _check_ours(self, about: Mapping[str, Any], engine: Engine) -> None:
        if about["identity"] != identity(engine):
            raise ConfigError(
                f"{self.path} is the checkpoint of another training: model, facts, settings, or the versions of memlaw "
                "or torch differ. Repeat the command it was begun with, or remove the folder to begin anew."
            )

    def discard(self) -> None:
        """The training has ended and its results are kept elsewhere. Removes nothing that was not saved here."""
        for folder in (*files.numbered(self.path), *files.leftovers(self.path)):
            files.discard(folder)
        with suppress(OSError):  # it was never written, or somebody keeps other files in it
            self.path.rmdir()


def identity(engine: Engine) -> str:
    """SHA-256 of everything that determines what a training computes, to the last bit on one machine."""
    return digest(
        {
            "model": engine.fingerprint,
            "dtype": str(engine.dtype),
            "device": torch.device(engine.device).type,
            "facts": [[*fact.ids, fact.prompt_length] for fact in engine.facts],
            "sites": [[site.path for site in placement.sites] for placement in engine.placements],
            "runs": [[rank, dataclasses.asdict(config)] for rank, config in engine.runs],
            "compiled": engine.compiled,
            "algorithm": ALGORITHM_VERSION,
            "torch": torch.__version__,
        }
    )


def _write(folder: Path, about: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, folder / TENSORS)
    except SafetensorError as error:  # what safetensors makes of an OSError
        raise OSError(str(error)) from error
    (folder / STATE).write_text(canonical_json(about))
    files.sign(folder)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    files.check_signed(folder)
    return json.loads((folder / STATE).read_bytes()), load_file(folder / TENSORS)


def _about(engine: Engine, snapshot: Snapshot) -> dict[str, Any]:
    steps = (*(state.step for state in snapshot.states), *(result.steps for result in snapshot.results.values()))
    return {
        "identity": identity(engine),
        "step": max(steps, default=0),  # for people who ask how far it is
        "seconds": snapshot.seconds,
        "states": [_about_state(state) for state in snapshot.states],
        "results": {str(run): _about_result(result) for run, result in snapshot.results.items()},
    }


def _snapshot(engine: Engine, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Snapshot:
    engine.windows.load_state_dict({"anchor": tensors["window.anchor"], "unmoved": tensors["window.unmoved"]})
    results = {int(run): _result(engine, int(run), told, tensors) for run, told in about["results"].items()}
    states = [_state(engine, number, told, tensors) for number, told in enumerate(about["states"])]
    return Snapshot(states, results, about["seconds"])


def _tensors(engine: Engine, snapshot: Snapshot) -> dict[str, Tensor]:
    named = {"window.anchor": engine.windows.anchor, "window.unmoved": engine.windows.unmoved}
    for number, state in enumerate(snapshot.states):
        named[f"{number}.latest"] = state.latest
        named |= _numbered(f"{number}.adapter", state.stack.tensors)
        named |= _numbered(f"{number}.first", state.optimizer.first)
        named |= _numbered(f"{number}.second", state.optimizer.second)
    for run, result in snapshot.results.items():
        named |= _numbered(f"result.{run}", result.stack.tensors)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def _numbered(name: str, tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{place}": tensor for place, tensor in enumerate(tensors)}


def _about_state(state: State) -> dict[str, Any]:
    return {
        "runs": list(state.runs),
        "step": state.step,
        "rows_at_once": state.rows_at_once,
        "updates": state.optimizer.count,
    }


def _state(engine: Engine, number: int, told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> State:
    stack = _stack(engine, told["runs"], engine.sites, f"{number}.adapter", tensors)
    optimizer = StackedAdamW(stack.tensors)
    optimizer.count = told["updates"]
    optimizer.first, optimizer.second = (
        _of(engine, f"{number}.{moment}", len(stack.tensors), tensors) for moment in ("first", "second")
    )
    return State(
        runs=tuple(told["runs"]),
        configs=tuple(engine.runs[run][1] for run in told["runs"]),
        stack=stack,
        optimizer=optimizer,
        latest=tensors[f"{number}.latest"].to(engine.device),
        step=told["step"],
        rows_at_once=told["rows_at_once"],
    )


_TOLD = ("status", "steps", "seconds", "loss_init", "loss_final", "recalled", "message")


def _about_result(result: Trained) -> dict[str, Any]:
    return {name: getattr(result, name) for name in _TOLD}


def _result(engine: Engine, run: int, told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Trained:
    rank, config = engine.runs[run]
    placement = engine.placements[run]
    stack = _stack(engine, [run], placement.sites, f"result.{run}", tensors)
    return Trained(rank=rank, config=config, placement=placement, stack=stack, **told)


def _stack(
    engine: Engine, runs: Sequence[int], sites: Sequence[Site], name: str, tensors: Mapping[str, Tensor]
) -> AdapterStack:
    found = _of(engine, name, 2 * len(sites), tensors)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    chosen = [engine.runs[run] for run in runs]
    return AdapterStack.from_pairs(sites, chosen, pairs)


def _of(engine: Engine, name: str, count: int, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    return [tensors[f"{name}.{place}"].to(engine.device) for place in range(count)]
