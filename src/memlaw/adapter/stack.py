"""Many adapters on the same sites as one stack of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from memlaw.core.config import TrainConfig
from memlaw.model.outline import Site


class Dropout(Protocol):
    """Dropout on the input of the adapters at one site, [K, tokens, d_in]."""

    def __call__(self, x: Tensor, /, path: str) -> Tensor: ...


class AdapterStack:
    """K adapters on the same sites: per site `A` [K, d_in, r_max] and `B` [K, r_max, d_out], scale [K]."""

    def __init__(self, sites: Sequence[Site], ranks: Sequence[int], scale: Tensor, pairs: list[tuple[Tensor, Tensor]]):
        self.sites = tuple(sites)
        self.ranks = tuple(ranks)
        self.scale = scale
        self.pairs = pairs

    @classmethod
    def start(
        cls,
        sites: Sequence[Site],
        runs: Sequence[tuple[int, TrainConfig]],
        *,
        device: str,
        dtype: str,
        own: Sequence[Sequence[Site]] | None = None,
    ) -> AdapterStack:
        """Make untrained adapters: A is uniform from the run's own seed, B is zero, so each starts as the base itself.

        The numbers of an adapter depend on its own rank, seed and sites, never on the adapters it is stacked with.
        `own` are the sites of each run if these are not all `sites`: at the others its A is zero too, and the gradient
        of both stays zero.
        """
        widest = max(rank for rank, _ in runs)
        kind = getattr(torch, dtype)
        pairs = []
        streams = [torch.Generator().manual_seed(config.seed) for _, config in runs]
        for site in sites:
            a = torch.zeros(len(runs), site.d_in, widest, dtype=kind)
            for k, (rank, config) in enumerate(runs):
                if own is not None and site not in own[k]:
                    continue
                bound = (site.d_in if config.init == "peft" else rank) ** -0.5
                draw = torch.rand(site.d_in, rank, generator=streams[k], dtype=torch.float64)
                a[k, :, :rank] = ((2 * draw - 1) * bound).to(kind)
            b = torch.zeros(len(runs), widest, site.d_out, dtype=kind)
            pairs.append((a.to(device), b.to(device)))
        return cls.from_pairs(sites, runs, pairs)

    @classmethod
    def from_pairs(
        cls, sites: Sequence[Site], runs: Sequence[tuple[int, TrainConfig]], pairs: list[tuple[Tensor, Tensor]]
    ) -> AdapterStack:
        """Make adapters from their weights, one pair (A, B) per site."""
        factors = [config.factor(rank) for rank, config in runs]
        scale = torch.tensor(factors, dtype=torch.float64).to(pairs[0][0]).view(-1, 1, 1)
        return cls(sites, [rank for rank, _ in runs], scale, pairs)

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def tensors(self) -> list[Tensor]:
        """All trainable tensors, each with the adapters along its first dimension."""
        return [tensor for pair in self.pairs for tensor in pair]

    @torch.no_grad()
    def continue_from(self, one: AdapterStack, k: int) -> None:
        """Give adapter k the function of the only adapter in `one`, whose rank may be smaller: A B and scale count.

        What k has beyond that rank stays, A as drawn and B zero, so it adds nothing yet and can be trained.
        """
        own = dict(zip(self.sites, self.pairs, strict=True))
        rank, factor = one.ranks[0], (one.scale[0] / self.scale[k]).to(one.pairs[0][1])
        for site, (a, b) in zip(one.sites, one.pairs, strict=True):
            own[site][0][k, :, :rank] = a[0, :, :rank].to(own[site][0])
            own[site][1][k, :rank] = (factor * b[0, :rank]).to(own[site][1])

    def select(self, keep: Sequence[int]) -> AdapterStack:
        """Copy the adapters `keep` into a stack of their own, cut to the largest rank among them."""
        index = list(keep)
        widest = max(self.ranks[k] for k in index)
        pairs = [(a.detach()[index, :, :widest].clone(), b.detach()[index, :widest].clone()) for a, b in self.pairs]
        return AdapterStack(self.sites, [self.ranks[k] for k in index], self.scale[index], pairs)

    @classmethod
    def joined(cls, stacks: Sequence[AdapterStack]) -> AdapterStack:
        """Copy the adapters of all stacks, which share their sites, into one stack."""
        widest = max(max(stack.ranks) for stack in stacks)

        def padded(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            more = widest - a.shape[2]
            return pad(a.detach(), (0, more)), pad(b.detach(), (0, 0, 0, more))

        by_site = zip(*([padded(*pair) for pair in stack.pairs] for stack in stacks), strict=True)
        pairs = [(torch.cat([a for a, _ in each]), torch.cat([b for _, b in each])) for each in by_site]
        ranks = [rank for stack in stacks for rank in stack.ranks]
        return cls(stacks[0].sites, ranks, torch.cat([stack.scale for stack in stacks]), pairs)

    def at(self, sites: Sequence[Site]) -> AdapterStack:
        """The same adapters at some of their sites; the tensors are shared."""
        pairs = [pair for site, pair in zip(self.sites, self.pairs, strict=True) if site in sites]
        return AdapterStack(sites, self.ranks, self.scale, pairs)

    @contextmanager
    def attached(self, model: nn.Module, *, drop: Dropout | None = None) -> Iterator[None]:
        """Inside, the model adds adapter k to the k-th of K equal blocks of the batch.

        Every input then has K * n rows, those of one adapter together. `drop(x, path)` is applied to the input of the
        adapters at the site of that path, [K, tokens, d_in].
        """
        with ExitStack() as hooks:
            for site, (a, b) in zip(self.sites, self.pairs, strict=True):
                hook = _add_to_output(a, b, self.scale, None if drop is None else partial(drop, path=site.path))
                handle = model.get_submodule(site.path).register_forward_hook(hook, with_kwargs=True)
                hooks.callback(handle.remove)
            yield


def _add_to_output(a: Tensor, b: Tensor, scale: Tensor, drop: Callable[[Tensor], Tensor] | None) -> Callable[..., Any]:
    """Forward hook: output + scale * (x A) B, with adapter k on block k of the batch, in the adapters' dtype."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()))
        blocks = x.reshape(len(a), -1, a.shape[1]).to(a.dtype)
        blocks = blocks if drop is None else drop(blocks)
        delta = torch.bmm(torch.bmm(blocks, a) * scale, b)
        if isinstance(output, tuple):  # MLP blocks of a mixture of experts also return their routing
            return (output[0] + delta.view(output[0].shape).to(output[0].dtype), *output[1:])
        return output + delta.view(output.shape).to(output.dtype)

    return hook
