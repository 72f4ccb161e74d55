"""`/v1/completions` as OpenAI documents it, for servers of no other kind here, and as the ground of vLLM's.

Tokens come back as text. The end of an answer has no token there, only `finish_reason: stop`.
"""

from __future__ import annotations

from typing import Any

from memlaw.serving.client import RefusedError
from memlaw.serving.dialects.base import TOP, About, Dialect, chosen
from memlaw.serving.question import Completion, Question, Said, Token
from memlaw.serving.values import checked, entry, log_probability, optional


class OpenAI(Dialect):
    """A server that speaks the completions of the OpenAI API and no more. Prompts are token ids if it takes them."""

    name = "openai"
    by_ids = False
    tells_end = False
    _takes_ids = True

    def ask_about(self) -> About:
        models = entry(self.client.get("/v1/models"), "data", list)
        names = [entry(one, "id", str) for one in models]
        self.model = chosen(self.adapter_name, names, "model") or (names[0] if names else None)
        return About(model=self.model)

    def complete(self, question: Question, known: int, length: int) -> Completion:
        if self._takes_ids:
            try:
                return self._completion(list(question.prefix(known)), length)
            except RefusedError as error:
                if error.status not in (400, 422):
                    raise
                self._takes_ids = False
        return self._completion(question.prompt + "".join(question.pieces[:known]), length)

    def _completion(self, prompt: list[int] | str, length: int) -> Completion:
        reply = self.client.post("/v1/completions", self._request(prompt, length))
        choice = entry(entry(reply, "choices", list), 0, dict)
        said = _said(optional(choice, "logprobs", dict) or {})
        return Completion(said, entry(choice, "finish_reason", str) == "stop")

    def _request(self, prompt: list[int] | str, length: int) -> dict[str, Any]:
        asked = {"prompt": prompt, "max_tokens": length, "temperature": 0, "logprobs": TOP}
        return asked if self.model is None else {"model": self.model, **asked}


def _said(logprobs: dict[str, Any]) -> tuple[Said, ...]:
    tokens = [checked(token, "tokens", str) for token in optional(logprobs, "tokens", list) or []]
    values = optional(logprobs, "token_logprobs", list) or [None] * len(tokens)
    tops = optional(logprobs, "top_logprobs", list) or [None] * len(tokens)
    return tuple(
        Said(token, None if value is None else log_probability(value), _others(top))
        for token, value, top in zip(tokens, values, tops, strict=False)
    )


def _others(top: Any) -> dict[Token, float]:
    pairs = optional({"top": top}, "top", dict) or {}
    return {name: log_probability(value) for name, value in pairs.items()}
