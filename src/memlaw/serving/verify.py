"""Facts verified on a live server: asked side by side, kept as they come, judged as `memlaw recall` judges a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from memlaw.core.canonical import digest, to_dict
from memlaw.core.errors import ServerError, UnfinishedError
from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.core.precision import TOLERANCE
from memlaw.core.recall import RecallReport, RecordRecall, TokenRecall, is_ordered
from memlaw.data import check_context
from memlaw.data.spelling import decode, survives
from memlaw.diagnosis.verdicts import diagnose
from memlaw.serving.address import Address
from memlaw.serving.ask import Asked, ask, ask_again
from memlaw.serving.client import Client, Limits
from memlaw.serving.dialects.base import Dialect
from memlaw.serving.dialects.detect import speak
from memlaw.serving.journal import Journal
from memlaw.serving.preflight import Difference, Expectation, server_differences, tokenised_otherwise, tokens_difference
from memlaw.serving.question import Question
from memlaw.serving.settings import VerifyConfig

SAFETY = 2.0
"""A certificate needs this many times the largest difference observed between repeats, as in `memlaw recall`."""

UNSAID = "a precision that the server does not say"

_PRECISIONS = {"float32": "float16", "f32": "float16", "bf16": "bfloat16", "bfloat16": "bfloat16"}
"""What a server says of its weights -> whose tolerance is used: caches and activations are rarely kept in float32."""


@dataclass(frozen=True)
class Part:
    """One adapter of a mixture."""

    adapter: str
    """Its name in the server."""
    weight: float
    """The factor before what it adds."""


@dataclass(frozen=True)
class Where:
    """The server that was asked; null for what it does not say."""

    url: str
    """Without user name and password."""
    dialect: str
    """vllm, llama.cpp, sglang, ollama or openai."""
    version: str | None
    """Of the server."""
    model: str | None
    """The model it serves."""
    adapter: str | None
    """The adapter that was chosen by --adapter-name; of several, their sum in words."""
    precision: str | None
    """Of the model's weights."""
    mixture: tuple[Part, ...] | None = None
    """The adapters that every request added up; null for one adapter as it was trained."""


@dataclass(frozen=True)
class Stability:
    """How much a server's answers differ when each fact is asked several times."""

    repeats: int
    """How often each fact was asked."""
    concurrency: int
    """Requests under way at the same time."""
    flips: int
    """Facts for which greedy decoding was right and wrong at other positions in some repeat."""
    difference: float
    """Largest difference, in nats, between the losses of an ordered token in two repeats."""


@dataclass(frozen=True)
class Verification:
    """The verdict on a memory set where it is served."""

    report: RecallReport
    """As `memlaw recall` gives it; its `dtype` is the server's word for the precision of its weights."""
    where: Where
    differences: tuple[Difference, ...]
    """What the server does otherwise than `memlaw recall`."""
    unknown: dict[str, tuple[int, ...]]
    """Record id -> positions whose probability the server did not say; they count as p = 1/2."""
    stability: Stability | None
    """None if every fact was asked once."""


@dataclass(frozen=True)
class Facts:
    """The facts to ask for, and the tokenizer that encoded them."""

    memory_set: MemorySet
    encoded: tuple[EncodedFact, ...]
    tokenizer: Any
    stops: tuple[int, ...]
    """The ids at which generation stops."""


def token_texts(facts: Facts) -> dict[str, tuple[str, ...]]:
    """Record id -> its target tokens as text, one string per token: sensitive. Raises ModelError."""
    return {
        fact.id: tuple(decode(facts.tokenizer, fact.id, [token], special=False) for token in fact.target)
        for fact in facts.encoded
    }


Progress = Callable[[int, int], None]


