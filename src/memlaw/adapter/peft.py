"""Adapters on disk: PEFT's own format, plus `memlaw_adapter.json` that says which base and data they belong to.

A directory holds `adapter_model.safetensors` and `memlaw_adapter.json`. For placements PEFT has a name for there is
also `adapter_config.json`, so that `PeftModel.from_pretrained` and every LoRA server load it unchanged; the paper's
parallel adapter (`mlp@L`) has none, since PEFT would load it as something else. Weights are never unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memlaw.adapter.on_model import placement_on
from memlaw.adapter.placement import Placement
from memlaw.adapter.stack import AdapterStack
from memlaw.core import files
from memlaw.core.errors import AdapterError, first_line
from memlaw.model.base import Base
from memlaw.model.parts import frozen

INFO = "memlaw_adapter.json"

WEIGHTS = "adapter_model.safetensors"

PEFT_CONFIG = "adapter_config.json"

CARD = "README.md"

_FIELDS: dict[str, Any] = {
    "base": str, "base_fingerprint": str, "placement": str, "rank": int, "scale": int | float, "weights_sha256": str,
}  # fmt: skip
"""What `memlaw_adapter.json` has at least."""

_LARGEST_SCALE = 1e9

_PREFIX = "base_model.model."
"""What PEFT puts before the path of a module inside the causal LM."""


def save(
    stack: AdapterStack, placement: Placement, base: Base, directory: Path, *, details: Mapping[str, Any] | None = None
) -> None:
    """Write the only adapter of `stack` as a directory that appears whole or not at all, and is on disk then.

    `details` (settings, fingerprints, counts: JSON values) are kept in `memlaw_adapter.json`. Raises AdapterError if
    the directory holds something else than an adapter.
    """
    directory = Path(directory)
    check_free(directory)
    tensors = _tensors(stack)
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise AdapterError(f"The adapter has weights that are not finite ({bad[0]}); it is not saved.")
    rank, scale = stack.ranks[0], float(stack.scale.flatten()[0])
    files.make_folders(directory.parent)
    with files.new_folder(directory) as built:
        try:
            save_file(tensors, built / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:  # what safetensors makes of an OSError
            raise AdapterError(
                f"The adapter cannot be written to {directory.parent}: {error}. Make room or choose another --out, and "
                "train again."
            ) from error
        if not placement.parallel:
            _write_peft_config(placement, rank, scale, base, built)
        info = {
            "format": 1,
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "placement": str(placement),
            "rank": rank,
            "scale": scale,
            "weights_sha256": files.file_sha256(built / WEIGHTS),
            **(details or {}),
        }
        (built / INFO).write_text(json.dumps(info, indent=2, sort_keys=True, allow_nan=False) + "\n")
        (built / CARD).write_text(_card(base, placement, rank))


def check_free(directory: Path) -> None:
    """Raise AdapterError unless `directory` is absent, empty, or an adapter memlaw wrote (which may be replaced)."""
    ours = {INFO, WEIGHTS, PEFT_CONFIG, CARD}
    if not directory.exists():
        return
    if not directory.is_dir():
        raise AdapterError(f"{directory} is a file; an adapter is a directory. Choose another --out.")
    found = {path.name for path in directory.iterdir()}
    if found and (INFO not in found or not found <= ours):
        other = sorted(found - ours) or sorted(found)
        raise AdapterError(
            f"The directory {directory} belongs to something else (it holds {other[0]}), and nothing is overwritten "
            "that memlaw did not write. Choose another --out."
        )


def load_info(directory: Path) -> dict[str, Any] | None:
    """`memlaw_adapter.json` of an adapter, None where memlaw did not write it. Raises AdapterError."""
    directory = Path(directory)
    if not directory.is_dir():
        raise AdapterError(f"There is no adapter directory {directory}.")
    if not (directory / WEIGHTS).exists():
        pickled = [p.name for p in directory.glob("*.bin")]
        reason = f"only {pickled[0]}, a pickle that could run code" if pickled else f"no {WEIGHTS}"
        raise AdapterError(f"The adapter {directory} holds {reason}; memlaw loads safetensors only.")
    if not (directory / INFO).exists():
        return None
    try:
        info: dict[str, Any] = json.loads((directory / INFO).read_text())
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"{directory / INFO} is not JSON ({type(error).__name__}); the adapter was damaged or cut short."
        ) from error
    whole = isinstance(info, dict) and all(isinstance(info.get(name), kind) for name, kind in _FIELDS.items())
    if not (whole and 0 < info["scale"] < _LARGEST_SCALE):
        raise AdapterError(
            f"{directory / INFO} is not what memlaw writes beside an adapter: it was damaged, or made by something "
            "else. Train the adapter again; one that PEFT wrote is loaded without that file."
        )
    return info


@contextmanager
def attach(base: Base, directory: Path) -> Iterator[None]:
    """The base with the adapter of `directory` added; as it was, afterwards.

    PEFT itself loads what PEFT can, so what is measured is what is deployed. Raises AdapterError for an adapter of
    another base (PEFT would load it silently), damaged or non-finite weights, or a missing file.
    """
    directory = Path(directory)
    info = load_info(directory)
    tensors = _checked_tensors(directory, info)
    if info is not None and info["base_fingerprint"] != base.fingerprint:
        raise AdapterError(
            f"The adapter {directory} was trained on another base ({info['base']}, weights "
            f"{info['base_fingerprint'][:12]}) than {base.name} (weights {base.fingerprint[:12]}). On this one it "
            f"would give other text without any error. Use --model {info['base']}, or train the adapter again."
        )
    if (directory / PEFT_CONFIG).exists():
        with _attached_by_peft(base, directory):
            yield
    elif info is not None:
        with _stack(base, info, tensors).attached(base.model):
            yield
    else:
        raise AdapterError(f"The adapter {directory} has neither {PEFT_CONFIG} nor {INFO}: nothing says where it goes.")


@contextmanager
def _attached_by_peft(base: Base, directory: Path) -> Iterator[None]:
    from peft import PeftModel

    _check_peft_config(directory / PEFT_CONFIG)
    with frozen(base.model):  # PEFT freezes what it wraps; this gives it back as it was
        try:
            try:
                PeftModel.from_pretrained(base.model, str(directory)).eval()
            except Exception as error:  # a configuration that makes no sense fails wherever PEFT trips over it
                raise AdapterError(
                    f"PEFT cannot load the adapter {directory} on {base.name} ({type(error).__name__}: "
                    f"{first_line(error)}). Save it again with the version of PEFT that trained it."
                ) from error
            yield
        finally:
            _strip(base.model)


def _check_peft_config(path: Path) -> None:
    """Refuse a configuration that has PEFT import a module which it names itself (`megatron_core`)."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"{path} is not JSON ({type(error).__name__}); the adapter was damaged or cut short."
        ) from error
    if not isinstance(config, dict) or config.get("megatron_config"):
        raise AdapterError(
            f"{path} is no configuration of an adapter, or asks for Megatron, whose code PEFT would import by a name "
            "that stands in the file. memlaw runs no code that an adapter names."
        )


