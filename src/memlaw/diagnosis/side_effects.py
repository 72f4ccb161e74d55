"""What did it cost? An adapted model beside its base, on neutral text and on prompts that were not stored.

First the base alone is run (`alone`), then the same base with an adapter, or a merged model (`side_effects`). Only
final hidden states are kept in between; logits are made of both for a few positions at a time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memlaw.core.errors import ModelError
from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.core.side_effects import SideEffects
from memlaw.data import encode
from memlaw.data.near_misses import encoded_near_misses
from memlaw.diagnosis.decoding import greedy
from memlaw.diagnosis.neutral import NeutralText, neutral_texts
from memlaw.model.base import Base
from memlaw.model.parts import decoder, frozen

NEAR_MISSES = 64
"""Near misses that are asked at most."""

ANSWER = 32
"""Tokens of an answer that are decoded, and of a stored value that it must begin with."""

_TOKENS = 2048  # of neutral text in one forward pass
_LOGITS = 1 << 23  # logits of each model at once: 32 MiB in float32, five times that with their probabilities
_OTHER_HEAD = 0.02  # relative difference of the logits of two ways to compute them that rounding cannot explain
_AUTOCAST = 0.2  # the same where accelerate made the model's own forward less precise than its parts


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What an adapter is measured with."""

    texts: tuple[NeutralText, ...]
    near_misses: tuple[EncodedFact, ...]
    values: tuple[tuple[int, ...], ...]
    """The first tokens of each stored value, its end aside."""


@dataclass(frozen=True, eq=False)
class Alone:
    """The base alone on a yardstick."""

    yardstick: Yardstick
    hidden: tuple[Tensor, ...]
    """Final hidden states [rows, time, d] of each text."""
    head: _Head
    answers: tuple[tuple[int, ...], ...]
    """Greedy answer to each near miss."""

    def kept(self) -> Alone:
        """The same with a copy of the head, for a model whose own head will be trained."""
        return replace(self, head=replace(self.head, module=copy.deepcopy(self.head.module)))


