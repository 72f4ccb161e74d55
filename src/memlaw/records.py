"""What travels between the parts of memlaw: frozen records with their units, and their JSON.

Losses are in nats per target token, lengths in target tokens, positions count from 0 within a target, shares run
from 0 to 1. No record holds a tensor: this module and everything that only reads records runs without torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from memlaw.errors import ConfigError

LN2 = math.log(2.0)
"""L_crit: a token with nll < ln 2 has p > 1/2, so it is the greedy choice (arXiv 2605.30260)."""


def is_ordered(nll: float) -> bool:
    """nll < ln 2, strictly: the token holds more than half of the probability, so no other can hold as much."""
    return nll < LN2


Method = Literal["sft", "ot", "sw", "curriculum"]
Schedule = Literal["linear", "constant"]
Rule = Literal["zero", "fallback"]
Until = Literal["budget", "recalled"]
Init = Literal["peft", "paper"]
Scaling = Literal["constant", "lora", "rslora"]

METHODS: tuple[str, ...] = get_args(Method)

CURRICULUM_RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of the samples that the curriculum exposes one after the other (arXiv 2605.30260)."""


def canonical_json(value: Any) -> str:
    """The one spelling of `value`: sorted keys, no spaces, no NaN. Hashes and journals are made of it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256, in hexadecimal, of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


# --- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """One pair (q, a): shown `prompt`, the model must emit `target`, character by character."""

    prompt: str
    target: str
    id: str
    line: int | None = None
    """Line, item or row (from 1) of its source, for messages; not part of its identity."""
    target_ids: tuple[int, ...] | None = None
    """Exact target tokens, where the target was made of tokens (stress test) and its text may not give them back."""


@dataclass(frozen=True)
class MemorySet:
    """D = {(q_i, a_i)} with unique prompts, in the order in which prefixes of it are taken."""

    facts: tuple[Fact, ...]
    eos: bool
    """Whether the end-of-sequence token is the last target token of every fact."""
    source: str
    """Where it came from, in a person's words; not part of the fingerprint."""
    warnings: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is to be remembered: prompts, targets, ids, order and the end-of-sequence rule."""
        rows = [[f.id, f.prompt, f.target, f.target_ids] for f in self.facts]
        return digest({"eos": self.eos, "facts": rows})


@dataclass(frozen=True)
class EncodedFact:
    """A fact as the model sees it: `ids` = prompt tokens, then target tokens, end of sequence among them if stored."""

    id: str
    ids: tuple[int, ...]
    prompt_length: int

    @property
    def target(self) -> tuple[int, ...]:
        return self.ids[self.prompt_length :]

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.ids[: self.prompt_length]

    @property
    def length(self) -> int:
        """Target tokens."""
        return len(self.ids) - self.prompt_length


# --- training and cells ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything about one training run that changes its outcome: one home for each setting, its default and its range.

    Raises ConfigError for a value out of range.
    """

    method: Method = "sft"
    """Token weights of the loss (MemFT): sft = all target tokens; ot = those with p <= 1/2; sw = those at and behind
    each record's first error; curriculum = ot, on more and more of the records."""
    rule: Rule = "zero"
    """What ot does when no token is left under the threshold: zero gradient, or fall back to the sft loss."""
    steps: int = 1000
    """Optimizer steps: the whole budget, or the upper limit under until="recalled"."""
    until: Until = "budget"
    """budget: exactly `steps` (law cells); recalled: stop once every target token is ordered with `margin`."""
    margin: float = 0.0
    """Nats under ln 2 that every token must reach; ot keeps training a token until it does."""
    position: float = 0.0
    """lambda: the n disordered tokens of a record get weights exp(-lambda * rank / (n - 1)); 0 = all alike."""
    focus: float = 0.0
    """All tokens of a record with n disordered ones get the weight n^-focus (memlaw's own); 0 = all records alike."""
    boundaries: tuple[int, ...] = (20, 40, 60, 80, 300)
    """Of the curriculum: epochs until which 20, 40, 60, 80 and 100% of the records are exposed. `steps` is the budget,
    so they count by their proportions: the last epoch ends with the last step."""
    learning_rate: float = 2e-2
    """AdamW step size at the first step."""
    schedule: Schedule = "linear"
    """linear: to 0 over `steps`, no warm-up (the published recipe); constant."""
    batch_size: int = 0
    """Records per optimizer step, in a seeded order; 0 = all of them."""
    clip: float = 1.0
    """Largest gradient norm of one adapter; 0 = no clipping."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    dropout: float = 0.0
    """Dropout on the adapter's input."""
    scale: float = 4.0
    """The factor before x A B, up to `scaling`."""
    scaling: Scaling = "constant"
    """constant: the factor is `scale` at every rank, so that rank is the only change of a sweep; lora: scale / rank and
    rslora: scale / sqrt(rank), where `scale` is what PEFT calls lora_alpha."""
    init: Init = "peft"
    """A ~ U(-bound, bound): peft 1/sqrt(d_in), paper 1/sqrt(rank). B is zero."""
    seed: int = 42
    """Of the initial weights, the data order and dropout."""

    def factor(self, rank: int) -> float:
        """What x A B is multiplied by in an adapter of this rank."""
        return self.scale / {"constant": 1.0, "lora": rank, "rslora": math.sqrt(rank)}[self.scaling]

    def __post_init__(self) -> None:
        if isinstance(self.boundaries, list):  # as JSON and YAML have it
            object.__setattr__(self, "boundaries", tuple(self.boundaries))
        for name, (allowed, wanted) in _TRAIN_SETTINGS.items():
            value = getattr(self, name)
            try:
                fits = not isinstance(value, bool) and allowed(value)
            except TypeError:  # not a number at all
                fits = False
            if not fits:
                raise ConfigError(f"Setting {name} is {value!r}: choose {wanted}.")


