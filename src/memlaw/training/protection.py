"""What adapters will cost the model on neutral text, predicted from their weights alone, as a penalty on them.

Close to the base, KL(base || adapted) of a token is a quadratic form: delta' F delta / 2, where delta = s x A B is what
the adapter adds to the output of its module and F the Fisher information of the next tokens about it. With x and F
taken as independent (K-FAC, arXiv 1503.05671), its mean over neutral text is

    drift = s^2 / 2 * tr(C A B G B' A')    with C = E[x x'] [d_in, d_in] and G = E[g g'] [d_out, d_out],

summed over the modules, where g is the gradient of -ln p of a token that the base itself draws. C and G are measured
once; drift and its gradient then cost 2 r (d_in^2 + d_out^2) multiplications a step and no pass through the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import Execution
from memlaw.core.errors import DataError, ModelError
from memlaw.core.stages import tell
from memlaw.data import read_text
from memlaw.losses.divergence import drawn_gradient
from memlaw.model.base import Base
from memlaw.model.head import FrozenHead
from memlaw.model.linear import use_onednn
from memlaw.model.memory import out_of_memory
from memlaw.model.outline import Site
from memlaw.model.parts import decoder_layers
from memlaw.model.sampling import sampled
from memlaw.model.tokenizer import token_ids
from memlaw.training import moment_cache
from memlaw.training.suffix import Suffix

OWN_TEXT = (128, 64)
"""Rows, and tokens of each, that are sampled from a base to measure C and G on."""

OWN_SEED = 0

ROWS_AT_ONCE = 4
"""Rows of neutral text in one backward pass: bounds its memory."""

MOMENT_BYTES = 2 << 30
"""Largest memory of all moments: many modules of a large model are measured on fewer rows."""

_DRAW_SEED = 3

STAGE = "rows of other text measured"


def own_text(base: Base) -> Tensor | None:
    """Text that the bare base writes, [rows, time] ids: what protects an adapter where the user gives no other.

    None, with a warning, for a base that has no token to start from.
    """
    rows, tokens = OWN_TEXT
    try:
        return sampled(base, rows, tokens if base.context is None else min(tokens, base.context - 1), seed=OWN_SEED)
    except ModelError as error:
        warnings.warn(
            f"{error} Until then adapters are trained without protection, which may cost the model much of what it "
            "knows.",
            stacklevel=2,
        )
        return None


def text_of_file(base: Base, path: Path) -> Tensor:
    """Rows of a plain text, [rows, time] ids, as many and as long as those of `own_text`, spread evenly over the file.

    Raises DataError for a file that cannot be read or is shorter than one row.
    """
    count, tokens = OWN_TEXT
    ids = token_ids(base.tokenizer, read_text(path))
    time = 1 + (tokens if base.context is None else min(tokens, base.context - 1))
    if len(ids) < time:
        raise DataError(
            f"The text {path} has {len(ids)} tokens under this tokenizer, and protection reads rows of {time}. Give a "
            "longer text, of the kind that the model should stay good at."
        )
    rows = torch.tensor(ids[: len(ids) // time * time]).view(-1, time)
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()]


class SecondMoment:
    """M = E[x x'] of `count` vectors x [d], as a matrix or, from fewer than d vectors, as these."""

    def __init__(self, count: int, numbers: Tensor) -> None:
        """`numbers` are M [d, d] or the vectors [count, d]."""
        self.count = count
        self.numbers = numbers
        self._added = 0

    @classmethod
    def of_none(cls, width: int, count: int) -> SecondMoment:
        """Zero, until `add` has been given all vectors."""
        return cls(
            count, torch.zeros(cls.shape(width, count), dtype=torch.float64 if count >= width else torch.float32)
        )

    @staticmethod
    def shape(width: int, count: int) -> tuple[int, int]:
        """Of `numbers`."""
        return min(width, count), width

    @property
    def is_matrix(self) -> bool:
        return self.count >= self.numbers.shape[1]

    def add(self, vectors: Tensor) -> None:
        """[n, d]"""
        self.numbers = self.numbers.to(vectors.device)
        if self.is_matrix:
            vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
            self.numbers += (vectors.T @ vectors).double() / self.count  # few products at a time: float32 will do
        else:
            self.numbers[self._added : self._added + len(vectors)] = vectors
            self._added += len(vectors)

    def times(self, tensor: Tensor) -> Tensor:
        """M T, [..., d, r] -> [..., d, r]."""
        self.numbers = self.numbers.to(tensor)  # once: from then on they are where the adapters are
        if self.is_matrix:
            return self.numbers @ tensor
        return self.numbers.T @ (self.numbers @ tensor) / self.count


@dataclass(frozen=True, eq=False)
class Curvature:
    """C and G of one module."""

    inputs: SecondMoment
    outputs: SecondMoment

    def in_precision_of_adapters(self, model: torch.dtype) -> Curvature:
        """Adapters have at least float32. What the cache keeps is the same numbers."""
        for moment in (self.inputs, self.outputs):
            moment.numbers = moment.numbers.to(torch.promote_types(model, torch.float32))
        return self


class Protection:
    """Predicts the drift of a stack from what was measured at its sites."""

    def __init__(self, curvatures: Sequence[Curvature]) -> None:
        """One curvature for each site of the stacks, in their order."""
        self.curvatures = tuple(curvatures)

    @torch.no_grad()
    def drift(self, stack: AdapterStack) -> Tensor:
        """Predicted mean KL(base || adapted) in nats a token of neutral text: [K]."""
        total = stack.scale.new_zeros(len(stack))
        for (a, b), (ca, bg) in zip(stack.pairs, self._products(stack), strict=True):
            inner = (a.mT @ ca) * (bg @ b.mT)  # tr(C A B G B' A') = <A' C A, B G B'>
            total = total + inner.sum(dim=(1, 2))
        return stack.scale.flatten().square() * total / 2

    @torch.no_grad()
    def gradients(self, stack: AdapterStack) -> list[Tensor]:
        """Of each adapter's own drift in its tensors: s^2 C A B G B' in A, s^2 A' C A B G in B."""
        square = stack.scale.square()
        both = (
            (square * (ca @ (bg @ b.mT)), square * ((a.mT @ ca) @ bg))
            for (a, b), (ca, bg) in zip(stack.pairs, self._products(stack), strict=True)
        )
        return [gradient for pair in both for gradient in pair]

    def _products(self, stack: AdapterStack) -> Iterator[tuple[Tensor, Tensor]]:
        """C A [K, d_in, r] and B G [K, r, d_out] of each site."""
        for (a, b), curvature in zip(stack.pairs, self.curvatures, strict=True):
            yield curvature.inputs.times(a.detach()), curvature.outputs.times(b.detach().mT).mT


def protection_at(base: Base, head: FrozenHead, sites: Sequence[Site], ids: Tensor, *, own: bool) -> Protection:
    """What predicts the drift at `sites`, which come by layer, on the neutral text `ids` [rows, time].

    C and G are kept in the cache folder, by the fingerprint of the base: a second training measures nothing. Vectors,
    from which a text can be reconstructed, are kept only of the base's `own` text. Nothing may be attached to the base.
    """
    count = _vectors(sites, ids)
    key = moment_cache.key_of(base, sites, ids)
    shapes = [(SecondMoment.shape(site.d_in, count), SecondMoment.shape(site.d_out, count)) for site in sites]
    found = moment_cache.kept(key, shapes)
    if found is not None:
        return Protection([Curvature(SecondMoment(count, c), SecondMoment(count, g)) for c, g in found])
    tell(STAGE, 0, len(ids))
    with use_onednn(decoder_layers(base.model)):  # those below the sites too: here they are half of the work
        suffix = Suffix.of_rows(base, sites, ids, Execution())
        protection = measured(suffix, head, base.model, sites, ids)
    moments = [(one.inputs, one.outputs) for one in protection.curvatures]
    if own or all(moment.is_matrix for pair in moments for moment in pair):
        moment_cache.keep(key, [(inputs.numbers, outputs.numbers) for inputs, outputs in moments])
    return protection


def measured(suffix: Suffix, head: FrozenHead, model: Any, sites: Sequence[Site], ids: Tensor) -> Protection:
    """C and G at `sites` on the neutral text `ids` [rows, time], whose `suffix` starts at the first of them.

    A row's first token is left out: it has nothing before it, and many models park a huge state there that no text
    depends on. g sums what a change at one token does to it and to all later tokens of its row.
    """
    count = _vectors(sites, ids)
    rows = count // (ids.shape[1] - 2)
    modules = [model.get_submodule(site.path) for site in sites]
    at_once = ROWS_AT_ONCE
    while True:
        curvatures = [
            Curvature(SecondMoment.of_none(site.d_in, count), SecondMoment.of_none(site.d_out, count)) for site in sites
        ]
        stream = torch.Generator().manual_seed(_DRAW_SEED)
        try:
            for some in torch.split(torch.arange(rows), at_once):
                at_sites = _at_sites(suffix, head, modules, some, stream)
                for curvature, (inputs, gradients) in zip(curvatures, at_sites, strict=True):
                    curvature.inputs.add(_inner(inputs))
                    curvature.outputs.add(_inner(gradients))
                tell(STAGE, int(some[-1]) + 1, rows)
            return Protection([one.in_precision_of_adapters(model.dtype) for one in curvatures])
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or at_once == 1:
                raise
        at_once = 1


def _at_sites(
    suffix: Suffix, head: FrozenHead, modules: Sequence[nn.Module], rows: Tensor, stream: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each module its inputs [rows, time, d_in], and the gradients at its outputs of -ln p of tokens drawn."""
    seen = [_Seen() for _ in modules]
    with ExitStack() as hooks:
        for module, one in zip(modules, seen, strict=True):
            hooks.callback(module.register_forward_hook(one.hook, with_kwargs=True).remove)
        with torch.enable_grad():
            hidden = suffix.hidden(rows)[:, :-1]
    back = drawn_gradient(head, hidden.detach().flatten(0, 1), stream).view_as(hidden)
    gradients = torch.autograd.grad(hidden, [one.added for one in seen], back)
    return iter([(one.inputs, gradient) for one, gradient in zip(seen, gradients, strict=True)])


def _vectors(sites: Sequence[Site], ids: Tensor) -> int:
    """How many vectors C and G are measured from."""
    return _affordable(sites, *ids.shape) * (ids.shape[1] - 2)


def _affordable(sites: Sequence[Site], rows: int, time: int) -> int:
    """As many of the rows as MOMENT_BYTES allow, in steps of a half; at least one."""
    widths = [width for site in sites for width in (site.d_in, site.d_out)]

    def needed(rows: int) -> int:
        count = rows * (time - 2)
        return sum(8 * width**2 if count >= width else 4 * count * width for width in widths)

    while rows > 1 and needed(rows) > MOMENT_BYTES:
        rows //= 2
    return rows


def _inner(states: Tensor) -> Tensor:
    """Without the first token of a row, and the last, which predicts nothing: [rows, time, d] -> [n, d]."""
    return states[:, 1:-1].flatten(0, -2)


class _Seen:
    """The input of a module, and a zero added to its output whose gradient is that of the output."""

    inputs: Tensor
    added: Tensor

    @property
    def hook(self) -> Callable[..., Any]:
        def add(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            self.inputs = (args[0] if args else next(iter(kwargs.values()))).detach()
            first = output[0] if isinstance(output, tuple) else output
            self.added = torch.zeros_like(first, requires_grad=True)
            return (first + self.added, *output[1:]) if isinstance(output, tuple) else first + self.added

        return add
