"""Split a forward pass into the part that training repeats and the part that is constant.

Everything below the first adapted module sees the same tokens at every step of every adapter, so its output is
constant: it is computed once and cached, and only the rest, the *suffix*, runs in training. The split knows no
architecture. It records how the model calls its own decoder layers (masks, rotary embeddings, positions) and repeats
those calls for the suffix; then it is compared with the full forward pass, which takes its place if they differ.

Rows are right-padded and have no padding mask, since under causal attention a token never sees what follows it. So all
that the model passes to its layers besides hidden states depends on positions alone, and the calls recorded on one row
serve any number of rows of the same length.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from memlaw.core.errors import ModelError, first_line
from memlaw.model.memory import out_of_memory, storage_device
from memlaw.model.parts import decoder, decoder_layers, final_norm

CACHING_TOKENS = 16384
"""Tokens per forward pass while the constant part is computed, which bounds its memory."""

COMPILED_DIFFERENCE = 256
"""Largest difference of compiled layers from the model's own, in units of the dtype's epsilon: they round elsewhere."""

_Call = tuple[tuple[Any, ...], dict[str, Any]]


class Forward(Protocol):
    """Rows of tokens -> final hidden states, in two parts: one constant in training, one not."""

    def cache(self, ids: Tensor) -> Tensor:
        """`ids` [rows, time] -> the output of the constant part, one entry per row along the first dimension."""
        ...

    def __call__(self, cached: Tensor) -> Tensor:
        """Any stack of cached rows [n, time, ...] -> hidden states after the final norm [n, time, d]."""
        ...

    def compile_above(self) -> None:
        """From now on, run the layers above the last adapted one with `torch.compile` wherever gradients are on."""
        ...


class FullForward:
    """The model's own forward pass, nothing cached: the reference that every split must agree with."""

    def __init__(self, model: Any) -> None:
        self.decoder = decoder(model)

    def cache(self, ids: Tensor) -> Tensor:
        return ids

    def __call__(self, cached: Tensor) -> Tensor:
        hidden: Tensor = self.decoder(input_ids=cached, use_cache=False).last_hidden_state
        return hidden

    def compile_above(self) -> None:
        warnings.warn("Every step runs the whole model, and none of it is compiled.", stacklevel=2)


