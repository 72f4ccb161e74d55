"""llama.cpp's own server with the bundled base and twelve facts: what `verify` says is what `recall` says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import memlaw
from helpers.paths import ROOT
from helpers.servers import EXACT, Server, llama_cpp
from memlaw.adapter.gguf import write_adapter
from memlaw.core.errors import UnfinishedError
from memlaw.core.recall import RecallReport
from memlaw.model.base import load
from memlaw.model.gguf_write import write_base
from memlaw.serving.settings import VerifyConfig

FACTS = ROOT / "examples" / "facts.jsonl"


@pytest.fixture(scope="module")
def files(twelve_facts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The base in float32 and the adapter, as GGUF."""
    folder, base = tmp_path_factory.mktemp("gguf"), load(dtype="float32")
    write_base(base, folder / "base.gguf", "f32")
    write_adapter(twelve_facts, base.model.config, folder / "twelve.gguf")
    return folder / "base.gguf", folder / "twelve.gguf"


@pytest.fixture(scope="module")
def server(files: tuple[Path, Path]) -> Iterator[Server]:
    with llama_cpp(*files, **EXACT) as running:
        yield running


@pytest.fixture(scope="module")
def measured(twelve_facts: Path) -> RecallReport:
    base = load(dtype="float32")
    return memlaw.recall(base.model, base.tokenizer, FACTS, adapter=twelve_facts)


def test_facts_are_certified_there_with_the_margins_they_have_here(server: Server, measured: RecallReport) -> None:
    verified = memlaw.verify(server.url, FACTS, config=VerifyConfig(repeat=2, concurrency=2))
    assert (verified.report.certified, measured.certified) == (12, 12)
    for there, here in zip(verified.report.items, measured.items, strict=True):
        assert there.tokens.nll == pytest.approx(here.tokens.nll, abs=2e-3)
        assert there.tokens.rival == pytest.approx(here.tokens.rival, rel=2e-3, abs=2e-3)
    assert verified.stability is not None
    assert verified.stability.flips == 0
    assert {difference.code for difference in verified.differences} == {"sampler"}  # no other tokens, no other end


def test_a_base_that_knows_nothing_is_measured_token_by_token(files: tuple[Path, Path]) -> None:
    base = load(dtype="float32")
    few = memlaw.read(FACTS, tokenizer=base.tokenizer)
    few = memlaw.MemorySet(few.facts[:2], few.eos, few.source)
    here = memlaw.recall(base.model, base.tokenizer, few)
    with llama_cpp(files[0], **EXACT) as running:
        there = memlaw.verify(running.url, few, config=VerifyConfig()).report
    for one, other in zip(there.items, here.items, strict=True):
        assert one.tokens.nll == pytest.approx(other.tokens.nll, rel=2e-3, abs=2e-3)
        assert (one.first_failure, one.tokens.decoded) == (other.first_failure, other.tokens.decoded)


def test_a_server_that_is_killed_and_started_again_is_asked_for_the_rest_only(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    config, answers = VerifyConfig(retries=0, concurrency=1), tmp_path / "answers"
    with llama_cpp(*files, **EXACT) as running:
        asked = memlaw.api.facts_to_ask(FACTS)

        def kill(done: int, _total: int) -> None:
            if done == 5:
                running.kill()

        with pytest.raises(UnfinishedError, match="of 12 questions were answered"):
            memlaw.serving.verify.verify_facts(running.url, asked, config, resume=answers, on_progress=kill)
        port = urlsplit(running.url).port
    kept = answers.read_text().count("\n") - 1
    assert 5 <= kept < 12
    seen: list[int] = []
    with llama_cpp(*files, **EXACT | {"port": port}) as again:
        verified = memlaw.serving.verify.verify_facts(
            again.url, asked, config, resume=answers, on_progress=lambda done, _total: seen.append(done)
        )
    assert seen == list(range(kept + 1, 13))
    assert verified.report.certified == 12
