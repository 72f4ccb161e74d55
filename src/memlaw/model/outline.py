"""The shape of a causal language model: its modules and sizes, without the weights. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memlaw.core.canonical import digest

MLP = "mlp"
"""Name of the MLP block of a decoder layer, in most families."""


@dataclass(frozen=True)
class Site:
    """One module whose output an adapter can add to."""

    path: str
    """Dotted path in the causal LM, such as `model.layers.4.mlp.down_proj`."""
    layer: int
    d_in: int
    d_out: int
    transposed: bool = False
    """Whether the module stores its weight as [d_in, d_out], like GPT-2's Conv1D; only PEFT needs to know."""

    @property
    def module(self) -> str:
        """The last component of the path, such as `down_proj`: PEFT's name of the module."""
        return self.path.rpartition(".")[2]


@dataclass(frozen=True)
class Outline:
    """The shape of a causal language model: enough to tell where an adapter fits and what it costs."""

    name: str
    family: str
    """`model_type` of its text configuration, such as qwen3."""
    width: int
    """Size of a hidden state."""
    vocabulary: int
    """Rows of the head."""
    context: int | None
    """Positions the model was built for; None if its configuration does not say."""
    linear: tuple[Site, ...]
    """All linear modules of the decoder layers, by layer and path."""
    blocks: tuple[Site, ...]
    """The MLP block of every layer whose block is called `mlp`; its d_in and d_out are the width."""
    layer_weights: tuple[int, ...]
    """Number of weights of each decoder layer, scalars left out: families differ in whether those are weights."""
    head_weights: int
    """Number of weights of the head, its own or shared with the input embedding."""
    fused: tuple[str, ...] = ()
    """Names, inside a decoder layer, of the weights that hold all experts of a mixture as one 3-D tensor."""

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layer_weights)

    def weights_from(self, layer: int) -> int:
        """Number of weights of the head and the layers from `layer` up, which training a site there runs through."""
        return sum(self.layer_weights[layer:]) + self.head_weights

    @property
    def digest(self) -> str:
        """SHA-256 over the family and the names and shapes of its modules.

        It tells architectures and sizes apart, but is the same for all fine-tunes of a model, whatever their name and
        context.
        """
        rows = [[s.path.partition(f"{s.layer}.")[2], s.layer, s.d_in, s.d_out, s.transposed] for s in self.linear]
        sizes = [self.width, self.vocabulary, self.head_weights, list(self.layer_weights), len(self.blocks)]
        return digest({"family": self.family, "sizes": sizes, "linear": rows})


def by_layer_and_path(site: Site) -> tuple[int, str]:
    """Sort key of sites, in outlines and placements alike."""
    return site.layer, site.path


def count_weights(sizes: Iterable[int]) -> int:
    """Number of weights of a layer, from the sizes of its tensors; see `Outline.layer_weights`."""
    return sum(size for size in sizes if size > 1)
