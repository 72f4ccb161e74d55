"""Where an adapter sits: from `down_proj@4` to the modules of one model. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from memlaw.core.errors import AdapterError, suggest
from memlaw.model.outline import MLP, Outline, Site, by_layer_and_path

PARALLEL = MLP
"""Placement name of the paper's adapter parallel to a whole MLP block."""

ALL_LINEAR = "all-linear"

_OUTPUT_PROJECTIONS = ("down_proj", "dense_4h_to_h", "c_proj", "fc2", "w2")
"""Names of the last linear module of an MLP; the default placement is the first that exists."""


@dataclass(frozen=True)
class Placement:
    """Where an adapter sits in one model: names of modules, layers (None: all of them), and the resulting sites."""

    modules: tuple[str, ...]
    layers: tuple[int, ...] | None
    sites: tuple[Site, ...]
    full_paths: bool = False
    """Whether PEFT would also adapt other modules by these names, such as those of a vision tower."""
    left_out: tuple[str, ...] = ()
    """Names, inside a decoder layer, of what all-linear does not adapt: routers, gates and fused experts."""

    def __str__(self) -> str:
        where = "" if self.layers is None else "@" + "+".join(map(str, self.layers))
        return ",".join(self.modules) + where

    @property
    def parallel(self) -> bool:
        """Whether this is the paper's parallel-MLP adapter, which PEFT cannot express."""
        return self.modules == (PARALLEL,)

    @property
    def first_layer(self) -> int:
        return min(site.layer for site in self.sites)

    @property
    def first_sites(self) -> list[str]:
        """Paths of the sites in the first adapted layer."""
        return [site.path for site in self.sites if site.layer == self.first_layer]

    @property
    def caution(self) -> str:
        """A warning about what is left out and about the cost of training here; empty if none is due."""
        sentences = []
        if self.left_out:
            sentences.append(
                f"The placement {self} leaves out {', '.join(self.left_out)}: routers, gates with one output and fused "
                "experts."
            )
        if self.first_layer == 0 and len(self.first_sites) > 1:
            sentences.append(
                f"The placement {self} adapts layer 0, so nothing below it can be cached: every step runs the whole "
                "model. A placement in higher layers trains faster."
            )
        return " ".join(sentences)

    @property
    def max_rank(self) -> int:
        """The smallest dimension of a site; a higher rank adds parameters but no freedom."""
        return min(min(site.d_in, site.d_out) for site in self.sites)

    def parameters(self, rank: int) -> int:
        """Parameters N of an adapter of this rank: the sum over sites of rank * (d_in + d_out)."""
        return sum(rank * (site.d_in + site.d_out) for site in self.sites)

    def lora_config(self, rank: int, *, scale: float = 1.0) -> dict[str, Any]:
        """Keyword arguments of `peft.LoraConfig`, ready to paste; lora_alpha = scale * rank.

        Raises AdapterError for the parallel adapter, which PEFT cannot express.
        """
        if self.parallel:
            raise AdapterError(
                f"PEFT cannot express the parallel adapter {self}. Use down_proj@LAYER, or memlaw to load it."
            )
        alpha = scale * rank
        return {
            "r": rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "target_modules": [site.path for site in self.sites] if self.full_paths else self.names_for_peft,
            "layers_to_transform": None if self.layers is None or self.full_paths else list(self.layers),
            "lora_dropout": 0.0,
            "fan_in_fan_out": self.sites[0].transposed,
            "bias": "none",
            "task_type": "CAUSAL_LM",
        }

    @property
    def names_for_peft(self) -> str | list[str]:
        """The short names of `target_modules`. PEFT's own all-linear takes routers too, and no choice of layers."""
        if self.modules != (ALL_LINEAR,):
            return list(self.modules)
        return sorted({site.module for site in self.sites}) if self.left_out or self.layers else ALL_LINEAR

    def check_rank(self, rank: int) -> None:
        """Raise AdapterError unless 1 <= rank <= max_rank."""
        if rank < 1:
            raise AdapterError(f"Rank must be at least 1, not {rank}.")
        if rank > self.max_rank:
            narrow = min(self.sites, key=lambda site: min(site.d_in, site.d_out))
            raise AdapterError(
                f"Rank {rank} is above {self.max_rank}, the smaller dimension of {narrow.path} ({narrow.d_in} -> "
                f"{narrow.d_out}): it would add parameters but no freedom. Choose at most {self.max_rank}."
            )