class SplitForward:
    """Runs the layers below `first` once and the others at every call; no layer above `last` is adapted."""

    def __init__(self, model: Any, first: int, time: int, last: int) -> None:
        self.decoder = decoder(model)
        self.layers = list(decoder_layers(model))[first:]
        self.adapted = last + 1 - first
        """How many of the layers may be adapted."""
        norm = final_norm(model)
        if norm is None:
            raise ModelError("no final normalisation found")
        self.norm = norm
        self.calls = self._record(torch.zeros(1, time, dtype=torch.long, device=model.device))
        self.compiled: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def _record(self, row: Tensor) -> list[_Call]:
        """What the model passes to each suffix layer besides the hidden states."""
        calls: list[_Call] = []

        def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}))

        with ExitStack() as hooks:
            for layer in self.layers:
                hooks.callback(layer.register_forward_pre_hook(record, with_kwargs=True).remove)
            self.decoder(input_ids=row, use_cache=False)
        if len(calls) != len(self.layers):
            raise ModelError("its forward does not call each decoder layer once")
        return calls

    @torch.no_grad()
    def cache(self, ids: Tensor) -> Tensor:
        """`ids` [rows, time] -> input of layer `first` [rows, time, d], kept on the CPU if the accelerator is small."""
        parts = torch.split(ids, max(1, CACHING_TOKENS // ids.shape[1]))
        start = self._constant(parts[0])
        place = storage_device(start.nbytes * len(parts), start.device)
        return torch.cat([start.to(place), *(self._constant(part).to(place) for part in parts[1:])])

    def _constant(self, ids: Tensor) -> Tensor:
        inputs: list[Tensor] = []

        def catch_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs.append(args[0] if args else kwargs["hidden_states"])
            raise _StopForwardError

        self._run_until_stopped(ids, self.layers[0].register_forward_pre_hook(catch_input, with_kwargs=True))
        return inputs[0]

    def _run_until_stopped(self, ids: Tensor, *hooks: Any) -> None:
        """Run the model's own forward pass until a hook raises `_StopForwardError`, and remove the hooks."""
        with ExitStack() as cleaning, suppress(_StopForwardError):
            for hook in hooks:
                cleaning.callback(hook.remove)
            self.decoder(input_ids=ids, use_cache=False)

    def __call__(self, cached: Tensor) -> Tensor:
        hidden = self._layers(cached, 0, self.adapted)
        if self.compiled is None or not torch.is_grad_enabled():
            return self._above(hidden)
        return self.compiled(hidden)

    def _layers(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        for layer, (args, kwargs) in zip(self.layers[start:stop], self.calls[start:stop], strict=True):
            hidden = _hidden(layer(hidden, *args, **kwargs))
        return hidden

    def _above(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.norm(self._layers(hidden, self.adapted, len(self.layers)))
        return normed

    def compile_above(self) -> None:
        """The first call compares the compiled layers with the model's own; if they differ, it warns and drops them."""
        compiled = torch.compile(self._above, mode="reduce-overhead" if next(self.norm.parameters()).is_cuda else None)

        def first_call(hidden: Tensor) -> Tensor:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the compiler's warnings say nothing about the model
                    result = compiled(hidden)
                with torch.no_grad():
                    expected = self._above(hidden)
                    worst = float((result - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
                if worst <= COMPILED_DIFFERENCE * torch.finfo(hidden.dtype).eps:
                    self.compiled = compiled
                    return result
                reason = f"its result differs by {worst:.1e}"
            except RuntimeError as error:  # a missing C++ compiler raises one too
                if out_of_memory(error):
                    raise
                reason = first_line(error)
            warnings.warn(
                f"The model's upper layers cannot be compiled ({reason}): running them as they are.", stacklevel=2
            )
            self.compiled = None
            return self._above(hidden)

        self.compiled = first_call


class SiteForward(SplitForward):
    """Runs all of layer `first` once, if a single module of that layer is adapted and ends it.

    If the module's output is added to the layer's output y unchanged, as that of an MLP's last projection in most
    families, then whatever an adapter adds to the module is added to y. So the module's input x and y are cached, side
    by side, and layer `first` costs no more than its adapters. A norm after the module (Gemma 2) rules this out.
    """

    def __init__(self, model: Any, first: int, time: int, last: int, site: str) -> None:
        super().__init__(model, first + 1, time, last)
        self.layer = decoder_layers(model)[first]
        self.site = model.get_submodule(site)

    def _constant(self, ids: Tensor) -> Tensor:
        seen: dict[str, Tensor] = {}

        def at_site(_module: nn.Module, args: tuple[Any, ...], _output: Any) -> None:
            seen["x"] = args[0]

        def at_end(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            seen["y"] = _hidden(output)
            raise _StopForwardError

        self._run_until_stopped(ids, self.site.register_forward_hook(at_site), self.layer.register_forward_hook(at_end))
        self.width = seen["x"].shape[-1]
        return torch.cat([seen["x"], seen["y"]], dim=-1)

    def __call__(self, cached: Tensor) -> Tensor:
        x, y = cached[..., : self.width], cached[..., self.width :]
        with _returning(self.site, y):
            return super().__call__(_hidden(self.site(x)))


@contextmanager
def _returning(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Inside, calling the module computes nothing and returns `output`, to which its hooks still add."""
    replaced = vars(module).get("forward")
    module.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        if replaced is None:
            del module.forward
        else:
            module.forward = replaced


class _StopForwardError(Exception):
    """Ends the model's forward pass once a hook has seen all it needs."""


def _hidden(output: Any) -> Tensor:
    """The hidden states in the output of a module, which may be a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@torch.no_grad()
def split(model: Any, first: int, sites: Sequence[str], ids: Tensor, last: int) -> Forward:
    """The cheapest forward for `ids` [rows, time] that agrees with the model's own.

    `first` and `last` are the first and last adapted layers, `sites` the modules adapted in the first. Every candidate
    is compared with the full forward pass on two real rows at once, with the model as it is and with the first site
    disturbed as by an adapter. That exposes models whose layers depend on more than positions, or that do more than add
    after the site. If no split agrees, the full forward is returned, with a warning that says why.
    """
    full = FullForward(model)
    time, rows = ids.shape[1], ids[:2]
    site = model.get_submodule(sites[0])
    candidates: list[Callable[[], SplitForward]] = []
    if len(sites) == 1:
        candidates.append(lambda: SiteForward(model, first, time, last, sites[0]))
    if first > 0:
        candidates.append(lambda: SplitForward(model, first, time, last))
    reason = ""
    for build in candidates:
        try:
            candidate = build()
            worst = max(_difference(candidate, full, rows), _difference(candidate, full, rows, disturbed=site))
        except (ModelError, TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
            if out_of_memory(error) and len(rows) > 1:
                return split(model, first, sites, ids[:1], last)
            reason = f"cannot be split ({first_line(error)})"
            continue
        if worst <= 8 * torch.finfo(model.dtype).eps:
            return candidate
        reason = f"gives another result when split at layer {first} (relative difference {worst:.1e})"
    if first > 0:  # if layer 0 is adapted, no split is expected
        warnings.warn(f"{type(model).__name__} {reason}: every step runs the whole model.", stacklevel=2)
    return full


def _difference(candidate: Forward, full: Forward, rows: Tensor, *, disturbed: nn.Module | None = None) -> float:
    """Largest difference of the two forwards, relative to the largest hidden state."""
    cached = candidate.cache(rows)  # before the disturbance, since the cache holds the base alone
    with ExitStack() as hooks:
        if disturbed is not None:
            hooks.callback(disturbed.register_forward_hook(_disturbance()).remove)
        expected = full(full.cache(rows))
        actual = candidate(cached)
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _disturbance() -> Callable[..., Any]:
    """A forward hook that adds noise of the size of the first output it sees, the same at every call."""
    noise: list[Tensor] = []

    def disturb(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = _hidden(output)
        if not noise:
            stream = torch.Generator().manual_seed(0)
            noise.append(torch.randn(hidden.shape, generator=stream, dtype=torch.float32).to(hidden) * hidden.std())
        return (hidden + noise[0], *output[1:]) if isinstance(output, tuple) else hidden + noise[0]

    return disturb
