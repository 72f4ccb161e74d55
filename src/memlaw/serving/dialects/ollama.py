"""Ollama: `/api/generate` with `raw` and `logprobs` (docs/openapi.yaml); an adapter is part of a model.

It takes prompts as text only and returns tokens as text, without the one that ends an answer: facts that end with the
end of sequence come back verbatim there, but nothing says how certain their end is.
"""

from __future__ import annotations

from typing import Any

from memlaw.core.errors import ConfigError, listed
from memlaw.serving.dialects.base import TOP, About, Dialect, chosen
from memlaw.serving.question import Completion, Question, Said, Token
from memlaw.serving.values import entry, log_probability, optional


class Ollama(Dialect):
    """Ollama."""

    name = "ollama"
    by_ids = False
    tells_end = False

    def ask_about(self) -> About:
        names = [entry(one, "name", str) for one in entry(self.client.get("/api/tags"), "models", list)]
        self.model = self._chosen(names)
        shown = self.client.find("/api/show", {"model": self.model}) or {}
        details = optional(shown, "details", dict) or {}
        return About(
            model=self.model,
            version=optional(self.client.get("/api/version"), "version", str),
            precision=optional(details, "quantization_level", str),
            sampler=_parameters(optional(shown, "parameters", str) or ""),
        )

    def _chosen(self, names: list[str]) -> str:
        if self.adapter_name is None:
            if len(names) != 1:
                raise ConfigError(
                    f"The server has {len(names)} models ({listed(names) or 'none'}), and each answers otherwise: name "
                    "the one that holds the facts with --adapter-name."
                )
            return names[0]
        if f"{self.adapter_name}:latest" in names:
            return f"{self.adapter_name}:latest"
        short = [name.removesuffix(":latest") for name in names]
        return chosen(self.adapter_name, [*short, *names], "model") or self.adapter_name

    def complete(self, question: Question, known: int, length: int) -> Completion:
        asked = {
            "model": self.model,
            "prompt": question.prompt + "".join(question.pieces[:known]),
            "raw": True,
            "stream": False,
            "logprobs": True,
            "top_logprobs": TOP,
            "options": {"temperature": 0, "num_predict": length, "repeat_penalty": 1.0},
        }
        reply = self.client.post("/api/generate", asked)
        said = tuple(_said(place) for place in entry(reply, "logprobs", list))
        return Completion(said, optional(reply, "done_reason", str) == "stop")


def _said(place: Any) -> Said:
    others: dict[Token, float] = {
        entry(other, "token", str): log_probability(entry(other, "logprob", float))
        for other in optional(place, "top_logprobs", list) or []
    }
    return Said(entry(place, "token", str), log_probability(entry(place, "logprob", float)), others)


def _parameters(text: str) -> dict[str, float]:
    """The numbers in lines such as "temperature  0.7"."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        try:
            found[name] = float(value)
        except ValueError:
            continue
    return found