def resolve(text: str | None, outline: Outline) -> Placement:
    """Resolve `mlp@4`, `down_proj@4`, `q_proj,v_proj`, `all-linear`, `down_proj@3-5` or `down_proj@1+4` on a model.

    None is the default: the MLP's output projection two thirds up the stack (the paper adapts layer 24 of 36), which
    PEFT and every LoRA server can load. Raises AdapterError for a module or layer that the model lacks, suggesting
    similar names.
    """
    count = outline.layers
    candidates = _sites_by_name(outline)
    names, has_layers, where = (_default(outline, candidates) if text is None else text).partition("@")
    layers = _parse_layers(where, count) if has_layers else None
    modules = tuple(name.strip() for name in names.split(","))
    if modules == (PARALLEL,) and layers is None:
        raise AdapterError(
            f"The parallel adapter needs a layer from 0 to {count - 1}, such as {PARALLEL}@{2 * count // 3}."
        )
    if len(modules) > 1 and {PARALLEL, ALL_LINEAR} & set(modules):
        raise AdapterError(
            f"{PARALLEL} and {ALL_LINEAR} cannot be combined with other modules, as in {names!r}. Use one alone."
        )
    if modules == (ALL_LINEAR,):
        named = [site for site in outline.linear if not _routes(site)]
        left_out = (*sorted({_inner(site) for site in outline.linear if _routes(site)}), *outline.fused)
    else:
        for name in modules:
            _check_module(name, candidates, outline)
        named, left_out = [site for name in set(modules) for site in candidates[name]], ()
    sites = [site for site in named if layers is None or site.layer in layers]
    if not sites:
        raise AdapterError(f"The model has no module {names} in layers {where}. Choose other layers or modules.")
    return Placement(modules, layers, tuple(sorted(sites, key=by_layer_and_path)), left_out=left_out)


def _routes(site: Site) -> bool:
    """Whether a module chooses experts or scales a branch by one number: it stores no facts, and caps the rank."""
    parts = _inner(site).split(".")
    named = any(re.fullmatch(r"(.*_)?(gate|router)", part) for part in parts)
    return site.d_out == 1 or (named and site.d_out < site.d_in)


def _inner(site: Site) -> str:
    """The path inside the decoder layer, such as `mlp.down_proj`."""
    return site.path.partition(f".{site.layer}.")[2]


def _sites_by_name(outline: Outline) -> dict[str, list[Site]]:
    """Name of a module -> its sites: all linear modules of the decoder layers, and the MLP blocks."""
    sites: dict[str, list[Site]] = {}
    for site in (*outline.linear, *outline.blocks):
        sites.setdefault(site.module, []).append(site)
    return sites


def _default(outline: Outline, candidates: dict[str, list[Site]]) -> str:
    for name in _OUTPUT_PROJECTIONS:
        if name in candidates:
            return f"{name}@{2 * outline.layers // 3}"
    raise AdapterError(
        f"{outline.name} has none of the MLP output projections {', '.join(_OUTPUT_PROJECTIONS)}, so it has no default "
        f"placement. {_fused_experts(outline)}Choose one with --placement. Its modules: "
        f"{', '.join(sorted(candidates))}."
    )


def _parse_layers(text: str, count: int) -> tuple[int, ...]:
    layers: set[int] = set()
    for part in text.split("+"):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise AdapterError(f"The layers {text!r} are not of the form 4, 2-5 or 1+4.")
        low, high = int(match[1]), int(match[2] or match[1])
        layers.update(range(low, high + 1))
    if not layers or max(layers) >= count:
        raise AdapterError(
            f"Layer {max(layers, default=0)} does not exist: the model has {count} layers, 0 to {count - 1}."
        )
    return tuple(sorted(layers))


def _fused_experts(outline: Outline) -> str:
    """What cannot be adapted in a mixture of experts and what can; empty for other models."""
    if not outline.fused:
        return ""
    block = f", and {PARALLEL}@LAYER adapts a whole MLP block, router and experts together" if outline.blocks else ""
    return (
        f"Its experts are fused into 3-D tensors ({', '.join(outline.fused)}), which memlaw cannot adapt; the modules "
        f"listed can be adapted{block}. "
    )


def _check_module(name: str, candidates: dict[str, list[Site]], outline: Outline) -> None:
    if name in candidates:
        return
    hint = suggest(name, candidates, cutoff=0.4)
    raise AdapterError(
        f"The model has no module {name!r} to adapt. {hint}{_fused_experts(outline)}"
        f"Its modules: {', '.join(sorted(candidates))}, {ALL_LINEAR}."
    )
