"""The part of a forward pass that training repeats, and the part that it need not.

Everything below the first adapted module sees the same tokens at every step of every adapter, so its output is a
constant: computed once, kept, and only the rest - the *suffix* - runs in training. The split knows no architecture. It
records how the model itself calls its decoder layers (masks, rotary embeddings, positions) and calls the suffix layers
again with what it recorded; then it proves itself against the full forward, or steps aside for it.

Rows are right-padded and carry no padding mask: under causal attention a token never sees what follows it. So
everything the model passes to its layers beside the hidden states depends on positions alone, and the calls recorded on
one row of some length serve any number of rows of that length.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from memlaw.errors import ModelError
from memlaw.model import decoder, decoder_layers, final_norm

CACHING_TOKENS = 16384
"""Tokens of one forward while the constant part is computed: bounds its memory."""

_Call = tuple[tuple[Any, ...], dict[str, Any]]


class Forward(Protocol):
    """Rows of tokens -> final hidden states, in two parts: what is constant in training and what is not."""

    def cache(self, ids: Tensor) -> Tensor:
        """`ids` [rows, time] -> the constant part, one entry a row along the first dimension."""
        ...

    def __call__(self, cached: Tensor) -> Tensor:
        """Any stack of cached rows [n, time, ...] -> hidden states after the final norm [n, time, d]."""
        ...


class FullForward:
    """The model's own forward, nothing cached: always right, and what every split must agree with."""

    def __init__(self, model: Any) -> None:
        self.decoder = decoder(model)

    def cache(self, ids: Tensor) -> Tensor:
        return ids

    def __call__(self, cached: Tensor) -> Tensor:
        hidden: Tensor = self.decoder(input_ids=cached, use_cache=False).last_hidden_state
        return hidden


class SplitForward:
    """Layers below `first` once; layers from `first` on at every call."""

    def __init__(self, model: Any, first: int, time: int) -> None:
        self.decoder = decoder(model)
        self.layers = list(decoder_layers(model))[first:]
        norm = final_norm(model)
        if norm is None:
            raise ModelError("no final normalisation found")
        self.norm = norm
        self.calls = self._record(torch.zeros(1, time, dtype=torch.long, device=model.device))

    @torch.no_grad()
    def _record(self, row: Tensor) -> list[_Call]:
        """What the model passes to each suffix layer beside the hidden states."""
        calls: list[_Call] = []

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}))

        with ExitStack() as hooks:
            for layer in self.layers:
                hooks.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
            self.decoder(input_ids=row, use_cache=False)
        if len(calls) != len(self.layers):
            raise ModelError("its forward does not call each decoder layer once")
        return calls

    @torch.no_grad()
    def cache(self, ids: Tensor) -> Tensor:
        """`ids` [rows, time] -> input of layer `first` [rows, time, d]."""
        chunk = max(1, CACHING_TOKENS // ids.shape[1])
        return torch.cat([self._constant(part) for part in torch.split(ids, chunk)])

    def _constant(self, ids: Tensor) -> Tensor:
        caught: list[Tensor] = []

        def catch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])
            raise _EnoughError

        self._run_until(ids, self.layers[0].register_forward_pre_hook(catch, with_kwargs=True))
        return caught[0]

    def _run_until(self, ids: Tensor, *hooks: Any) -> None:
        """The model's own forward, left by the hook that raises `_EnoughError`; the hooks are removed."""
        with ExitStack() as cleaning, suppress(_EnoughError):
            for hook in hooks:
                cleaning.callback(hook.remove)
            self.decoder(input_ids=ids, use_cache=False)

    def __call__(self, cached: Tensor) -> Tensor:
        hidden = cached
        for layer, (args, kwargs) in zip(self.layers, self.calls, strict=True):
            hidden = _hidden(layer(hidden, *args, **kwargs))
        normed: Tensor = self.norm(hidden)
        return normed


