"""llama.cpp's own HTTP server (tools/server/README.md): /completion, /tokenize, /props, /lora-adapters.

Its `/v1/completions` ignores `echo`, and `post_sampling_probs` says 1.0 at temperature 0, so neither is used: the
probabilities of `/completion` are the softmax of the model's own logits, before any sampler. That also holds for a
token that `logit_bias` forces, which is how the probability of a token that is not the greedy one is asked for.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from memlaw.serving.client import Client
from memlaw.serving.dialects.base import TOP, About, Dialect, Loaded, chosen
from memlaw.serving.question import Completion, Question, Said, Token
from memlaw.serving.values import checked, entry, log_probability, optional, token_ids

FORCED = 1e9
"""A bias that no logit can outdo."""


class LlamaCpp(Dialect):
    """llama-server."""

    name = "llama.cpp"

    def ask_about(self) -> About:
        props = self.client.get("/props") or {}
        defaults = optional(props, "default_generation_settings", dict) or {}
        self._adapters = _adapters(self.client)
        self._lora = self._chosen_lora()
        return About(
            model=_model(props),
            version=optional(props, "build_info", str),
            precision=optional(props, "model_ftype", str) or self._listed_precision(),
            context=optional(defaults, "n_ctx", int),
            sampler=_numbers(optional(defaults, "params", dict) or defaults),
            bos=optional(props, "bos_token", str),
            eos=optional(props, "eos_token", str),
            template=optional(props, "chat_template", str),
            adapters=tuple(loaded for _, loaded in self._adapters),
        )

    def _chosen_lora(self) -> list[dict[str, Any]] | None:
        """The adapter of every request, alone and whole; None for what the server does by default."""
        if self.adapter_name is None:
            return None
        for number, loaded in self._adapters:
            if self.adapter_name in (loaded.name, PurePath(loaded.name).name, PurePath(loaded.name).stem, str(number)):
                return [{"id": number, "scale": 1.0}]
        names = [PurePath(loaded.name).stem for _, loaded in self._adapters]
        chosen(self.adapter_name, names or ["none; start it with --lora FILE"], "LoRA adapter")
        return None

    def _listed_precision(self) -> str | None:
        """Of the list of models, for servers whose /props does not say."""
        models = optional(self.client.get("/v1/models"), "data", list) or [{}]
        return optional(optional(models[0], "meta", dict), "ftype", str)

    def _completion(self, ids: tuple[int, ...], length: int, **options: Any) -> Completion:
        asked = {
            "prompt": list(ids),
            "n_predict": length,
            "temperature": 0.0,
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "samplers": ["temperature"],
            "n_probs": TOP,
            "cache_prompt": False,  # with it, the logits of the same tokens depend on what was asked before
            "return_tokens": True,
            "response_fields": ["tokens", "completion_probabilities", "stop_type"],
        }
        if self._lora is not None:
            asked["lora"] = self._lora
        reply = self.client.post("/completion", asked | options)
        tokens = token_ids(entry(reply, "tokens", list), "tokens")
        places = entry(reply, "completion_probabilities", list)
        said = tuple(_said(token, place) for token, place in zip(tokens, places, strict=False))
        return Completion(said, entry(reply, "stop_type", str) in ("eos", "word"))

    def complete(self, question: Question, known: int, length: int) -> Completion:
        return self._completion(question.prefix(known), length)

    def force(self, question: Question, at: int) -> float | None:
        token = question.fact.target[at]
        completion = self._completion(question.prefix(at), 1, logit_bias=[[token, FORCED]])
        return next((said.logprob for said in completion.said if said.token == token), None)

    def tokenize(self, text: str) -> tuple[int, ...] | None:
        reply = self.client.find("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return None if reply is None else token_ids(entry(reply, "tokens", list), "tokens")


def _adapters(client: Client) -> list[tuple[int, Loaded]]:
    """Id in the server -> adapter."""
    listed = client.get("/lora-adapters") or []
    return [
        (entry(one, "id", int), Loaded(entry(one, "path", str), entry(one, "scale", float)))
        for one in checked(listed, "lora-adapters", list)
    ]


def _model(props: Any) -> str | None:
    path = optional(props, "model_path", str)
    return None if path is None else PurePath(path).name


def _numbers(settings: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in settings.items() if type(value) in (int, float)}


def _said(token: int, place: Any) -> Said:
    others: dict[Token, float] = {
        entry(other, "id", int): log_probability(entry(other, "logprob", float))
        for other in entry(place, "top_logprobs", list)
    }
    return Said(token, log_probability(entry(place, "logprob", float)), others)