def verify_facts(
    url: str, facts: Facts, config: VerifyConfig, *, resume: Path | None = None, on_progress: Progress | None = None
) -> Verification:
    """Ask the server at `url` for every fact, and judge what it says.

    Answers are appended to the file `resume`, and those it holds are not asked for again. Raises ConfigError;
    ServerError if the server cannot be understood; UnfinishedError if it stops answering; DataError for a fact longer
    than its context; JournalError for a file of other answers.
    """
    with _connected(url, config) as (client, server):
        if server.about.context is not None:
            check_context(facts.encoded, server.about.context)
        questions = _questions(facts, server)
        where = _where(client, server)
        journal = Journal(resume, _identity(where, facts))
        try:
            differences = _differences(server, questions, facts, config)
            _ask_all(client, _Asking(server, questions, facts.stops, config), journal, on_progress)
        finally:
            journal.close()
        return _judged(facts, where, differences, journal, config)


@contextmanager
def _connected(url: str, config: VerifyConfig) -> Iterator[tuple[Client, Dialect]]:
    limits = Limits(config.timeout, config.retries, config.concurrency)
    client = Client(Address.parse(url), limits)
    try:
        yield client, speak(client, config.dialect, config.adapters)
    finally:
        client.close()


def _questions(facts: Facts, server: Dialect) -> list[Question]:
    return [
        Question(fact, plain.prompt, () if server.by_ids else _pieces(facts.tokenizer, fact))
        for plain, fact in zip(facts.memory_set.facts, facts.encoded, strict=True)
    ]


def _pieces(tokenizer: Any, fact: EncodedFact) -> tuple[str, ...]:
    """The text that each target token adds to the text before it."""
    texts = [decode(tokenizer, fact.id, fact.ids[:end]) for end in range(fact.prompt_length, len(fact.ids) + 1)]
    return tuple(longer[len(shorter) :] for shorter, longer in pairwise(texts))


def _where(client: Client, server: Dialect) -> Where:
    about = server.about
    parts = tuple(Part(*one) for one in server.adapters.items()) if server.is_mixture else None
    return Where(
        str(client.address), server.name, about.version, about.model, server.adapter_name, about.precision, parts
    )


def _identity(where: Where, facts: Facts) -> str:
    """Names what is asked of whom, for the file of answers."""
    ids = [[fact.id, fact.ids, fact.prompt_length] for fact in facts.encoded]
    return digest({"where": to_dict(where), "facts": digest(ids)})


def _differences(
    server: Dialect, questions: Sequence[Question], facts: Facts, config: VerifyConfig
) -> tuple[Difference, ...]:
    chat = any(fact.end for fact in facts.memory_set.facts)
    found = list(server_differences(server, Expectation(facts.tokenizer, facts.stops, chat)))
    with ThreadPoolExecutor(config.concurrency) as pool:
        answers = list(pool.map(lambda question: tokenised_otherwise(server, question), questions))
    otherwise = [question.fact.id for question, answer in zip(questions, answers, strict=True) if answer]
    return (*found, *tokens_difference(otherwise, len(questions)))


@dataclass(frozen=True)
class _Asking:
    server: Dialect
    questions: Sequence[Question]
    stops: tuple[int, ...]
    config: VerifyConfig

    def one(self, turn: int, row: int) -> Asked:
        return (ask_again if turn else ask)(self.server, self.questions[row], self.stops)

    @property
    def turns(self) -> list[tuple[int, int]]:
        return [(turn, row) for turn in range(self.config.repeat) for row in range(len(self.questions))]


def _ask_all(client: Client, asking: _Asking, journal: Journal, on_progress: Progress | None) -> None:
    """Ask what the journal lacks. Raises UnfinishedError once the server fails; what it answered is kept."""
    turns = asking.turns
    missing = [place for place in turns if place not in journal.answers]
    failed: ServerError | None = None
    with ThreadPoolExecutor(asking.config.concurrency) as pool:
        places = {pool.submit(asking.one, *place): place for place in missing}
        try:
            for future in as_completed(places):
                failed = _take(future, places[future], journal) or failed
                if failed is not None:
                    _cancel(places, client)
                elif on_progress is not None:
                    on_progress(len(journal.answers), len(turns))
        except BaseException:  # Ctrl-C, or a full disk
            _cancel(places, client)
            raise
    if failed is not None:
        raise _unfinished(failed, journal, turns)


