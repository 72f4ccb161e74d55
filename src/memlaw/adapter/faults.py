"""What keeps an adapter from being judged on a base, each with a name, a reason and a way out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from memlaw.adapter.info import AdapterFaultError, AdapterInfo
from memlaw.model.base import Base, base_difference, other_precision, same_base

OTHER_BASE = "adapter-of-another-base"
OTHER_PRECISION = "adapter-in-another-precision"
PARTIAL = "adapter-is-partial"


@dataclass(frozen=True)
class Allow:
    """Faults to go on with. What is measured then may not be what anyone trained, so the result must say so."""

    partial: bool = False
    """Judge an adapter of which only a part could be loaded."""
    other_base: bool = False
    """Judge an adapter on a base that is not the one it names."""

    def __contains__(self, fault: AdapterFaultError) -> bool:
        if fault.code == OTHER_PRECISION:  # the same base: what is measured holds for it, and the result says so
            return True
        return (self.partial and fault.code == PARTIAL) or (self.other_base and fault.code == OTHER_BASE)


NOTHING = Allow()


def of_another_base(
    base: Base, directory: Path, info: AdapterInfo | None, config: Mapping[str, Any]
) -> AdapterFaultError | None:
    """The fault of an adapter that was trained on another base; None if it fits, or where nobody can tell.

    The same base in another precision is a fault of its own, which every Allow allows.

    The digests in `memlaw_adapter.json` decide, in any precision; without them, the name in PEFT's
    `adapter_config.json`.
    """
    if info is not None:
        if same_base(base, info.base_fingerprint, info.base_digests):
            return None
        if (formats := other_precision(base, info.base_digests)) is not None:
            return _other_precision(base, directory, info.base, formats)
        trained_on = (
            f"another base ({info.base}, weights {info.base_fingerprint[:12]}) than {base.name} (weights "
            f"{base.fingerprint[:12]}). {base_difference(base, info.base_digests).rstrip('.')}"
        )
        return _other_base(directory, trained_on, info.base)
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named or _is_name_of(named, base):
        return None
    return _other_base(directory, f"{named}, as its adapter_config.json says, not on {base.name}", named)


def _other_precision(base: Base, directory: Path, name: str, formats: Sequence[str]) -> AdapterFaultError:
    return AdapterFaultError(
        OTHER_PRECISION,
        f"The adapter {directory} was trained on {name}, and {base.name} is the same base in another precision "
        f"({' and '.join(formats)}): what is measured holds for these weights.",
        "Nothing needs to be done.",
    )


def _other_base(directory: Path, trained_on: str, name: str) -> AdapterFaultError:
    return AdapterFaultError(
        OTHER_BASE,
        f"The adapter {directory} was trained on {trained_on}. On this one it would give other text without any error.",
        f"Use --model {name}, or train the adapter again. If this is the same base in another place or form, go on "
        "with --allow-other-base (Python: allow_other_base=True).",
    )


def _is_name_of(named: str, base: Base) -> bool:
    """Whether `named` may be this base: the same last part of a name or path, or a base in memory without a name."""
    known = {base.name, str(getattr(base.model.config, "name_or_path", ""))} - {"", type(base.model).__name__}
    if not known or named == type(base.model).__name__:  # a model built in memory is saved under its class
        return True
    return _last_part(named) in map(_last_part, known)


def _last_part(name: str) -> str:
    """`qwen3-8b` of `Qwen/Qwen3-8B`, of a directory of that name, and of a snapshot of it in the Hub's cache."""
    path = name.replace("\\", "/").rstrip("/")
    cached = re.search(r"models--[^/]+--([^/]+)/snapshots/", path)
    return (cached[1] if cached else PurePosixPath(path).name).lower()


def partly_loaded(directory: Path, total: int, missing: Sequence[str], unexpected: Sequence[str]) -> AdapterFaultError:
    """The fault of an adapter with tensors that have no place in the model, or places without a tensor."""
    what = []
    if unexpected:
        what.append(
            f"{len(unexpected)} of its {total} tensors have no place in this model and were dropped (first "
            f"{unexpected[0]})"
        )
    if missing:
        what.append(f"{len(missing)} of its weights are missing and stay untrained (first {missing[0]})")
    return AdapterFaultError(
        PARTIAL,
        f"Only a part of the adapter {directory} could be loaded: {'; '.join(what)}. Its outputs are not those that "
        "were trained.",
        "Save it again with `save_pretrained` from the trained model, and load it on the same model class; names "
        "change when the model was wrapped or its class differs. To judge the part that was loaded, go on with "
        "--allow-partial (Python: allow_partial=True).",
    )


def not_loadable(base: Base, directory: Path, error: Exception) -> AdapterFaultError:
    """The fault of an adapter that PEFT refuses, with PEFT's own reason."""
    reason = cause(error)
    fix = "Save it again with the version of PEFT that trained it."
    if "size mismatch" in reason:
        fix = (
            "Its tensors have other shapes than this base: use the base that it was trained on. If its vocabulary "
            "was resized for the training, save that base with its tokenizer after "
            "`model.resize_token_embeddings(...)` and use it as --model."
        )
    return AdapterFaultError(
        "adapter-not-loadable",
        f"PEFT cannot load the adapter {directory} on {base.name} ({type(error).__name__}: {reason}).",
        fix,
    )


def cannot_be_judged(subject: str, kind: str, why: str, fix: str) -> AdapterFaultError:
    """The fault of an adapter that is not, or not only, in the modules of the base."""
    return AdapterFaultError("adapter-cannot-be-judged", f"{subject} is {kind}, which {why}.", fix)


def cause(error: Exception) -> str:
    """What a library's error says, without a heading that names no cause: torch puts one over its list of causes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) < 2 or not lines[0].endswith(":"):
        return lines[0] if lines else type(error).__name__
    more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
    return f"{lines[1].rstrip('.')}{more}"
