"""How a server is asked: the settings of `memlaw verify`, each with its default, range and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from memlaw.core.config import Number, Whole
from memlaw.core.settings import Choose, settings

DialectName = Literal["auto", "vllm", "llama.cpp", "sglang", "ollama", "openai"]


@settings
class VerifyConfig:
    """How a server is asked for facts. Raises ConfigError for a value out of range."""

    adapter_name: str | Mapping[str, Number] | None = None
    """Name under which the server has the adapter (vLLM, SGLang), its file (llama.cpp) or the model (Ollama). Several
    are added up, by llama.cpp alone: from Python, names with the factors before what they add."""
    dialect: DialectName = "auto"
    """What the server speaks; auto asks it."""
    concurrency: Annotated[Whole, Field(ge=1, le=256), Choose("a whole number from 1 to 256", unit="requests")] = 4
    """Requests under way at the same time."""
    repeat: Annotated[Whole, Field(ge=1, le=100), Choose("a whole number from 1 to 100", unit="times")] = 1
    """How often each fact is asked: what differs between repeats sets the margin that a certificate needs."""
    timeout: Annotated[Number, Field(gt=0, le=86400), Choose("seconds above 0", unit="seconds")] = 60.0
    """Longest time for one answer, from connecting to its last byte."""
    retries: Annotated[Whole, Field(ge=0, le=20), Choose("a whole number from 0 to 20", unit="times")] = 5
    """How often a request is sent again while the server is starting, busy or gone, with growing pauses."""

    @property
    def adapters(self) -> dict[str, float]:
        """Name -> factor before what the adapter adds; empty for what the server does by default."""
        if isinstance(self.adapter_name, Mapping):
            return dict(self.adapter_name)
        return {} if self.adapter_name is None else {self.adapter_name: 1.0}