def _strip(model: Any) -> None:
    """Take out what PEFT has put into the model, whether it had got through with it or not."""
    if hasattr(model, "peft_config"):
        del model.peft_config
    for name, child in list(model.named_children()):
        found = _original(child)
        if found is child:
            _strip(child)
        else:
            setattr(model, name, found)


def _original(module: Any) -> Any:
    """What PEFT has wrapped, or the module itself."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    while isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
    return module


def _tensors(stack: AdapterStack) -> dict[str, Tensor]:
    """PEFT's names and shapes: lora_A [rank, d_in], lora_B [d_out, rank]."""
    tensors = {}
    for site, (a, b) in zip(stack.sites, stack.pairs, strict=True):
        rank = stack.ranks[0]
        tensors[f"{_PREFIX}{site.path}.lora_A.weight"] = a[0, :, :rank].detach().T.contiguous().cpu()
        tensors[f"{_PREFIX}{site.path}.lora_B.weight"] = b[0, :rank].detach().T.contiguous().cpu()
    return tensors


def _stack(base: Base, info: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> AdapterStack:
    placement = placement_on(info["placement"], base.model)
    first = next(base.model.parameters())
    pairs = []
    for site in placement.sites:
        try:
            a, b = (tensors[f"{_PREFIX}{site.path}.lora_{half}.weight"] for half in "AB")
        except KeyError as error:
            raise AdapterError(
                f"The adapter's weights lack {error.args[0]}, which its placement {placement} needs."
            ) from error
        if a.shape != (info["rank"], site.d_in) or b.shape != (site.d_out, info["rank"]):
            raise AdapterError(
                f"The adapter's weights at {site.path} have the shapes {list(a.shape)} and {list(b.shape)}, which are "
                f"not those of rank {info['rank']} there: it was damaged or put together from two."
            )
        pairs.append((a.T[None].to(first.device), b.T[None].to(first.device)))
    scale = torch.full((1, 1, 1), info["scale"], dtype=pairs[0][0].dtype, device=first.device)
    return AdapterStack(placement.sites, [info["rank"]], scale, pairs)


def _checked_tensors(directory: Path, info: Mapping[str, Any] | None) -> dict[str, Tensor]:
    path = directory / WEIGHTS
    if info is not None and files.file_sha256(path) != info["weights_sha256"]:
        raise AdapterError(
            f"{path} is not the file that was saved (its SHA-256 differs): damaged, cut short or replaced."
        )
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is not a readable safetensors file ({error}).") from error
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise AdapterError(f"{path} has weights that are not finite in {name}; its outputs would be meaningless.")
    return tensors


def _write_peft_config(placement: Placement, rank: int, scale: float, base: Base, directory: Path) -> None:
    from peft import LoraConfig

    config = LoraConfig(
        **placement.lora_config(rank, scale=scale), base_model_name_or_path=base.name, inference_mode=True
    )
    config.save_pretrained(str(directory))


def _card(base: Base, placement: Placement, rank: int) -> str:
    return (
        f"---\nlibrary_name: peft\nbase_model: {base.name}\n---\n\n"
        "# A LoRA adapter trained by memlaw to recall facts verbatim\n\n"
        f"Rank {rank} at `{placement}` of `{base.name}`.\n\n"
        "**This adapter contains its training data.** Whoever has it and the base model can read the facts back word "
        "for word. Treat it as you would treat the file of facts.\n"
    )
