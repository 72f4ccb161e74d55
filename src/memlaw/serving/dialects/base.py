"""What every dialect can do, and what a server says about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from memlaw.core.errors import ConfigError, listed, suggest
from memlaw.serving.client import Client
from memlaw.serving.question import Completion, Question, Scored

TOP = 5
"""The most probable tokens that are asked for at each position: the most that the OpenAI API grants."""


@dataclass(frozen=True)
class Loaded:
    """A LoRA adapter that the server has loaded."""

    name: str
    scale: float | None
    """The factor it is applied with where a request does not say; None where only a request can choose it."""


@dataclass(frozen=True)
class About:
    """What a server says about itself; None, or nothing, where it does not."""

    model: str | None = None
    version: str | None = None
    precision: str | None = None
    """Of the weights, as the server names it: bfloat16, Q8_0, ..."""
    context: int | None = None
    """Positions for prompt and target together."""
    sampler: Mapping[str, float] = field(default_factory=dict)
    """Settings of a request that chooses none, under llama.cpp's names."""
    bos: str | None = None
    eos: str | None = None
    template: str | None = None
    """The chat template."""
    adapters: tuple[Loaded, ...] = ()


class Dialect(ABC):
    """One server, asked in its own language. Its methods raise ServerError, and may be called from several threads."""

    name: ClassVar[str]
    by_ids: bool = True
    """Whether the server takes and returns token ids; if not, prompts go out as text and tokens come back as text."""
    tells_end: ClassVar[bool] = True
    """Whether it gives the probability of the token that ends an answer."""

    mixes: ClassVar[bool] = False
    """Whether a request can add up adapters, each times a factor."""

    def __init__(self, client: Client, adapters: Mapping[str, float] | None = None) -> None:
        """`adapters` are names with factors. Raises ConfigError for what the server does not have or cannot mix."""
        self.client, self.adapters = client, dict(adapters or {})
        if self.is_mixture and not self.mixes:
            raise ConfigError(
                f"A request to a server of the kind {self.name} names one adapter, which acts as it was trained: it "
                f"cannot ask for {self.adapter_name}. Verify each adapter alone; only llama.cpp takes several, or a "
                "factor."
            )
        self.about = self.ask_about()

    @property
    def is_mixture(self) -> bool:
        """Whether requests ask for anything but one adapter as it was trained, or for what the server does."""
        return len(self.adapters) > 1 or any(weight != 1 for weight in self.adapters.values())

    @property
    def adapter_name(self) -> str | None:
        """What requests ask for, such as "A" or "0.5 A + 0.5 B"; None for what the server does by default."""
        parts = (f"{weight:g} {name}" if self.is_mixture else name for name, weight in self.adapters.items())
        return " + ".join(parts) or None

    @abstractmethod
    def ask_about(self) -> About:
        """Ask what the server is, once."""

    @abstractmethod
    def complete(self, question: Question, known: int, length: int) -> Completion:
        """At most `length` tokens, greedily, after the prompt and the first `known` tokens of the target."""

    def score(self, question: Question, start: int) -> list[Scored] | None:  # noqa: ARG002
        """The target's tokens from `start` on, each after the true ones; None if the server cannot say."""
        return None

    def force(self, question: Question, at: int) -> float | None:  # noqa: ARG002
        """The log-probability of the target's token `at` after the true ones; None if the server cannot say."""
        return None

    def tokenize(self, text: str) -> tuple[int, ...] | None:  # noqa: ARG002
        """The tokens the server makes of a prompt, with those it adds; None if it does not say."""
        return None


def chosen(wanted: str | None, names: Sequence[str], what: str) -> str | None:
    """The name that was asked for. Raises ConfigError if the server does not have it."""
    if wanted is None or not names or wanted in names:
        return wanted
    raise unknown(wanted, names, what)


def unknown(wanted: str, names: Sequence[str], what: str) -> ConfigError:
    """The error of a name that the server does not have."""
    return ConfigError(
        f"The server has no {what} {wanted!r}. {suggest(wanted, names)}It has: {listed(names)}. Choose one with "
        "--adapter-name."
    )
