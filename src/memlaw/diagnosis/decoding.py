"""Free-running greedy decoding, many facts side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memlaw.core.facts import EncodedFact
from memlaw.diagnosis.teacher_forced import check_numbers
from memlaw.model.base import Base

if TYPE_CHECKING:
    from memlaw.adapter.stack import AdapterStack

DECODING_ROWS = 256
"""Facts decoded side by side."""


@dataclass(frozen=True)
class Decoded:
    """Free-running greedy decoding of one fact."""

    emitted: tuple[int, ...]
    """As many tokens as the target has; -1 (not a token id) after the first at which `generate` stops."""
    nll: tuple[float, ...]
    """Loss of the target's tokens under key-value caching, up to and including the first wrong token."""


def greedy(
    base: Base, facts: Sequence[EncodedFact], rows: Iterable[int], *, side_by_side: int = DECODING_ROWS
) -> dict[int, Decoded]:
    """Row -> its free-running greedy decoding with a key-value cache.

    Only prompts of equal length share a batch: padding would change the positions and thereby the rounding. Tokens
    after the first at which the model's own `generate` stops are dropped, since users never see them.
    """
    return _greedy(base, facts, _by_prompt_length(facts, rows, side_by_side), copies=1)[0]


def greedy_by_each(base: Base, facts: Sequence[EncodedFact], stack: AdapterStack) -> list[dict[int, Decoded]]:
    """For each adapter of the stack: row -> its free-running greedy decoding, all adapters side by side.

    A step of decoding is bound by its many small operations, so K adapters take hardly longer than one.
    """
    batches = _by_prompt_length(facts, range(len(facts)), max(1, DECODING_ROWS // len(stack)))
    with stack.attached(base.model):
        return _greedy(base, facts, batches, copies=len(stack))


def _greedy(
    base: Base, facts: Sequence[EncodedFact], batches: Iterable[list[int]], *, copies: int
) -> list[dict[int, Decoded]]:
    """The decodings of each of `copies` equal blocks of rows."""
    from transformers import LogitsProcessorList

    decoded: list[dict[int, Decoded]] = [{} for _ in range(copies)]
    stops = base.stops  # of the model's own generation config, which the next line replaces
    with _plain_generation(base.model):
        for batch in batches:
            recorder = _RecordLosses([facts[row].target for row in batch] * copies)
            prompts = torch.tensor([facts[row].prompt for row in batch] * copies, device=base.device)
            output = base.model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=max(facts[row].length for row in batch),
                do_sample=False,
                logits_processor=LogitsProcessorList([recorder]),
            )
            emitted, losses = output[:, prompts.shape[1] :].tolist(), recorder.losses()
            for place, row in enumerate(batch * copies):
                copy = place // len(batch)
                decoded[copy][row] = _compare(facts[row], emitted[place], losses[place], stops)
    return decoded


class _RecordLosses:
    """A logits processor that changes nothing and records the loss of the target's token at each step."""

    def __init__(self, targets: Sequence[Sequence[int]]) -> None:
        self._targets = targets
        self._losses: list[Tensor] = []

    def __call__(self, _prefix: Tensor, scores: Tensor) -> Tensor:
        step = len(self._losses)
        due = [target[step] if step < len(target) else -100 for target in self._targets]
        self._losses.append(F.cross_entropy(scores.float(), torch.tensor(due, device=scores.device), reduction="none"))
        return scores

    def losses(self) -> list[list[float]]:
        """[rows][steps], in nats; zero after the end of a row's target."""
        rows: list[list[float]] = torch.stack(self._losses, 1).tolist()
        return rows


def _compare(fact: EncodedFact, emitted: Sequence[int], losses: Sequence[float], stops: Sequence[int]) -> Decoded:
    emitted = emitted[: fact.length]
    first_wrong = next((t for t, (a, b) in enumerate(zip(emitted, fact.target, strict=True)) if a != b), fact.length)
    compared = losses[: min(first_wrong + 1, fact.length)]
    check_numbers(fact.id, compared)
    return Decoded(_until_end(emitted, stops), tuple(compared))


def _by_prompt_length(facts: Sequence[EncodedFact], rows: Iterable[int], side_by_side: int) -> Iterator[list[int]]:
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(facts[row].prompt_length, []).append(row)
    for group in groups.values():
        group.sort(key=lambda row: facts[row].length)
        for start in range(0, len(group), side_by_side):
            yield group[start : start + side_by_side]


def _until_end(generated: Sequence[int], stops: Sequence[int]) -> tuple[int, ...]:
    end = next((at for at, token in enumerate(generated, 1) if token in stops), len(generated))
    return (*generated[:end], *[-1] * (len(generated) - end))


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Plain greedy decoding: with a model's saved repetition penalty or forced tokens, the output is not its argmax."""
    from transformers import GenerationConfig

    # A wrapper such as a plain PeftModel lets the model inside generate, with the settings of that one.
    generating = [module for module in model.modules() if "generation_config" in vars(module)]
    saved = [module.generation_config for module in generating]
    for module in generating:  # without an end token, every row runs to its full length
        module.generation_config = GenerationConfig(pad_token_id=0)
    try:
        yield
    finally:
        for module, config in zip(generating, saved, strict=True):
            module.generation_config = config