def _take(future: Future[Asked], place: tuple[int, int], journal: Journal) -> ServerError | None:
    """Keep what was answered; the error if it was not."""
    if future.cancelled():
        return None
    try:
        journal.add(*place, future.result())
    except ServerError as error:
        return error
    return None


def _cancel(futures: dict[Future[Asked], tuple[int, int]], client: Client) -> None:
    client.hurry()
    for future in futures:
        future.cancel()


def _unfinished(error: ServerError, journal: Journal, turns: Sequence[object]) -> UnfinishedError:
    kept = (
        "Nothing was kept: with --resume FILE, what is answered is"
        if journal.path is None
        else f"They are kept in {journal.path}: rerun the command to ask for the others"
    )
    return UnfinishedError(f"{error} {len(journal.answers)} of {len(turns)} questions were answered. {kept}.")


def _judged(
    facts: Facts, where: Where, differences: tuple[Difference, ...], journal: Journal, config: VerifyConfig
) -> Verification:
    rows = range(len(facts.encoded))
    repeats = [[journal.answers[turn, row] for turn in range(config.repeat)] for row in rows]
    stability = None if config.repeat == 1 else _stability(repeats, config)
    rounding = None if stability is None else stability.difference
    tokens = [
        replace(_worst(asked), faithful=survives(facts, fact))
        for fact, asked in zip(facts.encoded, repeats, strict=True)
    ]
    tolerance = max(_tolerance(where), SAFETY * (rounding or 0.0))
    report = diagnose(facts.encoded, tokens, tolerance=tolerance, dtype=where.precision or UNSAID, rounding=rounding)
    unknown = {facts.encoded[row].id: repeats[row][0].unknown for row in rows if repeats[row][0].unknown}
    items = tuple(_explained(item, unknown.get(item.id, ())) for item in report.items)
    return Verification(replace(report, items=items), where, differences, unknown, stability)


def _tolerance(where: Where) -> float:
    """Nats that a certificate needs there before anything was measured.

    The server itself was measured, its quantised weights among the rest: this is for what differs from one batch to the
    next, in the coarsest precision that servers compute in where nothing is said.
    """
    return TOLERANCE[_PRECISIONS.get((where.precision or "bfloat16").lower(), "float16")]


def _worst(asked: Sequence[Asked]) -> TokenRecall:
    """The measurements, with the output of the first repeat that was wrong."""
    first = asked[0].tokens
    if not all(first.decoded or ()):
        return first
    wrong = next((one.tokens for one in asked if not all(one.tokens.decoded or ())), first)
    return replace(first, decoded=wrong.decoded, edits=wrong.edits, ended=wrong.ended)


def _stability(repeats: Sequence[Sequence[Asked]], config: VerifyConfig) -> Stability:
    return Stability(
        repeats=config.repeat,
        concurrency=config.concurrency,
        flips=sum(len({one.tokens.decoded for one in asked}) > 1 for asked in repeats),
        difference=max((_difference(asked) for asked in repeats), default=0.0),
    )


def _difference(asked: Sequence[Asked]) -> float:
    """Largest difference between the losses of a token in two repeats, of those that are ordered in either."""
    columns = zip(*(one.tokens.nll for one in asked), strict=False)  # as far as all repeats were right
    return max((max(column) - min(column) for column in columns if is_ordered(min(column))), default=0.0)


def _explained(item: RecordRecall, unknown: Sequence[int]) -> RecordRecall:
    """The record, with a reason that claims no probability that the server did not give."""
    if item.exact and item.earliest_stubborn in unknown:
        why = f"Recalled verbatim, but the server does not say how certain position {item.earliest_stubborn} was."
    elif item.exact is False and item.first_failure in unknown and item.tokens.faithful is not False:
        why = f"Decoding goes wrong at position {item.first_failure}; the server does not say how likely its token was."
    else:
        return item
    return replace(item, why=why)