@dataclass(frozen=True, eq=False)
class _Head:
    """From final hidden states to logits: softcap * tanh(scale * module(hidden) / softcap)."""

    module: Any
    softcap: float | None
    scale: float

    @classmethod
    def of(cls, model: Any, *, bare: bool = False) -> _Head:
        module = model.get_output_embeddings()
        if bare:  # PEFT wraps an adapted head
            module = getattr(module, "original_module", module)
            module = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        config = model.config.get_text_config()
        factor = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
        divisor = float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
        return cls(module, getattr(config, "final_logit_softcapping", None), factor / divisor)

    def __call__(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.module(hidden).float() * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def yardstick(
    base: Base, memory_set: MemorySet, *, neutral: Path | None = None, near_misses: int = NEAR_MISSES
) -> Yardstick:
    """What to measure adapters with that store `memory_set`: neutral text, and near misses of its prompts.

    `neutral` is a file of plain text; by default a text sampled from the base, to which nothing may be attached, and a
    page of prose. Raises DataError for facts that cannot be encoded and a file that is too short; warns of one that
    holds targets.
    """
    encoded = encode(memory_set, base.tokenizer, context=base.context, stops=base.stops)
    asked = encoded_near_misses(memory_set, base.tokenizer, near_misses, seed=0, part="measuring")
    room = ANSWER if base.context is None else base.context
    return Yardstick(
        texts=neutral_texts(base, neutral, memory_set),
        near_misses=tuple(fact for fact in asked if base.context is None or fact.prompt_length + ANSWER <= room),
        values=_values(encoded, base.stops),
    )


def _values(encoded: Sequence[EncodedFact], stops: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    values = []
    for fact in encoded:
        end = next((place for place, token in enumerate(fact.target) if token in stops), fact.length)
        values.append(fact.target[: min(end, ANSWER)])
    return tuple(dict.fromkeys(value for value in values if value))


def alone(base: Base, measured_with: Yardstick) -> Alone:
    """Run the base alone; whatever is attached to it must be disabled. Raises ModelError for a head of unknown kind."""
    with frozen(base.model), torch.no_grad():
        hidden = tuple(_hidden(base, text.rows) for text in measured_with.texts)
        head = _Head.of(base.model, bare=True)
        _require_own_logits(base, head, measured_with.texts[0].rows[:1, :8])
        return Alone(measured_with, hidden, head, _answers(base, measured_with))


def side_effects(base: Base, before: Alone) -> SideEffects:
    """Compare the base with whatever is attached to it now, or a merged model, with the base `alone`.

    Same as the mean over all predicted tokens of `F.cross_entropy(after) - F.cross_entropy(before)`, of KL(before ||
    after) and of equal argmax, from the logits of the two models. Raises ModelError for logits that are not finite.
    """
    with frozen(base.model), torch.no_grad():
        sums = [_compared(base, text, states, before.head) for text, states in _texts(before)]
        near = _near(before, _answers(base, before.yardstick))
    counts = [text.rows[:, 1:].numel() for text in before.yardstick.texts]
    total = sum(counts)
    loss_before, difference, kl, same = (math.fsum(part[place] for part in sums) / total for place in range(4))
    if not all(map(math.isfinite, (loss_before, difference, kl))):
        raise ModelError(
            f"{base.name} gives logits that are not finite on neutral text, with what is attached to it or without, so "
            "its side effects have no value. Check the weights, or load it in float32."
        )
    names = [text.name for text in before.yardstick.texts]
    return SideEffects(
        loss_difference=difference,
        loss_before=loss_before,
        kl=kl,
        top1_agreement=same,
        tokens=total,
        texts={name: part[1] / count for name, part, count in zip(names, sums, counts, strict=True)},
        near_miss=near[0],
        near_misses=len(before.yardstick.near_misses),
        near_miss_base=near[1],
    )


def _texts(before: Alone) -> Iterator[tuple[NeutralText, Tensor]]:
    yield from zip(before.yardstick.texts, before.hidden, strict=True)


def _hidden(base: Base, rows: Tensor) -> Tensor:
    """Final hidden states [rows, time, d]."""
    inner = decoder(base.model)
    parts = torch.split(rows.to(base.device), max(1, _TOKENS // rows.shape[1]))
    return torch.cat([inner(input_ids=part, use_cache=False).last_hidden_state for part in parts])


def _compared(base: Base, text: NeutralText, before: Tensor, head: _Head) -> tuple[float, float, float, float]:
    """Sums over the predicted tokens of a text: loss before, its difference, KL, equal argmax."""
    now = _Head.of(base.model)
    width, vocabulary = before.shape[-1], base.model.get_output_embeddings().weight.shape[0]
    after = _hidden(base, text.rows)
    old, new = (states[:, :-1].reshape(-1, width) for states in (before, after))
    targets = text.rows[:, 1:].reshape(-1, 1).to(base.device)
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(targets), step := max(1, _LOGITS // vocabulary)):
        part = slice(start, start + step)
        p, q = head(old[part]).log_softmax(-1), now(new[part]).log_softmax(-1)
        loss = -p.gather(1, targets[part]).double()
        difference = -q.gather(1, targets[part]).double() - loss
        same = p.argmax(-1) == q.argmax(-1)
        impossible = p.isneginf()  # a token that the base masks adds nothing
        kl = (p.exp() * (p - q).masked_fill_(impossible, 0.0)).sum(-1)
        sums += torch.stack([loss.sum(), difference.sum(), kl.double().sum(), same.sum().double()]).cpu()
    before_sum, difference_sum, kl_sum, same_sum = sums.tolist()
    return before_sum, difference_sum, kl_sum, same_sum


def _require_own_logits(base: Base, head: _Head, row: Tensor) -> None:
    """Refuse a head that does not reproduce the model's own logits: new families invent new multipliers."""
    own: Tensor = base.model(input_ids=row.to(base.device), use_cache=False).logits.float()
    error = (head(_hidden(base, row)) - own).norm() / own.norm()
    limit = _AUTOCAST if hasattr(base.model, "_original_forward") else _OTHER_HEAD
    if not error < limit and bool(own.isfinite().all()):
        raise ModelError(
            f"The logits of {type(base.model).__name__} differ by {float(error):.1%} from those that its output "
            "embedding makes of its last hidden state. Something else scales or shifts them, so side effects would be "
            "wrong. Measure them on a model of another family."
        )


def _answers(base: Base, measured_with: Yardstick) -> tuple[tuple[int, ...], ...]:
    """The greedy answer to each near miss, as far as it may matter: one token, or as many as the longest value has."""
    longest, asked = max(map(len, measured_with.values), default=0), measured_with.near_misses
    if not longest:
        return ()
    answers = _greedy(base, asked, range(len(asked)), 1)
    first_tokens = {value[0] for value in measured_with.values}
    promising = [row for row, answer in answers.items() if answer[0] in first_tokens]
    answers |= _greedy(base, asked, promising, longest)
    return tuple(answers[row] for row in range(len(asked)))


def _greedy(base: Base, asked: Sequence[EncodedFact], rows: Sequence[int], tokens: int) -> dict[int, tuple[int, ...]]:
    """Row -> the first tokens of its greedy answer, -1 after its end."""
    room = [EncodedFact(fact.id, (*fact.ids, *[0] * tokens), fact.prompt_length) for fact in asked]
    return {row: decoded.emitted for row, decoded in greedy(base, room, rows).items()}


def _near(before: Alone, answers: Sequence[tuple[int, ...]]) -> tuple[float | None, float | None]:
    """Shares of the near misses answered with a stored value: by the adapted model but not by the base; by the base."""
    if not answers:
        return None, None
    values = before.yardstick.values
    stored = [_value(answer, values) for answer in answers]
    known = [_value(answer, values) for answer in before.answers]
    learned = sum(value is not None and value != other for value, other in zip(stored, known, strict=True))
    return learned / len(answers), sum(value is not None for value in known) / len(answers)


def _value(answer: Sequence[int], values: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The longest stored value that an answer begins with."""
    return max((value for value in values if tuple(answer[: len(value)]) == value), key=len, default=None)