def _one_of(kind: Any) -> tuple[Callable[[Any], bool], str]:
    known = get_args(kind)
    return known.__contains__, f"{', '.join(known[:-1])} or {known[-1]}"


def _whole(value: Any, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and low <= value <= high


def _rising(values: Any) -> bool:
    return isinstance(values, tuple) and all(_whole(b, a + 1) for a, b in itertools.pairwise((0, *values)))


# Comparisons with infinity keep NaN out too.
_TRAIN_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "method": _one_of(Method),
    "rule": _one_of(Rule),
    "steps": (lambda steps: _whole(steps, 1), "a whole number from 1 up"),
    "until": _one_of(Until),
    "margin": (lambda nats: 0 <= nats < LN2, "nats from 0 to below ln 2 (0.693): no loss can be further under it"),
    "position": (lambda decay: 0 <= decay < math.inf, "a number above 0 (published: 2), or 0 to turn it off"),
    "focus": (lambda power: 0 <= power < math.inf, "a number above 0, or 0 to turn it off"),
    "boundaries": (
        lambda ends: _rising(ends) and len(ends) == len(CURRICULUM_RATIOS),
        f"{len(CURRICULUM_RATIOS)} rising whole numbers of epochs, one for each share of the curriculum, such as "
        "20, 40, 60, 80, 300",
    ),
    "learning_rate": (lambda rate: 0 < rate < math.inf, "a number above 0"),
    "schedule": _one_of(Schedule),
    "batch_size": (lambda rows: _whole(rows, 0), "a whole number of records from 1 up, or 0 for all of them"),
    "clip": (lambda norm: 0 <= norm < math.inf, "a gradient norm above 0, or 0 for no clipping"),
    "weight_decay": (lambda decay: 0 <= decay < math.inf, "a number from 0 up"),
    "dropout": (lambda share: 0 <= share < 1, "a share from 0 to below 1"),
    "scale": (lambda scale: 0 < scale < math.inf, "a number above 0"),
    "scaling": _one_of(Scaling),
    "init": _one_of(Init),
    "seed": (lambda seed: _whole(seed, 0, 2**32 - 1), "a whole number from 0 to 4294967295"),
}
"""Setting -> which values are allowed, and what to choose in a person's words."""


