"""Which dialect a server speaks: it is asked for paths that only one kind has."""

from __future__ import annotations

from collections.abc import Mapping

from memlaw.core.errors import ServerError
from memlaw.serving.client import Client
from memlaw.serving.dialects.base import Dialect
from memlaw.serving.dialects.llama_cpp import LlamaCpp
from memlaw.serving.dialects.ollama import Ollama
from memlaw.serving.dialects.openai import OpenAI
from memlaw.serving.dialects.sglang import SGLang
from memlaw.serving.dialects.vllm import VLLM
from memlaw.serving.settings import DialectName
from memlaw.serving.values import optional

DIALECTS: dict[str, type[Dialect]] = {kind.name: kind for kind in (VLLM, LlamaCpp, SGLang, Ollama, OpenAI)}

_SIGNS: tuple[tuple[str, str, type[Dialect]], ...] = (
    ("/props", "default_generation_settings", LlamaCpp),
    ("/api/version", "version", Ollama),
    ("/get_model_info", "model_path", SGLang),
    ("/model_info", "model_path", SGLang),
    ("/version", "version", VLLM),
    ("/v1/models", "data", OpenAI),
)
"""A path, a key of what is returned there, and the kind of server that does: those that imitate others come first."""


def speak(client: Client, dialect: DialectName, adapters: Mapping[str, float]) -> Dialect:
    """The server in its dialect. Raises ServerError if it is of no kind known here, ConfigError for its adapters."""
    return (_detected(client) if dialect == "auto" else DIALECTS[dialect])(client, adapters)


def _detected(client: Client) -> type[Dialect]:
    for path, key, kind in _SIGNS:
        if optional(client.peek(path), key, object) is not None:
            return kind
    raise ServerError(
        f"{client.address} answers, but as none of {', '.join(DIALECTS)}. Check the address; if a proxy hides what the "
        "server is, name it with --dialect."
    )