class SiteForward(SplitForward):
    """Everything but the adapted module once, where a single module of the first adapted layer is adapted.

    Before the adapter, the layer's output is y = r + module(x), with x and r constants. So x and r are kept, side by
    side, and layer `first` costs one call of the adapted module. Holds where the module's output reaches the layer's
    unchanged, as that of an MLP's last projection does in most families; a norm behind it (Gemma 2) breaks it.
    """

    def __init__(self, model: Any, first: int, time: int, site: str) -> None:
        super().__init__(model, first + 1, time)
        self.layer = decoder_layers(model)[first]
        self.site = model.get_submodule(site)

    def _constant(self, ids: Tensor) -> Tensor:
        caught: dict[str, Tensor] = {}

        def at_site(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            caught["x"], caught["out"] = args[0], _hidden(output)

        def at_end(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            caught["y"] = _hidden(output)
            raise _EnoughError

        self._run_until(ids, self.site.register_forward_hook(at_site), self.layer.register_forward_hook(at_end))
        self.width = caught["x"].shape[-1]
        return torch.cat([caught["x"], caught["y"] - caught["out"]], dim=-1)

    def __call__(self, cached: Tensor) -> Tensor:
        x, rest = cached[..., : self.width], cached[..., self.width :]
        return super().__call__(rest + _hidden(self.site(x)))


class _EnoughError(Exception):
    """Leaves the model's forward once everything wanted has been seen."""


def _hidden(output: Any) -> Tensor:
    """The hidden states of a module that may return other things beside them."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@torch.no_grad()
def split(model: Any, first: int, sites: Sequence[str], ids: Tensor) -> Forward:
    """The cheapest forward for `ids` [rows, time] that is proven equal to the model's own.

    `first` is the first adapted layer and `sites` are the paths of the modules adapted in it. A candidate is compared
    with the full forward on two real rows at once, as the model stands and with the first site disturbed as an adapter
    would: a model whose layers see more than positions, or that does more behind the site than add, is found out. Where
    no split is proven the full forward serves, and a warning says why.
    """
    full = FullForward(model)
    time, rows = ids.shape[1], ids[:2]
    site = model.get_submodule(sites[0])
    candidates: list[Callable[[], SplitForward]] = []
    if len(sites) == 1:
        candidates.append(lambda: SiteForward(model, first, time, sites[0]))
    if first > 0:
        candidates.append(lambda: SplitForward(model, first, time))
    reason = ""
    for build in candidates:
        try:
            candidate = build()
            worst = max(_difference(candidate, full, rows), _difference(candidate, full, rows, disturbed=site))
        except (ModelError, TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
            reason = f"cannot be split ({error})"
            continue
        if worst <= 8 * torch.finfo(model.dtype).eps:
            return candidate
        reason = f"gives another result when split at layer {first} (relative difference {worst:.1e})"
    if first > 0:  # with the first layer adapted, no split was to be expected
        warnings.warn(f"{type(model).__name__} {reason}: running the full forward.", stacklevel=2)
    return full


def _difference(candidate: Forward, full: Forward, rows: Tensor, *, disturbed: nn.Module | None = None) -> float:
    """Largest difference of the two forwards, relative to the largest hidden state."""
    cached = candidate.cache(rows)  # before the disturbance: what is cached is the base alone
    with ExitStack() as hooks:
        if disturbed is not None:
            hooks.callback(disturbed.register_forward_hook(_disturb).remove)
        expected = full(full.cache(rows))
        found = candidate(cached)
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _disturb(_module: nn.Module, _args: Any, output: Any) -> Any:
    """Add noise of the output's own size, the same at every call."""
    hidden = _hidden(output)
    stream = torch.Generator().manual_seed(0)
    noise = torch.randn(hidden.shape, generator=stream, dtype=torch.float32).to(hidden) * hidden.std()
    return (hidden + noise, *output[1:]) if isinstance(output, tuple) else hidden + noise
