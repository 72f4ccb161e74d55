"""llama.cpp's own server with the bundled base and twelve facts: what `verify` says is what `recall` says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import memlaw
from helpers import tiny
from helpers.paths import ROOT
from helpers.servers import EXACT, Server, llama_cpp
from memlaw.adapter.gguf import write_adapter
from memlaw.adapter.mixture import attach_all, mixture_of
from memlaw.core.errors import ConfigError, ServerError, UnfinishedError
from memlaw.core.facts import Fact, MemorySet
from memlaw.core.recall import RecallReport
from memlaw.data import encode
from memlaw.diagnosis.measure import measure
from memlaw.model.base import BUNDLED, load, wrap
from memlaw.model.gguf_write import write_base
from memlaw.model.tokenizer import auto_tokenizer
from memlaw.serving.dialects.llama_cpp import aligned
from memlaw.serving.question import Said
from memlaw.serving.settings import VerifyConfig
from memlaw.serving.verify import Part

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


def test_a_mixture_is_added_up_and_judged_as_recall_judges_it(
    files: tuple[Path, Path], twelve_facts: Path, tmp_path: Path
) -> None:
    base, other = load(dtype="float32"), tmp_path / "gate"
    gate = MemorySet((Fact("Gate:", " 4711", "gate"),), eos=True, source="gate")
    memlaw.train(base.model, base.tokenizer, gate, rank=4, protect=0.0, out=other)
    write_adapter(other, base.model.config, tmp_path / "gate.gguf")
    facts = encode(memlaw.read(FACTS, tokenizer=base.tokenizer), base.tokenizer, context=base.context, stops=base.stops)
    with attach_all(base, mixture_of([twelve_facts, other], [0.5, -0.25])):
        here = measure(base, facts, decode=True)
    asked = VerifyConfig(adapter_name={"twelve": 0.5, "gate": -0.25})
    with llama_cpp(files[0], files[1], tmp_path / "gate.gguf", **EXACT) as running:
        mixed = memlaw.verify(running.url, FACTS, config=asked)
        alone = memlaw.verify(running.url, FACTS, config=VerifyConfig(adapter_name="twelve"))
        with pytest.raises(ConfigError, match="name the same adapter"):
            memlaw.verify(running.url, FACTS, config=VerifyConfig(adapter_name={"twelve": 0.5, "0": 0.5}))
    assert 0 < here.acc_token < 1
    for one, measured in zip(mixed.report.items, here.items, strict=True):
        assert one.tokens.nll == pytest.approx(measured.tokens.nll, rel=2e-3, abs=2e-3)
    assert mixed.where.adapter == "0.5 twelve + -0.25 gate"
    assert mixed.where.mixture == (Part("twelve", 0.5), Part("gate", -0.25))
    assert "0.5 twelve + -0.25 gate: a mixture" in {one.code: one.message for one in mixed.differences}["mixture"]
    assert (alone.report.certified, alone.where.mixture) == (12, None)


ABROAD = MemorySet(
    (Fact("Door:", " Tür 3·π → ß", "door"), Fact("Room:", " 図書館　二階", "room"), Fact("Gate:", " 4711", "gate")),
    eos=True,
    source="abroad",
)
"""Most tokens are single bytes of characters; the ideographic space has the same byte twice."""


def test_characters_of_several_tokens_are_measured_token_by_token(tmp_path: Path) -> None:
    tokenizer = auto_tokenizer(BUNDLED)  # of its tokens, the bundled base itself never learned most single bytes
    model = tiny.model("llama", vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1, bos_token_id=None)
    base, adapter = wrap(model, tokenizer, name="tiny"), tmp_path / "abroad"
    memlaw.train(model, tokenizer, ABROAD, rank=16, protect=0.0, out=adapter)
    write_base(base, tmp_path / "base.gguf", "f32")
    write_adapter(adapter, model.config, tmp_path / "abroad.gguf")
    trained, bare = (memlaw.recall(model, tokenizer, ABROAD, adapter=one) for one in (adapter, None))
    with llama_cpp(tmp_path / "base.gguf", tmp_path / "abroad.gguf", **EXACT) as running:
        served = memlaw.verify(running.url, ABROAD, tokenizer)
    with llama_cpp(tmp_path / "base.gguf", **EXACT) as running:
        bare_served = memlaw.verify(running.url, ABROAD, tokenizer)
    assert (served.report.certified, trained.certified, bare.certified) == (3, 3, 0)
    for there, here in ((served, trained), (bare_served, bare)):
        assert there.unknown == {}
        for one, other in zip(there.report.items, here.items, strict=True):
            assert one.tokens.nll == pytest.approx(other.tokens.nll, rel=2e-3, abs=2e-3)
            assert one.tokens.rival == pytest.approx(other.tokens.rival, rel=2e-3, abs=2e-3)


def place(token: int, logprob: float) -> dict[str, object]:
    return {"id": token, "token": "", "bytes": [], "logprob": logprob, "top_logprobs": [{"id": 7, "logprob": -3.0}]}


def test_tokens_without_a_probability_do_not_take_that_of_another() -> None:
    recorded = [366, 129, 122, 83], [place(366, -0.1), place(122, -0.2), place(83, -0.3)]  # " T", two bytes, "r"
    assert [said.logprob for said in aligned(*recorded)] == [-0.1, None, -0.2, -0.3]
    cut_short = [366, 129], [place(366, -0.1)]
    assert aligned(*cut_short)[1] == Said(129, None)
    twice = [160, 230, 230, 83], [place(230, -0.1), place(83, -0.2)]  # three bytes, of which the last two are equal
    assert [said.logprob for said in aligned(*twice)] == [None, None, None, -0.2]
    with pytest.raises(ServerError, match="of other tokens than"):
        aligned([366, 83], [place(83, -0.1), place(366, -0.2)])
