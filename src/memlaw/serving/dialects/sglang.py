"""SGLang: its native `/generate` with `input_ids` and `return_logprob` (docs/basic_usage/sampling_params.md).

Log-probabilities come as [value, token id, text] in `meta_info`, those of the prompt from `logprob_start_len` on, where
the first has no value. An adapter is the `lora_path` of a request.
"""

from __future__ import annotations

from typing import Any

from memlaw.core.errors import ServerError
from memlaw.serving.dialects.base import TOP, About, Dialect
from memlaw.serving.question import Completion, Question, Said, Scored, Token, rival_of
from memlaw.serving.values import checked, entry, log_probability, optional, token_ids


class SGLang(Dialect):
    """SGLang's runtime."""

    name = "sglang"

    def ask_about(self) -> About:
        model = self.client.get("/get_model_info") or self.client.get("/model_info")
        server = self.client.get("/get_server_info") or self.client.get("/server_info")
        preferred = optional(model, "preferred_sampling_params", dict) or {}
        quantization = optional(server, "quantization", str)
        return About(
            model=optional(model, "model_path", str),
            version=optional(server, "version", str),
            precision=quantization or optional(server, "dtype", str),
            context=optional(server, "context_length", int),
            sampler={name: float(value) for name, value in preferred.items() if type(value) in (int, float)},
        )

    def _generate(self, ids: tuple[int, ...], length: int, **options: Any) -> dict[str, Any]:
        asked = {
            "input_ids": list(ids),
            "sampling_params": {
                "temperature": 0.0,
                "max_new_tokens": length,
                "frequency_penalty": 0.0,
                "presence_penalty": 0.0,
                "repetition_penalty": 1.0,
            },
            "return_logprob": True,
            "top_logprobs_num": TOP,
            "stream": False,
        }
        if self.adapter_name is not None:
            asked["lora_path"] = self.adapter_name
        return entry(self.client.post("/generate", asked | options), "meta_info", dict)

    def complete(self, question: Question, known: int, length: int) -> Completion:
        about = self._generate(question.prefix(known), length)
        places = entry(about, "output_token_logprobs", list)
        tops = optional(about, "output_top_logprobs", list) or [[]] * len(places)
        said = tuple(
            Said(entry(place, 1, int), log_probability(entry(place, 0, float)), _others(top))
            for place, top in zip(places, tops, strict=False)
        )
        return Completion(said, entry(entry(about, "finish_reason", dict), "type", str) == "stop")

    def score(self, question: Question, start: int) -> list[Scored] | None:
        fact = question.fact
        first = fact.prompt_length + start
        about = self._generate(fact.ids, 1, logprob_start_len=first - 1)
        wanted = fact.ids[first:]
        places = entry(about, "input_token_logprobs", list)[-len(wanted) :]
        if tuple(entry(place, 1, int) for place in places) != wanted:
            raise ServerError("The server gave log-probabilities of another prompt than the one it was asked for.")
        tops = (optional(about, "input_top_logprobs", list) or [])[-len(wanted) :]
        tops = tops if len(tops) == len(wanted) else [None] * len(wanted)
        return [_scored(place, top) for place, top in zip(places, tops, strict=True)]

    def tokenize(self, text: str) -> tuple[int, ...] | None:
        reply = self.client.find("/tokenize", {"prompt": text, "add_special_tokens": True})
        return None if reply is None else token_ids(entry(reply, "tokens", list), "tokens")


def _others(top: Any) -> dict[Token, float]:
    places = [] if top is None else checked(top, "top_logprobs", list)
    return {entry(place, 1, int): log_probability(entry(place, 0, float)) for place in places}


def _scored(place: Any, top: Any) -> Scored:
    target = entry(place, 1, int)
    value = checked(place, "input_token_logprobs", list)[0]
    own = None if value is None else log_probability(value)
    rival = rival_of(_others(top), target)
    return Scored(own, own is not None and (rival is None or own >= rival), rival)
