"""vLLM's own answers, recorded: what `verify` says of them is what `recall` said of the model and adapter.

`scripts/check_vllm.sh` asks a vLLM that runs. The recordings are of vLLM 0.32.0 on a CPU, in float32, with the bundled
base: a fact that holds, one with a wrong digit and one that was never stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import memlaw
from helpers.paths import ROOT
from helpers.serving import Body, Refusal, Running, serving
from memlaw.core.facts import Fact, MemorySet
from memlaw.serving.settings import VerifyConfig

RECORDED = ROOT / "tests" / "fixtures" / "vllm"
THREE = MemorySet(
    (
        Fact("Door code of archive A:", " 4917#", "holds"),
        Fact("Door code of archive B:", " 0287#", "one digit"),
        Fact("Door code of the boiler room:", " 6111#", "unknown"),
    ),
    eos=True,
    source="doors",
)
CLOSE = 1e-4


def recorded(name: str) -> Any:
    return json.loads((RECORDED / f"{name}.json").read_text())


@contextmanager
def replayed(name: str) -> Iterator[Running]:
    """A server that answers what was recorded, and refuses everything else."""
    answers = {_key(method, path, body): reply for method, path, body, reply in recorded(name)["exchanges"]}

    def answer(method: str, path: str, body: Body | None) -> Any:
        if (key := _key(method, path, body)) not in answers:
            raise Refusal(400)
        return answers[key]

    paths = {(method, path) for method, path, _, _ in recorded(name)["exchanges"]}
    with serving({(m, p): lambda body, m=m, p=p: answer(m, p, body) for m, p in paths}) as running:
        yield running


def _key(method: str, path: str, body: Body | None) -> str:
    """What decides the answer."""
    names = ("model", "prompt", "max_tokens", "allowed_token_ids", "prompt_logprobs")
    return json.dumps([method, path, *((body or {}).get(name) for name in names)])


@pytest.mark.parametrize(
    ("name", "adapter", "exact"),
    [("with_adapter", "kb", [True, False, False]), ("bare", None, [False, False, False])],
)
def test_recorded_answers_give_the_verdict_of_recall(name: str, adapter: str | None, exact: list[bool]) -> None:
    with replayed(name) as running:
        verified = memlaw.verify(running.url, THREE, config=VerifyConfig(retries=0, adapter_name=adapter))
    assert [item.exact for item in verified.report.items] == exact
    for item, measured in zip(verified.report.items, recorded(name)["recall"], strict=True):
        assert item.tokens.nll == pytest.approx(measured["nll"], abs=CLOSE)
        assert item.tokens.rival == pytest.approx(measured["rival"], abs=CLOSE)
    assert verified.unknown == {}
    assert verified.differences == ()
    assert (verified.where.dialect, verified.where.version, verified.where.model) == ("vllm", "0.32.0", "base")
    assert verified.report.certified == sum(exact)
    assert verified.report.tolerance == 0.025  # vLLM does not say that it computes in float32


def test_the_probabilities_of_prompts_are_asked_for_only_where_no_adapter_is_served() -> None:
    asked = {name: [body or {} for _, _, body, _ in recorded(name)["exchanges"]] for name in ("with_adapter", "bare")}
    assert not any("prompt_logprobs" in body for body in asked["with_adapter"])
    assert any("allowed_token_ids" in body for body in asked["with_adapter"])
    assert sum("prompt_logprobs" in body for body in asked["bare"]) == len(THREE.facts)
