"""llama.cpp's own HTTP server on loopback, in a process that ends with the test that started it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the server's own process needs neither memlaw nor torch
    from memlaw.core.facts import EncodedFact

LIFETIME = 540
"""Seconds after which a server ends by itself; a test may take 600."""


@dataclass(frozen=True)
class Server:
    """A running server. `process` can be killed; leaving the context of `llama_cpp` does so."""

    url: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        """End it as a crash would, in the middle of what it does."""
        self.process.kill()
        self.process.wait()

    def ask(self, path: str, body: Any = None) -> Any:
        """The JSON reply to a GET, or to a POST of `body`."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    def greedy(self, fact: EncodedFact) -> list[tuple[int, float]]:
        """The tokens of greedy decoding after the prompt of a fact, as many as its target has, each with its p."""
        body = {
            "prompt": list(fact.ids[: fact.prompt_length]),
            "n_predict": fact.length,
            "temperature": 0,
            "n_probs": 1,
            "cache_prompt": False,
        }
        reply = self.ask("/completion", body)
        return [(token["id"], math.exp(token["logprob"])) for token in reply["completion_probabilities"]]


EXACT: dict[str, Any] = {"cache_type_k": 0, "cache_type_v": 0, "flash_attn_type": 0}
"""Settings under which llama.cpp keeps keys and values in float32, not in float16, and multiplies them so."""


@contextmanager
def llama_cpp(model: Path, *loras: Path, **settings: Any) -> Iterator[Server]:
    """Serve a GGUF file with LoRA adapters, all active at scale 1, on a free port of 127.0.0.1.

    `settings` are further fields of xllamacpp's CommonParams, such as n_ctx=512 or n_parallel=4.
    """
    asked = json.dumps({"model": str(model), "loras": [str(lora) for lora in loras], "settings": settings})
    command = [sys.executable, __file__, asked]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment())
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()  # or nothing: what llama.cpp said of it is on stderr
        assert url.startswith("http://127.0.0.1:"), f"The server ended with {process.wait()}."
        yield Server(url, process)
    finally:
        process.kill()
        process.communicate()


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _serve(model: str, loras: Sequence[str], settings: dict[str, Any]) -> None:
    """Print the address once requests are answered; end when the caller is gone, or after `LIFETIME`."""
    import xllamacpp

    signal.alarm(LIFETIME)
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in loras]
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_ctx, params.n_parallel, params.n_threads_http = 512, 1, 2
    params.warmup, params.fit_params, params.cache_ram_mib = False, False, 0
    params.verbosity = 1  # errors only
    for name, value in settings.items():
        setattr(params, name, value)
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)  # without the destructors of a server that may be busy


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
