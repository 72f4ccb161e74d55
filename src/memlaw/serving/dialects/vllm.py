"""vLLM: `/v1/completions` with its own parameters (vllm/entrypoints/openai/completion/protocol.py).

Prompts are token ids and tokens come back as `token_id:N`; an adapter is a model of its own name. What a server does by
default comes from the model's generation_config.json, so penalties are turned off explicitly. Log-probabilities are
those of the model's logits before penalties, masks and temperature (`--logprobs-mode raw_logprobs`, its default).

`prompt_logprobs` of an adapter are wrong or worse (vllm-project/vllm issues 16668, 29955 and 51594): a change of the
head is left out of them, and on a CPU the request ends the whole server. So they are asked for only of a server
without adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memlaw.core.errors import ServerError
from memlaw.serving.dialects.base import TOP, About, Dialect, Loaded, chosen
from memlaw.serving.question import Completion, Question, Said, Scored, Token, rival_of
from memlaw.serving.values import IMPOSSIBLE, checked, entry, log_probability, optional, token_ids

_MARK = "token_id:"


class VLLM(Dialect):
    """vLLM's OpenAI-compatible server."""

    name = "vllm"

    def ask_about(self) -> About:
        models = entry(self.client.get("/v1/models"), "data", list)
        names = [entry(one, "id", str) for one in models]
        adapters = [entry(one, "id", str) for one in models if optional(one, "parent", str) is not None]
        bare = [name for name in names if name not in adapters]
        self.model = chosen(self.adapter_name, names, "model or adapter") or next(iter(bare or names), "")
        lengths = [optional(one, "max_model_len", int) for one in models]
        return About(
            model=next(iter(bare), None),
            version=optional(self.client.get("/version"), "version", str),
            context=next((length for length in lengths if length is not None), None),
            adapters=tuple(Loaded(name, None) for name in adapters),
        )

    def _choice(self, ids: tuple[int, ...], **options: Any) -> dict[str, Any]:
        asked = {
            "model": self.model,
            "prompt": list(ids),
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "return_token_ids": True,  # nosec B105 - no password
            "return_tokens_as_token_ids": True,  # nosec B105
        }
        reply = self.client.post("/v1/completions", asked | options)
        return entry(entry(reply, "choices", list), 0, dict)

    def _completion(self, ids: tuple[int, ...], length: int, **options: Any) -> Completion:
        choice = self._choice(ids, max_tokens=length, logprobs=TOP, **options)
        logprobs = entry(choice, "logprobs", dict)
        values, tops = entry(logprobs, "token_logprobs", list), entry(logprobs, "top_logprobs", list)
        said = tuple(
            Said(token, None if value is None else log_probability(value), _others(top))
            for token, value, top in zip(_tokens(choice, logprobs), values, tops, strict=False)
        )
        return Completion(said, entry(choice, "finish_reason", str) == "stop")

    def complete(self, question: Question, known: int, length: int) -> Completion:
        return self._completion(question.prefix(known), length)

    def force(self, question: Question, at: int) -> float | None:
        token = question.fact.target[at]
        completion = self._completion(question.prefix(at), 1, allowed_token_ids=[token])
        said = next((said for said in completion.said if said.token == token), None)
        if said is None or _masked(said.others, token):
            return None
        return said.logprob

    def score(self, question: Question, start: int) -> list[Scored] | None:
        ids = question.fact.ids
        context = self.about.context
        if self.about.adapters or (context is not None and len(ids) >= context):  # one token is always generated
            return None
        choice = self._choice(ids, max_tokens=1, prompt_logprobs=TOP)
        places = optional(choice, "prompt_logprobs", list)
        if places is None:  # a model or an engine that has none
            return None
        if len(places) != len(ids):
            raise ServerError("The server gave log-probabilities of another prompt than the one it was asked for.")
        first = question.fact.prompt_length + start
        return [_scored(place, token) for place, token in zip(places[first:], ids[first:], strict=True)]

    def tokenize(self, text: str) -> tuple[int, ...] | None:
        asked = {"model": self.model, "prompt": text, "add_special_tokens": True}
        reply = self.client.find("/tokenize", asked)
        return None if reply is None else token_ids(entry(reply, "tokens", list), "tokens")


def _tokens(choice: dict[str, Any], logprobs: dict[str, Any]) -> tuple[int, ...]:
    """The ids generated: of their own key, or, from older servers, of the names of the tokens."""
    ids = optional(choice, "token_ids", list)
    if ids is not None:
        return token_ids(ids, "token_ids")
    return tuple(_id(name) for name in entry(logprobs, "tokens", list))


def _id(name: Any) -> int:
    number = checked(name, "tokens", str).removeprefix(_MARK)
    if not (number.isascii() and number.isdigit() and len(number) < 20):
        raise ServerError("The server names tokens otherwise than as token_id:N, so they cannot be told apart.")
    return int(number)


def _others(top: Any) -> dict[Token, float]:
    pairs = optional({"top": top}, "top", dict) or {}
    return {_id(name): log_probability(value) for name, value in pairs.items()}


def _masked(others: Mapping[Token, float], token: int) -> bool:
    """Whether only `token` was possible: the server gives log-probabilities after its masks, so `token` has p = 1."""
    rival = rival_of(others, token)
    return rival is not None and rival <= -IMPOSSIBLE


def _scored(place: Any, target: int) -> Scored:
    ranked = {
        _id(name): entry(value, "logprob", float) for name, value in checked(place, "prompt_logprobs", dict).items()
    }
    values = {token: log_probability(value) for token, value in ranked.items()}
    own = values.get(target)
    rival = max((value for token, value in values.items() if token != target), default=None)
    return Scored(own, own is not None and (rival is None or own >= rival), rival)
