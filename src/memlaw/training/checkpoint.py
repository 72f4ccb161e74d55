"""A stack in training on disk: interrupted anywhere, it goes on to the same last bit.

One safetensors file, replaced whole. Its tensors are the adapters, both moments of their optimizer, the last loss of
each token and the sliding windows; everything else of a step is a function of the settings and the step's number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from memlaw import durable
from memlaw.adapter import AdapterStack, Site
from memlaw.errors import ConfigError
from memlaw.records import ALGORITHM_VERSION, canonical_json, digest
from memlaw.training.engine import Engine
from memlaw.training.optimizer import StackedAdamW
from memlaw.training.state import State
from memlaw.training.trained import Trained


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A training between two steps."""

    states: list[State]
    results: dict[int, Trained]
    seconds: float


class Checkpoint:
    """Where a training saves itself, and how often: at most every `minutes`, and not before the first have passed."""

    def __init__(self, path: Path, *, minutes: float = 10.0) -> None:
        self.path, self.minutes = Path(path), minutes
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= 60 * self.minutes

    def save(self, engine: Engine, snapshot: Snapshot) -> None:
        """Raises OSError if it cannot be written; what was saved before is still there then."""
        tensors = _tensors(engine, snapshot)
        about = {
            "identity": identity(engine),
            "seconds": snapshot.seconds,
            "states": [_about_state(state) for state in snapshot.states],
            "results": {str(run): _about_result(result) for run, result in snapshot.results.items()},
        }
        metadata = {"about": canonical_json(about), "sha256": _checksum(about, tensors)}
        durable.make_folders(self.path.parent)
        durable.write(self.path, save(tensors, metadata))
        self._last = time.monotonic()

    def load(self, engine: Engine) -> Snapshot | None:
        """What was saved here; None if there is nothing, or nothing intact. Raises ConfigError if it is another's."""
        if not self.path.exists():
            return None
        try:
            about, tensors = _read(self.path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            sentence = f"The checkpoint {self.path} is damaged ({error}): training starts again from its beginning."
            warnings.warn(sentence, stacklevel=2)
            return None
        if about["identity"] != identity(engine):
            raise ConfigError(
                f"{self.path} is the checkpoint of another training: model, facts, settings, or the versions of memlaw "
                "or torch differ. Repeat the command it was begun with, or remove the file to begin anew."
            )
        engine.windows.load_state_dict({"anchor": tensors["window.anchor"], "unmoved": tensors["window.unmoved"]})
        results = {int(run): _result(engine, int(run), told, tensors) for run, told in about["results"].items()}
        states = [_state(engine, number, told, tensors) for number, told in enumerate(about["states"])]
        return Snapshot(states, results, about["seconds"])

    def discard(self) -> None:
        """The training has ended and its results are kept elsewhere."""
        self.path.unlink(missing_ok=True)


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


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about = json.loads(metadata["about"])
    if metadata["sha256"] != _checksum(about, tensors):
        raise ValueError("its SHA-256 does not match")
    return about, tensors


def _checksum(about: Any, tensors: Mapping[str, Tensor]) -> str:
    hasher = hashlib.sha256(canonical_json(about).encode())
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


# --- what is in it ---


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
    return AdapterStack.of(sites, chosen, pairs)


def _of(engine: Engine, name: str, count: int, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    return [tensors[f"{name}.{place}"].to(engine.device) for place in range(count)]
