"""Text sampled from a base itself: what it writes unasked, the nearest there is to what it was trained on.

An adapter is measured on such text, and may rehearse it while it learns something else. The expected gradient of the
plain loss on the base's own samples is zero at the base, so rehearsing them moves nothing by itself.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from memlaw.core.cache import cache_folder
from memlaw.core.canonical import digest
from memlaw.core.errors import ConfigError, ModelError
from memlaw.core.stages import tell
from memlaw.model.base import Base
from memlaw.model.parts import frozen
from memlaw.model.tensor_file import read_tensor, write_tensor

EVALUATION_SEED = 2**31
"""Seeds from here on are for measuring; training samples with smaller ones, so that no adapter is judged on text that
it has rehearsed."""

VERSION = 1
"""Increase when the same seed gives other tokens."""

STAGE = "tokens that the model writes"

_LOGITS = 1 << 23
"""Logits computed at once, which bounds the memory: 32 MiB in float32, a few times that while one is drawn."""


@dataclass(frozen=True)
class Start:
    """The token from which a base writes of its own accord."""

    token: int
    kind: Literal["bos", "eos"]
    """Its beginning of sequence; its end of sequence, after which a next text begins, for a base without one."""


def start_of(base: Base) -> Start:
    """Where sampling starts: the tokenizer's beginning of sequence, else its end, else one at which the model stops.

    Raises ModelError for a base that has none of them.
    """
    bos, eos = base.tokenizer.bos_token_id, base.tokenizer.eos_token_id
    if bos is not None:
        return Start(int(bos), "bos")
    if eos is not None:
        return Start(int(eos), "eos")
    if base.stops:
        return Start(base.stops[0], "eos")
    raise ModelError(
        f"{base.name} has neither a beginning nor an end of sequence, so there is no token from which it can write of "
        "its own accord. Set the tokenizer's bos_token or eos_token, or give a text of your own."
    )


def sampled(base: Base, rows: int, tokens: int, *, seed: int) -> Tensor:
    """Text that the bare base writes: [rows, 1 + tokens] ids, int64 on the CPU, the start of sequence first.

    Each token is drawn from softmax(logits) of all before it, at temperature 1 and from the whole vocabulary, whatever
    the model's generation config says. A row that emits an end of sequence goes on: what follows is what the base
    itself writes there, usually the next text. The first rows of a larger sample are those of a smaller one, up to
    rounding in the model.

    Whatever is attached to the base writes too: detach it before. The result is kept in the cache folder, by the
    fingerprint of the base. Raises ModelError for a base without a start, ConfigError for a shape that is empty or
    longer than the context of the model.
    """
    start = start_of(base)
    _check_shape(base, rows, tokens)
    key = digest(
        {
            "version": VERSION,
            "model": base.fingerprint,
            "dtype": base.held_in,
            "start": start.token,
            "rows": rows,
            "tokens": tokens,
            "seed": seed,
        }
    )
    path = cache_folder("samples") / f"{key}.safetensors"
    kept = read_tensor(path, what="samples")
    if kept is not None:
        return kept
    ids = _draw(base, start.token, torch.rand(rows, tokens, generator=_generator(seed), dtype=torch.float64))
    with contextlib.suppress(OSError):  # the cache saves time alone
        write_tensor(path, ids, replace=path.exists())
    return ids


def _check_shape(base: Base, rows: int, tokens: int) -> None:
    if rows < 1 or tokens < 1:
        raise ConfigError(f"{rows} rows of {tokens} sampled tokens are no text: ask for at least one of each.")
    if base.context is not None and tokens >= base.context:
        raise ConfigError(
            f"{tokens} sampled tokens and the one they start from are more than the context of the model, "
            f"{base.context}. Ask for at most {base.context - 1}."
        )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def _draw(base: Base, start: int, uniform: Tensor) -> Tensor:
    """Rows of sampled tokens, one for each number of `uniform` [rows, tokens] in [0, 1)."""
    vocabulary = base.model.get_output_embeddings().weight.shape[0]
    drawn: list[Tensor] = []
    tell(STAGE, 0, uniform.numel())
    with frozen(base.model):
        for part in torch.split(uniform, max(1, _LOGITS // vocabulary)):
            drawn.append(_draw_part(base, start, part, before=sum(map(len, drawn)), rows=len(uniform)))
    return torch.cat(drawn)


def _draw_part(base: Base, start: int, uniform: Tensor, *, before: int, rows: int) -> Tensor:
    """As `_draw`; `before` of `rows` in all have been drawn already."""
    tokens = uniform.shape[1]
    last = torch.full((len(uniform), 1), start, device=base.device)
    drawn, cache = [last], None
    for step in range(tokens):
        output: Any = base.model(input_ids=last, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        last = _pick(output.logits[:, -1], uniform[:, step, None].to(base.device))
        drawn.append(last)
        tell(STAGE, before * tokens + len(uniform) * (step + 1), rows * tokens)
    return torch.cat(drawn, 1).cpu()


def _pick(logits: Tensor, uniform: Tensor) -> Tensor:
    """The tokens [rows, 1] at which the cumulative probability of `logits` [rows, vocabulary] passes `uniform`."""
    cumulative = logits.float().softmax(-1).cumsum(-1)
    # The sum of float32 probabilities is 1 but for rounding; a token of probability zero is never passed at.
    below = uniform.to(cumulative) * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, below, right=True)
    return picked.clamp(max=logits.shape[1] - 1)