UNTIL_RECALLED = TrainConfig(method="ot", until="recalled", margin=0.1, steps=2000, batch_size=16)
"""How an adapter is trained that is to be used: the steps go to tokens not yet recalled, and it stops when all are.
The step size has to fall for the last tokens to settle, so more steps take longer; docs/log.md has the figures."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a training is run: what it costs in time and memory, never what it computes. Raises ConfigError."""

    compiled: bool = False
    """Compile the layers above the last adapted one (`torch.compile`), for trainings of thousands of steps."""
    evict_prefix: bool = False
    """Keep the layers below the first adapted one in main memory, off the accelerator."""
    prefix_cache: str | None = None
    """A directory that keeps what those layers make of the facts, for the next training on them."""
    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints of a stack in training."""

    def __post_init__(self) -> None:
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise ConfigError(f"Setting checkpoint_minutes is {self.checkpoint_minutes!r}: choose minutes from 0 up.")


ALGORITHM_VERSION = 2
"""Raised when a change of the code changes the result of a cell; part of every cell's key."""


@dataclass(frozen=True)
class Cell:
    """One point of a sweep and everything that determines its result."""

    model: str
    """Fingerprint of the base model's weights."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    data: str
    """Fingerprint of the memory set that `length` is a prefix of."""
    placement: str
    rank: int
    length: int
    """Target tokens trained: this many of one long target, or the longest prefix of whole records that fits."""
    train: TrainConfig
    dtype: str
    algorithm: int = ALGORITHM_VERSION
    libraries: str = ""
    """Those that compute, with their versions."""
    device: str = ""
    """The kind of device that computes: cpu, cuda."""

    @property
    def key(self) -> str:
        """Identity: SHA-256 over every field. A finished key is never trained again and never counted twice."""
        return digest(to_dict(self))


CellStatus = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True)
class CellResult:
    """What was measured on one cell. Losses are means over all target tokens; see RecallReport for the shares."""

    cell: Cell
    status: CellStatus
    steps: int
    """Optimizer steps taken (the step of divergence, for a diverged cell)."""
    parameters: int
    """Effective parameters: all adapter weights of this rank and placement."""
    loss_init: float | None
    """This and the numbers below are None where the cell did not get that far."""
    loss_final: float | None
    delta_loss: float | None
    acc_token: float | None
    acc_em: float | None
    ordered: int | None
    certified: int | None
    records: int
    message: str = ""
    """Why the cell did not finish."""
    loss_memoryless: float | None = None
    """L_init' (nats): mean loss of the best predictor that remembers nothing of the text but which tokens occur."""
    certified_tokens: int | None = None
    """Target tokens of the certified records."""


# --- recall ----------------------------------------------------------------------------------------------------------


Reason = Literal[
    "stubborn", "unreachable", "stopped_early", "ran_on", "after_end", "near_tie", "unproven", "too_thin"
]  # fmt: skip
"""Why a record is not certified, in a word; `memlaw.diagnosis.reasons` has the sentence of each."""


@dataclass(frozen=True)
class TokenRecall:
    """What was measured on one record. Tuples of numbers and flags have one entry a target token.

    `nll[t]` = -log p(a_t | q, a_<t) in nats, teacher-forced; `top1[t]` whether a_t was the argmax there;
    `decoded[t]` whether free-running greedy decoding emitted a_t at t (None: not decoded).
    """

    nll: tuple[float, ...]
    top1: tuple[bool, ...]
    decoded: tuple[bool, ...] | None = None
    rival: tuple[float, ...] | None = None
    """-log p of the most probable token other than a_t: the runner-up where `top1`, else the winner."""
    edits: int | None = None
    """Edit distance, in tokens, between the target and what greedy decoding emitted in its place."""
    mended: bool | None = None
    """Whether greedy decoding went right to the end once its first wrong token was replaced (None: not known)."""
    ended: Literal["early", "late", "inside"] | None = None
    """What end of sequence had to do with the first failure: emitted too early, not emitted when due, or part of the
    target before its end, so that nothing behind it can ever be emitted."""
    unreachable: tuple[int, ...] | None = None
    """Positions of the stubborn tokens that no adapter can give p > 1/2 (`memlaw.reach`); None: not known."""


