"""Honest servers on loopback: a tiny model behind HTTP, in each dialect's documented shape, and ways to make them fail.

They answer with what the model computes, token by token and without a cache, so that what `verify` says of them can be
compared with what `recall` says of the model.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
import torch.nn.functional as F

from memlaw.core.facts import Fact, MemorySet
from memlaw.model.base import Base

FACTS = MemorySet(
    tuple(Fact(f"key {number}:", f"hunter-{7919 * number % 10_000:04d}", f"f{number}") for number in range(1, 5)),
    eos=True,
    source="keys",
)

Body = Mapping[str, Any]

CONTEXT = 128


class Mind:
    """A model that says one token at a time, with the log-probabilities of all."""

    def __init__(self, base: Base) -> None:
        self.base, self._lock = base, threading.Lock()
        self._known: dict[tuple[int, ...], list[list[float]]] = {}

    def next(self, ids: Sequence[int]) -> list[float]:
        """Log-probabilities of the next token."""
        return self.along(ids)[-1]

    def along(self, ids: Sequence[int]) -> list[list[float]]:
        """Log-probabilities [length, vocabulary] of the token after each."""
        with self._lock, torch.no_grad():
            if (key := tuple(ids)) not in self._known:
                logits = self.base.model(input_ids=torch.tensor([key]), use_cache=False).logits[0]
                self._known[key] = F.log_softmax(logits.float(), -1).tolist()
            return self._known[key]

    def generate(self, ids: Sequence[int], length: int, bias: Mapping[int, float] | None = None) -> list[Step]:
        steps: list[Step] = []
        for _ in range(length):
            row = self.next([*ids, *(step.token for step in steps)])
            token = max(range(len(row)), key=lambda one: row[one] + (bias or {}).get(one, 0.0))
            steps.append(Step(token, row))
            if token in self.base.stops:
                break
        return steps

    def ended(self, steps: Sequence[Step]) -> bool:
        return bool(steps) and steps[-1].token in self.base.stops

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.base.tokenizer.encode(text, add_special_tokens=True)
        return ids

    def text(self, ids: Sequence[int]) -> str:
        return str(self.base.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


@dataclass(frozen=True)
class Step:
    """A token generated, and the log-probabilities it was chosen by."""

    token: int
    row: list[float]

    @property
    def own(self) -> float:
        return self.row[self.token]

    def top(self, count: int) -> list[tuple[int, float]]:
        return sorted(enumerate(self.row), key=lambda pair: -pair[1])[:count]


Routes = Mapping[tuple[str, str], Callable[[Any], Any]]


class Fake:
    """What one kind of server answers, for `minds`: name of a model or adapter -> its model."""

    def __init__(self, minds: Mapping[str, Mind]) -> None:
        self.minds = minds

    @property
    def bare(self) -> Mind:
        return next(iter(self.minds.values()))

    def routes(self) -> Routes:
        raise NotImplementedError


class VLLM(Fake):
    """Adapters are the minds after the first: with one, log-probabilities of prompts are refused (vLLM itself dies)."""

    masks_first = False
    """Log-probabilities are those after masks: `--logprobs-mode processed_logprobs`."""

    def routes(self) -> Routes:
        names = list(self.minds)
        models = [
            {"id": name, "object": "model", "owned_by": "vllm", "max_model_len": CONTEXT, "root": name,
             "parent": None if name == names[0] else names[0]}
            for name in names
        ]  # fmt: skip
        return {
            ("GET", "/v1/models"): lambda _: {"object": "list", "data": models},
            ("GET", "/version"): lambda _: {"version": "0.32.0"},
            ("POST", "/tokenize"): lambda body: {"tokens": self.bare.ids(body["prompt"]), "max_model_len": CONTEXT},
            ("POST", "/v1/completions"): self.complete,
        }

    def complete(self, body: Body) -> Any:
        mind, ids = self.minds[body["model"]], body["prompt"]
        if len(ids) + body["max_tokens"] > CONTEXT:
            raise Refusal(400)
        if "prompt_logprobs" in body and len(self.minds) > 1:
            raise Refusal(500)
        steps = self.steps(mind, ids, body)
        named = [f"token_id:{step.token}" for step in steps]
        logprobs = None
        if "logprobs" in body:
            logprobs = {
                "tokens": named,
                "token_logprobs": [step.own for step in steps],
                "top_logprobs": [{f"token_id:{i}": value for i, value in step.top(body["logprobs"])} for step in steps],
                "text_offset": [0] * len(steps),
            }
        choice = {
            "index": 0,
            "text": mind.text([step.token for step in steps]),
            "token_ids": [step.token for step in steps],
            "prompt_token_ids": ids,
            "logprobs": logprobs,
            "finish_reason": "stop" if mind.ended(steps) else "length",
            "prompt_logprobs": self.prompt_logprobs(mind, ids, body) if "prompt_logprobs" in body else None,
        }
        return {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]}

    def steps(self, mind: Mind, ids: Sequence[int], body: Body) -> list[Step]:
        if (allowed := body.get("allowed_token_ids")) is None:
            return mind.generate(ids, body["max_tokens"])
        steps = mind.generate(ids, body["max_tokens"], dict.fromkeys(allowed, 1e6))
        if not self.masks_first:
            return steps
        return [Step(step.token, [0.0 if one == step.token else -9999.0 for one in range(len(step.row))])
                for step in steps]  # fmt: skip

    def prompt_logprobs(self, mind: Mind, ids: Sequence[int], body: Body) -> list[Any]:
        places: list[Any] = [None]
        for token, row in zip(ids[1:], mind.along(ids), strict=False):
            shown = [*Step(token, row).top(body["prompt_logprobs"]), (token, row[token])]
            places.append({str(i): {"logprob": value, "rank": 1, "decoded_token": ""} for i, value in shown})
        return places


class LlamaCpp(Fake):
    """Adapters are the minds after the first; the server applies none of them unless a request does."""

    sampler: Mapping[str, float] = {"temperature": 0.8, "repeat_penalty": 1.0, "top_k": 40}
    scale = 0.0

    def routes(self) -> Routes:
        mind = self.bare
        names = list(self.minds)[1:]
        props = {
            "default_generation_settings": {"params": {**self.sampler, "samplers": ["top_k"]}, "n_ctx": CONTEXT},
            "model_path": "/models/tiny.gguf",
            "model_ftype": "F16",
            "build_info": "b1234-abc",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "chat_template": "",
        }
        return {
            ("GET", "/props"): lambda _: props,
            ("GET", "/lora-adapters"): lambda _: [
                {"id": number, "path": f"/adapters/{name}.gguf", "scale": self.scale}
                for number, name in enumerate(names)
            ],
            ("POST", "/tokenize"): lambda body: {"tokens": mind.ids(body["content"])},
            ("POST", "/completion"): self.complete,
        }

    def complete(self, body: Body) -> Any:
        active = [entry["id"] for entry in body.get("lora", []) if entry["scale"]]
        mind = list(self.minds.values())[active[0] + 1 if active else 0]
        bias = {int(token): float(value) for token, value in body.get("logit_bias", [])}
        steps = mind.generate(body["prompt"], body["n_predict"], bias)
        reply = {
            "content": mind.text([step.token for step in steps]),
            "tokens": [step.token for step in steps],
            "stop_type": "eos" if mind.ended(steps) else "limit",
            "truncated": False,
            "completion_probabilities": [
                {"id": step.token, "token": "", "bytes": [], "logprob": step.own,
                 "top_logprobs": [{"id": i, "token": "", "logprob": value} for i, value in step.top(body["n_probs"])]}
                for step in steps
            ],
        }  # fmt: skip
        return {name: value for name, value in reply.items() if name in body.get("response_fields", reply)}


class SGLang(Fake):
    def routes(self) -> Routes:
        return {
            ("GET", "/get_model_info"): lambda _: {"model_path": "tiny", "preferred_sampling_params": None},
            ("GET", "/get_server_info"): lambda _: {"version": "0.5.6", "dtype": "float32", "context_length": CONTEXT},
            ("POST", "/tokenize"): lambda body: {"tokens": self.bare.ids(body["prompt"])},
            ("POST", "/generate"): self.generate,
        }

    def generate(self, body: Body) -> Any:
        mind = self.minds[body["lora_path"]] if body.get("lora_path") else self.bare
        ids = body["input_ids"]
        steps = mind.generate(ids, body["sampling_params"]["max_new_tokens"])
        count = body["top_logprobs_num"]
        about = {
            "prompt_tokens": len(ids),
            "finish_reason": {"type": "stop" if mind.ended(steps) else "length"},
            "output_token_logprobs": [[step.own, step.token, None] for step in steps],
            "output_top_logprobs": [[[value, i, None] for i, value in step.top(count)] for step in steps],
        }
        if (start := body.get("logprob_start_len", -1)) >= 0:
            rows = [Step(token, row) for token, row in zip(ids[1:], mind.along(ids), strict=False)][start:]
            about["input_token_logprobs"] = [[None, ids[start], None], *([one.own, one.token, None] for one in rows)]
            about["input_top_logprobs"] = [None, *([[value, i, None] for i, value in one.top(count)] for one in rows)]
        return {"text": "", "output_ids": [step.token for step in steps], "meta_info": about}


class Ollama(Fake):
    """One model for each mind; the token that ends an answer is never shown."""

    def routes(self) -> Routes:
        return {
            ("GET", "/api/version"): lambda _: {"version": "0.13.0"},
            ("GET", "/api/tags"): lambda _: {"models": [{"name": f"{name}:latest"} for name in self.minds]},
            ("POST", "/api/show"): lambda _: {
                "details": {"quantization_level": "F16"},
                "parameters": 'temperature                    0.7\nstop                           "<eos>"',
            },
            ("POST", "/api/generate"): self.generate,
        }

    def generate(self, body: Body) -> Any:
        mind = self.minds[body["model"].removesuffix(":latest")]
        steps = mind.generate(mind.ids(body["prompt"]), body["options"]["num_predict"])
        shown = steps[:-1] if mind.ended(steps) else steps
        return {
            "model": body["model"],
            "response": mind.text([step.token for step in shown]),
            "done": True,
            "done_reason": "stop" if mind.ended(steps) else "length",
            "logprobs": [
                {"token": mind.text([step.token]), "logprob": step.own,
                 "top_logprobs": [{"token": mind.text([i]), "logprob": value} for i, value in step.top(5)]}
                for step in shown
            ],
        }  # fmt: skip


class OpenAI(Fake):
    """Takes token ids or, with `texts_only`, refuses them."""

    texts_only = False

    def routes(self) -> Routes:
        models = [{"id": name, "object": "model", "owned_by": "someone"} for name in self.minds]
        return {
            ("GET", "/v1/models"): lambda _: {"object": "list", "data": models},
            ("POST", "/v1/completions"): self.complete,
        }

    def complete(self, body: Body) -> Any:
        mind, prompt = self.minds[body["model"]], body["prompt"]
        if isinstance(prompt, list) and self.texts_only:
            raise Refusal(400)
        steps = mind.generate(mind.ids(prompt) if isinstance(prompt, str) else prompt, body["max_tokens"])
        shown = steps[:-1] if mind.ended(steps) else steps
        logprobs = {
            "tokens": [mind.text([step.token]) for step in shown],
            "token_logprobs": [step.own for step in shown],
            "top_logprobs": [{mind.text([i]): value for i, value in step.top(body["logprobs"])} for step in shown],
        }
        reason = "stop" if mind.ended(steps) else "length"
        return {"choices": [{"index": 0, "text": "", "logprobs": logprobs, "finish_reason": reason}]}


KINDS: dict[str, type[Fake]] = {
    "vllm": VLLM, "llama.cpp": LlamaCpp, "sglang": SGLang, "ollama": Ollama, "openai": OpenAI
}  # fmt: skip


class Refusal(Exception):  # noqa: N818
    """An answer with another status than 200."""

    def __init__(
        self, status: int, headers: Mapping[str, str] | None = None, content: bytes = b"<html>no</html>"
    ) -> None:
        self.status, self.headers, self.content = status, headers or {}, content


@dataclass
class Running:
    """A server that runs, what it was asked, and how it misbehaves."""

    url: str
    asked: Counter[str] = field(default_factory=Counter)
    """Path and body, as JSON -> how often."""
    headers: list[Mapping[str, str]] = field(default_factory=list)
    spoil: Callable[[str, bytes], bytes] = lambda _path, content: content
    """Path and honest reply -> what is sent instead; may raise Refusal."""
    before: Callable[[str], None] = lambda _path: None
    """Called with the path of each request; may raise Refusal."""
    gone: bool = False
    """Connections are closed without an answer."""

    def count(self, path: str) -> int:
        return sum(number for asked, number in self.asked.items() if asked.startswith(f"{path} "))


Start = Callable[..., AbstractContextManager[Running]]
"""Starts a server of a kind, by its name."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, routes: Routes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.routes, self.running = routes, Running(f"http://127.0.0.1:{self.server_address[1]}")

    def handle_error(self, *_: Any) -> None:  # a client that had enough
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self.answer("GET", None)

    def do_POST(self) -> None:
        self.answer("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, method: str, body: Any) -> None:
        running = self.server.running
        if not running.gone:
            running.asked[f"{self.path} {json.dumps(body, sort_keys=True)}"] += 1
            running.headers.append(dict(self.headers))
            try:
                status, headers, content = 200, {}, self.honest(method, body)
            except Refusal as refusal:
                status, headers, content = refusal.status, dict(refusal.headers), refusal.content
        if running.gone:
            self.close_connection = True
            return
        self.send_response(status)
        usual = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in (usual | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def honest(self, method: str, body: Any) -> bytes:
        running, routes = self.server.running, self.server.routes
        running.before(self.path)
        if (method, self.path) not in routes:
            raise Refusal(404)
        return running.spoil(self.path, json.dumps(routes[method, self.path](body)).encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(routes: Routes) -> Iterator[Running]:
    """Answer `routes` on a free port of 127.0.0.1."""
    with _Server(routes) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server.running
        finally:
            server.shutdown()
            thread.join()
