"""What differs between the server and the facts, before they are asked for: in sentences, with a fixed word for each.

memlaw asks greedily and with its own tokens. Users do not: they send text, a template renders it, and the server's
defaults choose the tokens. Each difference here can lose facts that a certificate holds for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from memlaw.core.errors import listed
from memlaw.serving.dialects.base import About, Dialect
from memlaw.serving.question import Question

NEUTRAL: dict[str, tuple[float, ...]] = {
    "temperature": (0.0,),
    "repeat_penalty": (1.0,),
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "dry_multiplier": (0.0,),
    "xtc_probability": (0.0,),
    "mirostat": (0.0,),
}
"""Settings of a sampler -> values with which it emits the most probable token, unchanged."""


@dataclass(frozen=True)
class Difference:
    """Something that the server does otherwise than `memlaw recall`. Never contains target text."""

    code: str
    """What differs, such as sampler; stable across versions."""
    message: str
    """What it is, what it does to facts, and the way out."""


@dataclass(frozen=True)
class Expectation:
    """What the tokenizer and the facts expect of a server."""

    tokenizer: Any
    stops: Sequence[int]
    chat: bool
    """Whether facts come from chats, so that a template renders their prompts."""


def server_differences(server: Dialect, expected: Expectation) -> Iterator[Difference]:
    """What the server's own description says."""
    about = server.about
    yield from _adapter(about, server.adapter_name)
    if server.is_mixture:
        yield Difference(
            "mixture",
            f"Every request asks for {server.adapter_name}: a mixture. Each adapter acts on the prompts of all, and "
            "what it recalls alone says nothing about the sum. Ask for one at a time, or train one on all facts.",
        )
    yield from _sampler(about.sampler)
    yield from mark_differences(about, expected)
    if not server.tells_end:
        yield Difference(
            "end",
            "This server does not say how certain the end of an answer is, so facts that end with the end of sequence "
            "are not certified. --no-eos asks for their text alone; --verbatim counts what comes back.",
        )


def _adapter(about: About, wanted: str | None) -> Iterator[Difference]:
    if wanted is not None or not about.adapters:
        return
    names = listed(PurePath(one.name).name for one in about.adapters)
    applied = [one for one in about.adapters if one.scale]
    if not applied:
        yield Difference(
            "adapter",
            f"The server has adapters ({names}), and requests that name none are answered by the bare model, as here. "
            "Choose one with --adapter-name.",
        )
    elif len(applied) > 1:
        yield Difference(
            "adapter",
            f"The server applies {len(applied)} adapters at once ({names}). Each was trained alone, and facts rarely "
            "survive the sum: choose one with --adapter-name.",
        )
    elif applied[0].scale != 1.0:
        yield Difference(
            "adapter",
            f"The server applies {names} at a scale of {applied[0].scale:g} instead of 1, so that its facts are "
            "weaker, or overshoot. Set the scale to 1, or choose the adapter with --adapter-name.",
        )


def _sampler(settings: Mapping[str, float]) -> Iterator[Difference]:
    others = {
        name: value for name, value in settings.items() if name in NEUTRAL and round(value, 6) not in NEUTRAL[name]
    }
    if others:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in sorted(others.items()))
        yield Difference(
            "sampler",
            f"Requests that choose no sampler get {shown} here, which loses facts that greedy decoding recalls. memlaw "
            "asks greedily; your own requests must too (temperature 0, no penalties).",
        )


def mark_differences(about: About, expected: Expectation) -> Iterator[Difference]:
    """Another end of sequence, or, for facts from chats, another template."""
    tokenizer = expected.tokenizer
    ends = {str(tokenizer.convert_ids_to_tokens(stop)) for stop in expected.stops}
    if about.eos and ends and about.eos not in ends:
        yield Difference(
            "end",
            f"The server ends answers at {about.eos}, and the facts end with {' or '.join(sorted(ends))}: it may go on "
            "where a fact is over, or stop inside one. Set the end of sequence when you convert the model.",
        )
    own = getattr(tokenizer, "chat_template", None)
    if expected.chat and about.template and isinstance(own, str) and own.strip() != about.template.strip():
        yield Difference(
            "template",
            "The server has another chat template than the tokenizer, so chat requests show the model other prompts "
            "than those it was trained on. Start the server with the tokenizer's template.",
        )


def tokenised_otherwise(server: Dialect, question: Question) -> bool | None:
    """Whether the server makes other tokens of the prompt's text than memlaw does; None if it does not say."""
    tokens = server.tokenize(question.prompt)
    return None if tokens is None else tokens != question.fact.prompt


def tokens_difference(otherwise: Sequence[str], total: int) -> Iterator[Difference]:
    """The difference about facts whose prompts the server tokenises otherwise, by their ids."""
    if otherwise:
        yield Difference(
            "tokens",
            f"The server makes other tokens of the prompts of {len(otherwise)} of {total} facts ({listed(otherwise)}), "
            "so users who send text ask something else than memlaw, which sends tokens. Serve the tokenizer of the "
            "base, and check whether it adds a beginning of sequence.",
        )