@dataclass(frozen=True)
class RecordRecall:
    """Verdict on one fact. Positions count target tokens from 0; None where there is no such position."""

    id: str
    length: int
    exact: bool | None
    """Greedy decoding reproduced the whole target (None: not decoded)."""
    certified: bool | None
    """margin > tolerance and exact; None where decoding was not asked for, so nothing can be certified."""
    margin: float
    """ln 2 - max_t nll_t, in nats: positive means every token is ordered."""
    earliest_stubborn: int | None
    """First position with p <= 1/2."""
    first_failure: int | None
    """First wrong token of free-running greedy decoding (i*)."""
    edits: int | None
    """Edit distance, in tokens, between the target and what was decoded (None: not decoded)."""
    one_token_short: bool | None
    """Decoding went wrong, and one token put right gave back all the rest; None: not decoded, or not known."""
    log_p: float
    """Log, in nats, of the probability that sampling at temperature 1 emits the whole target: -sum_t nll_t."""
    expected_tokens: float = field(compare=False)
    """Tokens that sampling at temperature 1 gets right before its first error, on average:
    sum_t prod_{s<=t} p_s, at most `length`."""
    reason: Reason | None
    """Why it is not certified, or would not be; None where nothing is wrong."""
    why: str | None = field(compare=False)
    """The reason as a sentence, without any text of the target."""
    tokens: TokenRecall


@dataclass(frozen=True)
class RecallReport:
    """Did it stick? Shares over tokens and records of one memory set (definitions: arXiv 2605.30260, sections 3-4)."""

    records: int
    tokens: int
    acc_em: float | None
    """Share of records reproduced exactly by greedy decoding; None if not decoded."""
    acc_token: float | None
    """Share of positions greedy decoding gets right, position by position; None if not decoded."""
    certified: int | None
    """Records certified; None if not decoded."""
    ordered: int
    """Tokens with p > 1/2."""
    min_margin: float
    """Smallest record margin, nats."""
    mean_loss: float
    """Mean nll over all target tokens."""
    tolerance: float
    """Nats of margin a certificate needs in this precision, on this model and these records."""
    rounding: float | None
    """Largest difference seen, in nats, between the teacher-forced and the cached loss of a token that either side
    calls ordered; None if nothing was decoded."""
    dtype: str
    items: tuple[RecordRecall, ...] = field(repr=False)


# --- law -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A fitted number with its doubt: standard error and 95% interval, None where the cells cannot tell them."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class LawPoint:
    """One measured cell as the law sees it. final_loss and loss_init may be unknown (None) in hand-made tables."""

    rank: float
    length: float
    delta_loss: float
    final_loss: float | None = None
    parameters: float | None = None
    seed: int | None = None
    """Tells replicates apart: cells of one rank and length that differ in nothing but chance."""
    loss_memoryless: float | None = None
    """L_init': see CellResult."""

    @property
    def loss_init(self) -> float | None:
        return None if self.final_loss is None else self.final_loss + self.delta_loss


# --- JSON ------------------------------------------------------------------------------------------------------------


def to_dict(record: Any) -> dict[str, Any]:
    """A record as plain JSON values (tuples become lists)."""
    plain: dict[str, Any] = json.loads(canonical_json(dataclasses.asdict(record)))
    return plain


def cell_from_dict(values: dict[str, Any]) -> Cell:
    """Inverse of `to_dict` for a cell."""
    return Cell(**{**values, "train": TrainConfig(**values["train"])})


def result_from_dict(values: dict[str, Any]) -> CellResult:
    """Inverse of `to_dict` for a cell's result."""
    return CellResult(**{**values, "cell": cell_from_dict(values["cell"])})
