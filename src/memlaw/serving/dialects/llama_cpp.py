"""llama.cpp's own HTTP server (tools/server/README.md): /completion, /tokenize, /props, /lora-adapters.

Its `/v1/completions` ignores `echo`, and `post_sampling_probs` says 1.0 at temperature 0, so neither is used: the
probabilities of `/completion` are the softmax of the model's own logits, before any sampler. That also holds for a
token that `logit_bias` forces, which is how the probability of a token that is not the greedy one is asked for.

A token after which the text ends inside a character, such as the first of the two bytes of an umlaut, is among the
`tokens` generated, but not among the `completion_probabilities`. Its place is asked for again, with another token
forced into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import PurePath
from typing import Any

from memlaw.core.errors import ConfigError, ServerError, listed
from memlaw.serving.client import Client
from memlaw.serving.dialects.base import TOP, About, Dialect, Loaded, unknown
from memlaw.serving.question import Completion, Question, Said, Token, matching
from memlaw.serving.values import checked, entry, log_probability, optional, token_ids

FORCED = 1e9
"""A bias that no logit can outdo."""

MANY = 1000
"""Of how many tokens the probability is asked for where one that ends inside a character is not among the first few."""


class LlamaCpp(Dialect):
    """llama-server."""

    name = "llama.cpp"
    mixes = True

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
        """The adapters of every request, and no others; None for what the server does by default."""
        if not self.adapters:
            return None
        scales = {self._id(name): weight for name, weight in self.adapters.items()}
        if len(scales) < len(self.adapters):
            raise ConfigError(f"{listed(self.adapters)} name the same adapter of the server. Name each once.")
        return [{"id": number, "scale": weight} for number, weight in scales.items()]

    def _id(self, name: str) -> int:
        """Of the adapter with this name, in the server. Raises ConfigError."""
        for number, loaded in self._adapters:
            if name in (loaded.name, PurePath(loaded.name).name, PurePath(loaded.name).stem, str(number)):
                return number
        names = [PurePath(loaded.name).stem for _, loaded in self._adapters]
        raise unknown(name, names or ["none; start it with --lora FILE"], "LoRA adapter")

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
        places = optional(reply, "completion_probabilities", list) or []  # none if every token ends inside a character
        return Completion(aligned(tokens, places), entry(reply, "stop_type", str) in ("eos", "word"))

    def complete(self, question: Question, known: int, length: int) -> Completion:
        completion = self._completion(question.prefix(known), length)
        right = matching(completion.said, question.fact.target[known:])
        said = [
            self._asked_again(question, known + at, one) if one.logprob is None and at <= right else one
            for at, one in enumerate(completion.said)
        ]
        return replace(completion, said=tuple(said))

    def _asked_again(self, question: Question, at: int, said: Said) -> Said:
        """What was generated in the place of the target's token `at`, with its probability."""
        others = self._likely(question, at, TOP)
        return Said(said.token, others.get(said.token), others)

    def _likely(self, question: Question, at: int, count: int) -> dict[Token, float]:
        """The most probable tokens in the place of the target's token `at`."""
        harmless = self._whole_character
        options = {} if harmless is None else {"logit_bias": [[harmless, FORCED]]}
        places = self._completion(question.prefix(at), 1, n_probs=count, **options).said
        return dict(places[0].others) if places else {}

    @cached_property
    def _whole_character(self) -> int | None:
        """A token that ends with a character; None if the server does not tokenise."""
        reply = self.client.find("/tokenize", {"content": "a", "add_special": False})
        return None if reply is None else next(iter(token_ids(entry(reply, "tokens", list), "tokens")), None)

    def force(self, question: Question, at: int) -> float | None:
        token = question.fact.target[at]
        completion = self._completion(question.prefix(at), 1, logit_bias=[[token, FORCED]])
        found = next((said.logprob for said in completion.said if said.token == token), None)
        return self._likely(question, at, MANY).get(token) if found is None else found

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


def aligned(tokens: Sequence[int], places: Sequence[Any]) -> tuple[Said, ...]:
    """The tokens, each with its place among the probabilities; without a probability where it has none.

    Where equal tokens stand near a gap, the places could belong to either: a place counts only if it is the same for a
    token whether the tokens are matched from the first on or from the last.
    """
    ids = [entry(place, "id", int) for place in places]
    forward = _matched(tokens, ids)
    backward = {len(tokens) - 1 - at: len(ids) - 1 - place for at, place in _matched(tokens[::-1], ids[::-1]).items()}
    if len(forward) < len(ids):
        raise ServerError("The server gave probabilities of other tokens than those it generated.")
    sure = {at: places[place] for at, place in forward.items() if backward.get(at) == place}
    return tuple(_said(token, sure[at]) if at in sure else Said(token, None) for at, token in enumerate(tokens))


def _matched(tokens: Sequence[int], ids: Sequence[int]) -> dict[int, int]:
    """Place of a token -> place of the same id, each as early as it can be, for as many ids as there are."""
    found: dict[int, int] = {}
    for at, token in enumerate(tokens):
        if len(found) < len(ids) and ids[len(found)] == token:
            found[at] = len(found)
    return found


def _said(token: int, place: Any) -> Said:
    others: dict[Token, float] = {
        entry(other, "id", int): log_probability(entry(other, "logprob", float))
        for other in entry(place, "top_logprobs", list)
    }
    return Said(token, log_probability(entry(place, "logprob", float)), others)
