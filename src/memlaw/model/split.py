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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from memlaw.core.errors import ModelError
from memlaw.model.memory import out_of_memory, storage_device
from memlaw.model.parts import decoder, decoder_layers, final_norm

CACHING_TOKENS = 16384
"""Tokens of one forward while the constant part is computed: bounds its memory."""

COMPILED_DIFFERENCE = 256
"""Largest difference of compiled layers from the model's own, in units of the precision: they round in other places."""

_Call = tuple[tuple[Any, ...], dict[str, Any]]


class Forward(Protocol):
    """Rows of tokens -> final hidden states, in two parts: what is constant in training and what is not."""

    def cache(self, ids: Tensor) -> Tensor:
        """`ids` [rows, time] -> the constant part, one entry a row along the first dimension."""
        ...

    def __call__(self, cached: Tensor) -> Tensor:
        """Any stack of cached rows [n, time, ...] -> hidden states after the final norm [n, time, d]."""
        ...

    def compile_above(self) -> None:
        """From now on, compute what lies above the last adapted layer with `torch.compile` wherever gradients are."""
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

    def compile_above(self) -> None:
        warnings.warn("The model runs whole in every step, so nothing of it is compiled.", stacklevel=2)


class SplitForward:
    """Layers below `first` once; layers from `first` on at every call. No layer above `last` is adapted."""

    def __init__(self, model: Any, first: int, time: int, last: int) -> None:
        self.decoder = decoder(model)
        self.layers = list(decoder_layers(model))[first:]
        self.adapted = last + 1 - first
        """How many of the layers may be."""
        norm = final_norm(model)
        if norm is None:
            raise ModelError("no final normalisation found")
        self.norm = norm
        self.calls = self._record(torch.zeros(1, time, dtype=torch.long, device=model.device))
        self.compiled: Callable[[Tensor], Tensor] | None = None

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
        """`ids` [rows, time] -> input of layer `first` [rows, time, d], on the CPU where the accelerator is small."""
        parts = torch.split(ids, max(1, CACHING_TOKENS // ids.shape[1]))
        start = self._constant(parts[0])
        place = storage_device(start.nbytes * len(parts), start.device)
        return torch.cat([start.to(place), *(self._constant(part).to(place) for part in parts[1:])])

    def _constant(self, ids: Tensor) -> Tensor:
        caught: list[Tensor] = []

        def catch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])
            raise _StopForwardError

        self._run_until(ids, self.layers[0].register_forward_pre_hook(catch, with_kwargs=True))
        return caught[0]

    def _run_until(self, ids: Tensor, *hooks: Any) -> None:
        """The model's own forward, left by the hook that raises `_EnoughError`; the hooks are removed."""
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
        """The compiled part proves itself too, at its first call, or steps aside with a warning."""
        compiled = torch.compile(self._above, mode="reduce-overhead" if next(self.norm.parameters()).is_cuda else None)

        def first_call(hidden: Tensor) -> Tensor:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the compiler's own; they say nothing of the model
                    found = compiled(hidden)
                with torch.no_grad():
                    expected = self._above(hidden)
                    worst = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
                if worst <= COMPILED_DIFFERENCE * torch.finfo(hidden.dtype).eps:
                    self.compiled = compiled
                    return found
                reason = f"its result differs by {worst:.1e}"
            except RuntimeError as error:  # among them what a missing C++ compiler raises
                if out_of_memory(error):
                    raise
                reason = str(error).strip().partition("\n")[0]
            sentence = f"Compiling the model's upper layers is of no use here ({reason}): going on without."
            warnings.warn(sentence, stacklevel=2)
            self.compiled = None
            return self._above(hidden)

        self.compiled = first_call


class SiteForward(SplitForward):
    """Everything but the adapted module once, where a single module of the first adapted layer is adapted.

    Where the module's output reaches the layer's unchanged, as that of an MLP's last projection does in most families,
    whatever an adapter adds to it is added to the layer's output y. So the module's input x and y are kept, side by
    side, and layer `first` costs what the adapters cost. A norm behind the module (Gemma 2) breaks it.
    """

    def __init__(self, model: Any, first: int, time: int, last: int, site: str) -> None:
        super().__init__(model, first + 1, time, last)
        self.layer = decoder_layers(model)[first]
        self.site = model.get_submodule(site)

    def _constant(self, ids: Tensor) -> Tensor:
        caught: dict[str, Tensor] = {}

        def at_site(_module: nn.Module, args: tuple[Any, ...], _output: Any) -> None:
            caught["x"] = args[0]

        def at_end(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            caught["y"] = _hidden(output)
            raise _StopForwardError

        self._run_until(ids, self.site.register_forward_hook(at_site), self.layer.register_forward_hook(at_end))
        self.width = caught["x"].shape[-1]
        return torch.cat([caught["x"], caught["y"]], dim=-1)

    def __call__(self, cached: Tensor) -> Tensor:
        x, y = cached[..., : self.width], cached[..., self.width :]
        with _answering(self.site, y):
            return super().__call__(_hidden(self.site(x)))


@contextmanager
def _answering(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Called inside, the module computes nothing and returns `output`; what is hooked to it adds to that."""
    usual = vars(module).get("forward")
    module.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        if usual is None:
            del module.forward
        else:
            module.forward = usual


class _StopForwardError(Exception):
    """Leaves the model's forward once everything wanted has been seen."""


def _hidden(output: Any) -> Tensor:
    """The hidden states of a module that may return other things beside them."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@torch.no_grad()
def split(model: Any, first: int, sites: Sequence[str], ids: Tensor, last: int) -> Forward:
    """The cheapest forward for `ids` [rows, time] that is proven equal to the model's own.

    `first` and `last` are the first and last adapted layers, `sites` the modules adapted in the first. A candidate is
    compared with the full forward on two real rows at once, as the model stands and with the first site disturbed as an
    adapter would: a model whose layers see more than positions, or that does more behind the site than add, is found
    out. Where no split is proven the full forward serves, and a warning says why.
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
            hooks.callback(disturbed.register_forward_hook(_disturbance()).remove)
        expected = full(full.cache(rows))
        found = candidate(cached)
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _disturbance() -> Callable[..., Any]:
    """A forward hook that adds noise of the size of the first output it meets, the same at every call."""
    noise: list[Tensor] = []

    def disturb(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = _hidden(output)
        if not noise:
            stream = torch.Generator().manual_seed(0)
            noise.append(torch.randn(hidden.shape, generator=stream, dtype=torch.float32).to(hidden) * hidden.std())
        return (hidden + noise[0], *output[1:]) if isinstance(output, tuple) else hidden + noise[0]

    return disturb
