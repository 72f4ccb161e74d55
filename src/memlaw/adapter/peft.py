"""Adapters on disk: PEFT's own format, plus `memlaw_adapter.json`, which records their base and data.

A directory holds `adapter_model.safetensors` and `memlaw_adapter.json`. Placements that PEFT can express also get an
`adapter_config.json`, so that `PeftModel.from_pretrained` and every LoRA server load the adapter unchanged; the paper's
parallel adapter (`mlp@L`) gets none, since PEFT would load it as something else. Weights are never unpickled.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memlaw.adapter.faults import NOTHING, Allow, not_loadable, of_another_base, partly_loaded
from memlaw.adapter.info import FORMAT, INFO, WEIGHTS, AdapterFaultError, AdapterInfo, load_info
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.placement import Placement
from memlaw.adapter.stack import AdapterStack
from memlaw.adapter.untouched import untouched
from memlaw.adapter.wrapper import refuse_chance, refuse_effects_outside, refuse_wrapper
from memlaw.core import files
from memlaw.core.errors import AdapterError
from memlaw.model.base import Base
from memlaw.model.parts import frozen

PEFT_CONFIG = "adapter_config.json"
CARD = "README.md"

_PREFIX = "base_model.model."  # PEFT puts it before the path of a module inside the causal LM


def save(
    stack: AdapterStack, placement: Placement, base: Base, directory: Path, *, details: Mapping[str, Any] | None = None
) -> None:
    """Save the only adapter of `stack` to `directory`, which appears complete and durable, or not at all.

    `details` (the optional fields of AdapterInfo) go into `memlaw_adapter.json`. Raises AdapterError for weights that
    are not finite, and for a directory that holds anything but an adapter.
    """
    directory = Path(directory)
    check_free(directory)
    tensors = _tensors(stack)
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise AdapterError(f"The adapter was not saved: its weights are not finite ({bad[0]}).")
    rank, scale = stack.ranks[0], float(stack.scale.flatten()[0])
    files.make_folders(directory.parent)
    with files.new_folder(directory) as built:
        try:
            save_file(tensors, built / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:  # safetensors raises it for an OSError too
            raise AdapterError(
                f"The adapter cannot be written to {directory.parent}: {error}. Free some space or choose another "
                "--out, and train again."
            ) from error
        if not placement.parallel:
            from peft import LoraConfig

            config = placement.lora_config(rank, scale=scale)
            LoraConfig(**config, base_model_name_or_path=base.name, inference_mode=True).save_pretrained(str(built))
        info = {
            "format": FORMAT,
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "base_digests": dict(base.digests),
            "placement": str(placement),
            "rank": rank,
            "scale": scale,
            "weights_sha256": files.file_sha256(built / WEIGHTS),
            **(details or {}),
        }
        (built / INFO).write_text(json.dumps(info, indent=2, sort_keys=True, allow_nan=False) + "\n")
        served = (details or {}).get("train", {}).get("served_as", ())
        (built / CARD).write_text(_card(base, placement, rank, served))


def check_free(directory: Path) -> None:
    """Raise AdapterError unless `directory` is absent, empty, or an adapter that memlaw saved, which it may replace."""
    ours = {INFO, WEIGHTS, PEFT_CONFIG, CARD}
    if not directory.exists():
        return
    if not directory.is_dir():
        raise AdapterError(f"{directory} is a file; an adapter is a directory. Choose another --out.")
    present = {path.name for path in directory.iterdir()}
    if present and (INFO not in present or not present <= ours):
        foreign = sorted(present - ours) or sorted(present)
        raise AdapterError(
            f"The directory {directory} belongs to something else (it holds {foreign[0]}), and memlaw overwrites only "
            "what it wrote itself. Choose another --out."
        )


@contextmanager
def attach(base: Base, directory: Path, allow: Allow = NOTHING) -> Iterator[tuple[AdapterFaultError, ...]]:
    """Add the adapter of `directory` to the base, and remove it again on exit; yields the faults that `allow` allowed.

    Whatever PEFT can load is loaded by PEFT, so that the adapter measured is the adapter deployed. Afterwards the base
    is bit-identical to what it was. Raises AdapterError for damaged or non-finite weights or a missing file, and its
    child AdapterFaultError for an adapter of another base (PEFT would load it silently), one of which a part cannot be
    loaded, and one whose effect is not in the modules of the base.
    """
    directory = Path(directory)
    info = load_info(directory)
    tensors = checked_tensors(directory, info)
    config = peft_config(directory / PEFT_CONFIG)
    allowed = [] if (other := of_another_base(base, directory, info, config or {})) is None else [other]
    _refuse_unless(allowed, allow)
    if config is not None:
        with _attached_by_peft(base, directory, len(tensors), allow) as more:
            yield (*allowed, *more)
    elif info is not None:
        with _loaded_stack(base, info, tensors).attached(base.model):
            yield tuple(allowed)
    else:
        raise AdapterError(f"The adapter {directory} has neither {PEFT_CONFIG} nor {INFO}, so its modules are unknown.")


def loaded(base: Base, directory: Path) -> AdapterStack:
    """The adapter of `directory`, which memlaw saved for this base, as a stack to train on.

    Raises AdapterError for damaged weights, another base, or an adapter that memlaw did not write.
    """
    info = load_info(Path(directory))
    if info is None:
        raise AdapterError(
            f"The adapter {directory} has no {INFO}: only an adapter that memlaw trained can be trained on."
        )
    _refuse_unless([] if (other := of_another_base(base, directory, info, {})) is None else [other], NOTHING)
    return _loaded_stack(base, info, checked_tensors(Path(directory), info))


def _refuse_unless(faults: Sequence[AdapterFaultError], allow: Allow) -> None:
    for fault in faults:
        if fault not in allow:
            raise fault


@contextmanager
def _attached_by_peft(base: Base, directory: Path, total: int, allow: Allow) -> Iterator[list[AdapterFaultError]]:
    from peft import PeftConfig, PeftModel

    subject = f"The adapter {directory}"
    with frozen(base.model), untouched(base.model) as copy_on_write:  # PEFT freezes what it wraps, and changes it
        try:
            config = PeftConfig.from_pretrained(str(directory))
            refuse_wrapper(subject, config)
            refuse_chance(subject, config)
            with copy_on_write, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Found missing adapter keys")  # they are a fault, below
                tuned = PeftModel.from_pretrained(base.model, str(directory)).eval()
                # `from_pretrained` keeps to itself which tensors found no place; loading them again tells.
                keys = tuned.load_adapter(str(directory), "default")
        except AdapterFaultError:
            raise
        except Exception as error:  # PEFT does not validate a configuration: a bad one can raise anything
            raise not_loadable(base, directory, error) from error
        missing, dropped = _without_shared(tuned, keys.missing_keys), keys.unexpected_keys
        faults = [partly_loaded(directory, total, missing, dropped)] if missing or dropped else []
        _refuse_unless(faults, allow)
        refuse_effects_outside(base, subject, tuned)
        yield faults


def _without_shared(tuned: Any, missing: Sequence[str]) -> list[str]:
    """The names among `missing` whose tensor was not loaded under another name either: some types share theirs."""
    tensors = dict(tuned.named_parameters(remove_duplicate=False)) | dict(tuned.named_buffers(remove_duplicate=False))
    loaded = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    return [name for name in missing if id(tensors.get(name)) not in loaded]


def peft_config(path: Path) -> dict[str, Any] | None:
    """PEFT's configuration, if there is one.

    Refuses one that makes PEFT import a module of the file's choosing (`megatron_core`).
    """
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"{path} is not JSON ({type(error).__name__}): the adapter was damaged or cut short. Copy it again."
        ) from error
    if not isinstance(config, dict) or config.get("megatron_config"):
        raise AdapterError(
            f"{path} is not an adapter configuration, or it asks for Megatron, and PEFT would import the module that "
            "the file names for it. memlaw never runs code that an adapter names."
        )
    return config


def _tensors(stack: AdapterStack) -> dict[str, Tensor]:
    """The weights under PEFT's names, in PEFT's shapes: lora_A [rank, d_in], lora_B [d_out, rank]."""
    tensors = {}
    for site, (a, b) in zip(stack.sites, stack.pairs, strict=True):
        rank = stack.ranks[0]
        tensors[f"{_PREFIX}{site.path}.lora_A.weight"] = a[0, :, :rank].detach().T.contiguous().cpu()
        tensors[f"{_PREFIX}{site.path}.lora_B.weight"] = b[0, :rank].detach().T.contiguous().cpu()
    return tensors


def _loaded_stack(base: Base, info: AdapterInfo, tensors: Mapping[str, Tensor]) -> AdapterStack:
    placement = placement_on(info.placement, base.model)
    first = next(base.model.parameters())
    pairs = []
    for site in placement.sites:
        try:
            a, b = (tensors[f"{_PREFIX}{site.path}.lora_{half}.weight"] for half in "AB")
        except KeyError as error:
            raise AdapterError(
                f"The adapter's weights lack {error.args[0]}, which its placement {placement} needs: it was damaged or "
                "put together from two. Copy it again, or train it again."
            ) from error
        if a.shape != (info.rank, site.d_in) or b.shape != (site.d_out, info.rank):
            raise AdapterError(
                f"The adapter's weights at {site.path} have the shapes {list(a.shape)} and {list(b.shape)}, which do "
                f"not fit rank {info.rank} there: it was damaged or put together from two. Copy it again, or train it "
                "again."
            )
        pairs.append((a.T[None].to(first.device), b.T[None].to(first.device)))
    scale = torch.full((1, 1, 1), info.scale, dtype=pairs[0][0].dtype, device=first.device)
    return AdapterStack(placement.sites, [info.rank], scale, pairs)


def checked_tensors(directory: Path, info: AdapterInfo | None) -> dict[str, Tensor]:
    """The weights of an adapter, each finite and, by `info`, as it was saved. Raises AdapterError."""
    path = directory / WEIGHTS
    if info is not None and files.file_sha256(path) != info.weights_sha256:
        raise AdapterError(
            f"{path} is not the file that was saved (its SHA-256 differs): it was damaged, cut short or replaced. Copy "
            "the adapter again."
        )
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is not a readable safetensors file ({error}). Copy the adapter again.") from error
    empty = [name for name, tensor in tensors.items() if tensor.dim() < 2 and not tensor.numel()]
    if empty:
        raise AdapterFaultError(
            "adapter-has-empty-tensors",
            f"{len(empty)} of the {len(tensors)} tensors of {path} are empty (first {empty[0]}): they were saved by "
            "one process of a training whose weights were spread over several (DeepSpeed ZeRO-3, FSDP).",
            "Gather the weights before saving: `trainer.save_model()` with "
            "stage3_gather_16bit_weights_on_model_save, or `zero_to_fp32.py` on its checkpoint.",
        )
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise AdapterError(
                f"{path} has weights that are not finite in {name}, so its outputs would be meaningless. Train the "
                "adapter again."
            )
    return tensors


def _card(base: Base, placement: Placement, rank: int, served: Sequence[str]) -> str:
    trained_for = f"Trained for this base served as {' and '.join(served)}: in another precision facts may be lost.\n\n"
    return (
        f"---\nlibrary_name: peft\nbase_model: {base.name}\n---\n\n"
        "# A LoRA adapter trained by memlaw to recall facts verbatim\n\n"
        f"Rank {rank} at `{placement}` of `{base.name}`.\n\n"
        f"{trained_for if served else ''}"
        "**This adapter contains its training data.** Anyone with the adapter and the base model can read the facts "
        "word for word. Protect it like the file of facts.\n"
    )
