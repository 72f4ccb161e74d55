"""Did it stick? Teacher-forced probabilities and free-running greedy decoding of a memory set, as the model stands.

Whatever is attached to the base is measured: nothing, a stack in training, or a PEFT adapter. The verdict itself is
`memlaw.diagnosis`, which needs no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from memlaw.data import check_context
from memlaw.diagnosis import diagnose, not_a_number
from memlaw.errors import ModelError
from memlaw.model import Base, frozen
from memlaw.reach import frozen_head, reach_bounds
from memlaw.records import EncodedFact, MemorySet, RecallReport, TokenRecall, is_ordered

LOGITS_BYTES = 256 * 2**20
"""Memory for the logits of one teacher-forced batch."""

DECODING_ROWS = 256
"""Facts decoded side by side."""

DECODED_ALONE = 8
"""Facts of the thinnest positive margin that are decoded once more without company: a batch of one adds up in another
order than a large one."""

REACH_ELEMENTS = 1 << 26
"""Tokens x vocabulary up to which the reach of stubborn tokens is worked out; beyond, it is not known."""

TOLERANCE = {"float64": 1e-6, "float32": 1e-5, "float16": 4e-3, "bfloat16": 2.5e-2}
"""Least margin in nats that a certificate needs, by precision."""

SAFETY = 2.0
"""A certificate also needs this many times the largest difference seen, on this model and these facts, between
teacher-forced and key-value-cached losses: other batch sizes and other machines round differently again."""


@dataclass(frozen=True)
class _Decoded:
    """Free-running greedy decoding of one fact."""

    emitted: tuple[int, ...]
    """As many tokens as the target has; -1, which is no token, behind the first end of sequence."""
    nll: tuple[float, ...]
    """Cached loss of the target's token, up to and including the first position where another was emitted."""


def measure(base: Base, facts: Sequence[EncodedFact], *, decode: bool, explain: bool = False) -> RecallReport:
    """Per-token diagnosis of `facts` under the base and whatever is attached to it.

    Without `decode` nothing is said about verbatim recall: `acc_em`, `acc_token`, `exact` and `certified` are None.
    `explain` costs more: it finds out which stubborn tokens no adapter can order, which failures one token put right
    would have avoided, and how the thinnest certificates fare alone in their batch.
    Raises DataError for a fact longer than the context, and for a loss that is not a number.
    """
    if base.context is not None:
        check_context(facts, base.context)
    with frozen(base.model), torch.no_grad():
        measured = _teacher_forced(base, facts)
        rounding = None
        if decode:
            decoded = _greedy(base, facts, range(len(facts)))
            rounding = _rounding(measured, decoded)
            measured = [_compared(base, fact, measured[row], decoded[row]) for row, fact in enumerate(facts)]
            if explain:
                alone = _greedy(base, facts, _thinnest(measured), side_by_side=1)
                rounding = max(rounding, _rounding(measured, alone))
                measured = _mended(base, facts, measured)
        if explain:
            measured = _judged_by_reach(base, facts, measured)
    tolerance = max(TOLERANCE[base.dtype], SAFETY * (rounding or 0.0))
    return diagnose(facts, measured, tolerance=tolerance, dtype=base.dtype, rounding=rounding)


def token_texts(base: Base, facts: Sequence[EncodedFact]) -> dict[str, tuple[str, ...]]:
    """Record id -> its target tokens as text, one string a token: sensitive. Raises ModelError.

    A token that holds part of a character is shown as a replacement mark.
    """
    return {fact.id: tuple(_text(base, fact.id, [token]) for token in fact.target) for fact in facts}


def unfaithful(base: Base, memory_set: MemorySet, facts: Sequence[EncodedFact]) -> tuple[str, ...]:
    """Ids of the facts whose target tokens do not spell their target text, white space aside: even when every token
    comes back the text does not. Raises ModelError for a tokenizer that cannot decode its own ids."""
    return tuple(
        fact.id
        for fact, encoded in zip(memory_set.facts, facts, strict=True)
        if fact.target_ids is None and _letters(_text(base, fact.id, encoded.target)) != _letters(fact.target)
    )


def _letters(text: str) -> str:
    return "".join(text.split())


def _text(base: Base, name: str, ids: Sequence[int]) -> str:
    try:
        return str(base.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    except Exception as error:  # whatever a tokenizer's own code raises
        raise ModelError(
            f"The tokenizer of {base.name} cannot turn its own ids of record {name!r} back into text "
            f"({type(error).__name__}), so what the model emits could not be read. Save the tokenizer again with the "
            "library that made it, or take the one the model was trained with."
        ) from None


# --- teacher-forced --------------------------------------------------------------------------------------------------


def _teacher_forced(base: Base, facts: Sequence[EncodedFact]) -> list[TokenRecall]:
    """Loss, top-1 hit and rival of every target token, by the model's own forward and logits; in the facts' order."""
    vocabulary = base.model.get_output_embeddings().weight.shape[0]
    measured: dict[int, TokenRecall] = {}
    for batch in _by_length(facts, limit=max(1, LOGITS_BYTES // (4 * vocabulary))):
        time = max(len(facts[row].ids) for row in batch)
        # Right padding needs no mask: under causal attention no token sees what follows it.
        ids = torch.zeros(len(batch), time, dtype=torch.long)
        for place, row in enumerate(batch):
            ids[place, : len(facts[row].ids)] = torch.tensor(facts[row].ids)
        logits: Tensor = base.model(input_ids=ids.to(base.device), use_cache=False).logits
        for place, row in enumerate(batch):
            fact = facts[row]
            measured[row] = _scores(fact, logits[place, fact.prompt_length - 1 : len(fact.ids) - 1])
    return [measured[row] for row in range(len(facts))]


def _scores(fact: EncodedFact, logits: Tensor) -> TokenRecall:
    """From the logits [length, vocab] that predict the target."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = torch.tensor(fact.target, device=logits.device)
    nll = F.cross_entropy(logits, target, reduction="none")
    _check_numbers(fact.id, nll.tolist())
    others = logits.scatter(1, target[:, None], -torch.inf).amax(1)
    return TokenRecall(
        nll=tuple(nll.tolist()),
        top1=tuple((logits.argmax(-1) == target).tolist()),
        rival=tuple((logits.logsumexp(-1) - others).tolist()),
    )


def _check_numbers(name: str, losses: Iterable[float]) -> None:
    for position, nll in enumerate(losses):
        if not math.isfinite(nll):
            raise not_a_number(name, position, nll)


def _by_length(facts: Sequence[EncodedFact], *, limit: int) -> Iterator[list[int]]:
    """Rows in batches of similar length, with at most `limit` padded tokens (or one row)."""
    batch: list[int] = []
    for row in sorted(range(len(facts)), key=lambda row: len(facts[row].ids)):
        if batch and (len(batch) + 1) * len(facts[row].ids) > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


# --- decoding --------------------------------------------------------------------------------------------------------


def _greedy(
    base: Base, facts: Sequence[EncodedFact], rows: Iterable[int], *, side_by_side: int = DECODING_ROWS
) -> dict[int, _Decoded]:
    """Row -> its free-running greedy decoding with a key-value cache.

    Only prompts of equal length share a batch, so that no row is padded. Tokens after the first end-of-sequence token
    do not exist for a user.
    """
    from transformers import LogitsProcessorList

    decoded: dict[int, _Decoded] = {}
    with _plain_generation(base.model):
        for batch in _by_prompt_length(facts, rows, side_by_side):
            watch = _Watch([facts[row].target for row in batch])
            prompts = torch.tensor([facts[row].prompt for row in batch], device=base.device)
            output = base.model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=max(facts[row].length for row in batch),
                do_sample=False,
                logits_processor=LogitsProcessorList([watch]),
            )
            losses = watch.losses()
            for place, row in enumerate(batch):
                emitted = output[place, prompts.shape[1] :].tolist()
                decoded[row] = _decoded(facts[row], emitted, losses[place], base.tokenizer.eos_token_id)
    return decoded


class _Watch:
    """A logits processor that changes nothing and keeps the cached loss of the target's token at each step."""

    def __init__(self, targets: Sequence[Sequence[int]]) -> None:
        self._targets = targets
        self._losses: list[Tensor] = []

    def __call__(self, _prefix: Tensor, scores: Tensor) -> Tensor:
        step = len(self._losses)
        due = [target[step] if step < len(target) else -100 for target in self._targets]
        self._losses.append(F.cross_entropy(scores.float(), torch.tensor(due, device=scores.device), reduction="none"))
        return scores

    def losses(self) -> list[list[float]]:
        """[rows][steps], zero behind the end of a row's target."""
        rows: list[list[float]] = torch.stack(self._losses, 1).tolist()
        return rows


def _decoded(fact: EncodedFact, emitted: Sequence[int], losses: Sequence[float], eos: int | None) -> _Decoded:
    emitted = emitted[: fact.length]
    first_wrong = next((t for t, (a, b) in enumerate(zip(emitted, fact.target, strict=True)) if a != b), fact.length)
    compared = losses[: min(first_wrong + 1, fact.length)]
    _check_numbers(fact.id, compared)
    return _Decoded(_until_end(emitted, eos), tuple(compared))


def _by_prompt_length(facts: Sequence[EncodedFact], rows: Iterable[int], side_by_side: int) -> Iterator[list[int]]:
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(facts[row].prompt_length, []).append(row)
    for group in groups.values():
        group.sort(key=lambda row: facts[row].length)
        for start in range(0, len(group), side_by_side):
            yield group[start : start + side_by_side]


def _until_end(generated: Sequence[int], eos: int | None) -> tuple[int, ...]:
    if eos not in generated:
        return tuple(generated)
    end = generated.index(eos) + 1
    return (*generated[:end], *[-1] * (len(generated) - end))


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Greedy decoding proper: a model's saved repetition penalty or forced tokens would not be its argmax."""
    from transformers import GenerationConfig

    saved = model.generation_config
    model.generation_config = GenerationConfig(pad_token_id=0)  # no end token: every row runs to its full length
    try:
        yield
    finally:
        model.generation_config = saved


# --- both together ---------------------------------------------------------------------------------------------------


def _rounding(measured: Sequence[TokenRecall], decoded: dict[int, _Decoded]) -> float:
    """Largest difference, in nats, between the teacher-forced and the cached loss of a token that either side calls
    ordered: only there can rounding make a certificate wrong."""
    return max(
        (
            abs(forced - cached)
            for row, found in decoded.items()
            for forced, cached in zip(measured[row].nll, found.nll, strict=False)
            if is_ordered(min(forced, cached))
        ),
        default=0.0,
    )


def _compared(base: Base, fact: EncodedFact, tokens: TokenRecall, found: _Decoded) -> TokenRecall:
    """`tokens` with what decoding made of the target."""
    spelled = [token for token in found.emitted if token != -1]
    return replace(
        tokens,
        decoded=tuple(a == b for a, b in zip(found.emitted, fact.target, strict=True)),
        edits=Levenshtein.distance(spelled, fact.target),
        ended=_ended(fact, found.emitted, base.tokenizer.eos_token_id),
    )


def _ended(fact: EncodedFact, emitted: Sequence[int], eos: int | None) -> Literal["early", "late", "inside"] | None:
    for wrong, due in zip(emitted, fact.target, strict=True):
        if wrong != due:
            return "inside" if wrong == -1 else "early" if wrong == eos else "late" if due == eos else None
    return None


def _thinnest(measured: Sequence[TokenRecall]) -> list[int]:
    """Rows of the records that a wrong tolerance would certify wrongly first."""
    likely = [row for row, tokens in enumerate(measured) if all(tokens.decoded or ()) and is_ordered(max(tokens.nll))]
    return sorted(likely, key=lambda row: -max(measured[row].nll))[:DECODED_ALONE]


def _mended(base: Base, facts: Sequence[EncodedFact], measured: Sequence[TokenRecall]) -> list[TokenRecall]:
    """`measured` with the answer to: would one token put right have been enough?

    Under the true prefix greedy decoding follows the argmax, so no record with a second top-1 miss can be mended; the
    others are decoded again behind their first wrong token.
    """
    again: dict[int, EncodedFact] = {}
    answers: dict[int, bool] = {}
    for row, (fact, tokens) in enumerate(zip(facts, measured, strict=True)):
        if tokens.decoded is None or all(tokens.decoded):
            continue
        behind = tokens.decoded.index(False) + 1
        answers[row] = tokens.ended != "inside" and all(tokens.top1[behind:])
        if answers[row] and behind < fact.length:
            again[row] = replace(fact, prompt_length=fact.prompt_length + behind)
    found = _greedy(base, list(again.values()), range(len(again)))
    for place, (row, rest) in enumerate(again.items()):
        answers[row] = found[place].emitted == rest.target
    return [replace(tokens, mended=answers.get(row)) for row, tokens in enumerate(measured)]


def _judged_by_reach(base: Base, facts: Sequence[EncodedFact], measured: Sequence[TokenRecall]) -> list[TokenRecall]:
    """`measured` with the positions of stubborn tokens that no adapter below the head can order, where it is known.

    A token that is ordered anywhere in these facts is within reach, and needs no search.
    """
    stubborn: set[int] = set()
    ordered: set[int] = set()
    for fact, tokens in zip(facts, measured, strict=True):
        for token, nll in zip(fact.target, tokens.nll, strict=True):
            (ordered if is_ordered(nll) else stubborn).add(token)
    asked = sorted(stubborn - ordered)
    beyond = _beyond_reach(base, asked)
    if beyond is None:
        return list(measured)
    return [
        replace(
            tokens,
            unreachable=tuple(
                t for t, nll in enumerate(tokens.nll) if not is_ordered(nll) and fact.target[t] in beyond
            ),
        )
        for fact, tokens in zip(facts, measured, strict=True)
    ]


def _beyond_reach(base: Base, tokens: Sequence[int]) -> set[int] | None:
    """Those of `tokens` that provably have p <= 1/2 at every hidden state; None where that cannot be known."""
    if not tokens:
        return set()
    try:
        head = frozen_head(base.model)
    except ModelError:  # a head that is not the frozen one: adapted too, or of an unknown kind
        return None
    if len(tokens) * len(head.weight) > REACH_ELEMENTS:
        return None
    bounds = reach_bounds(head, list(tokens))
    return set(bounds.tokens[bounds.upper <= 0.5].tolist())
