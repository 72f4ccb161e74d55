"""What `verify` says of a server is what `recall` says of the model behind it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import memlaw
from helpers import tiny
from helpers.recalls import followed
from helpers.serving import CONTEXT, FACTS, KINDS, Mind, Refusal, Start
from memlaw.core.errors import ConfigError, DataError, JournalError, ServerError, UnfinishedError
from memlaw.core.facts import EncodedFact, Fact, MemorySet
from memlaw.core.recall import LN2, RecallReport
from memlaw.model.base import Base
from memlaw.serving.settings import VerifyConfig
from memlaw.serving.verify import Verification

BY_IDS = ("vllm", "llama.cpp", "sglang")
BY_TEXT = ("ollama", "openai")
CLOSE = 1e-4  # nats: the model computes in float32, in batches of other sizes


def verify(url: str, facts: MemorySet = FACTS, resume: Path | None = None, **settings: object) -> Verification:
    config = VerifyConfig(**{"retries": 0, **settings})
    return memlaw.verify(url, facts, tiny.tokenizer(), resume=resume, config=config)


def assert_same(served: RecallReport, measured: RecallReport) -> None:
    """The same verdicts on the same numbers."""
    for there, here in zip(served.items, measured.items, strict=True):
        verdict = ("id", "length", "exact", "earliest_stubborn", "first_failure", "edits", "one_token_short")
        assert {name: getattr(there, name) for name in verdict} == {name: getattr(here, name) for name in verdict}
        assert there.tokens.decoded == here.tokens.decoded
        assert there.tokens.top1 == here.tokens.top1
        assert there.tokens.ended == here.tokens.ended
        assert there.tokens.faithful == here.tokens.faithful
        assert there.tokens.nll == pytest.approx(here.tokens.nll, abs=CLOSE)
        assert there.tokens.rival == pytest.approx(here.tokens.rival, abs=CLOSE)
    for name in ("acc_em", "acc_token", "ordered"):
        assert getattr(served, name) == getattr(measured, name)


def recall(base: Base, facts: MemorySet = FACTS) -> RecallReport:
    return memlaw.recall(base.model, base.tokenizer, facts)


def as_facts(base: Base, *encoded: EncodedFact) -> MemorySet:
    """Facts with exactly these tokens."""
    facts = (
        Fact(base.tokenizer.decode(fact.prompt), base.tokenizer.decode(fact.target), f"f{row}", target_ids=fact.target)
        for row, fact in enumerate(encoded)
    )
    return MemorySet(tuple(facts), eos=False, source="tokens")


@pytest.mark.parametrize("kind", BY_IDS)
def test_an_adapter_that_holds_its_facts_is_certified_as_in_this_process(
    start: Start, adapted: Base, kind: str
) -> None:
    with start(kind) as running:
        verified = verify(running.url, adapter_name="facts")
        completions = sum(running.count(path) for path in ("/completion", "/v1/completions", "/generate"))
    assert_same(verified.report, recall(adapted))
    assert verified.report.certified == len(FACTS.facts)
    assert verified.unknown == {}
    assert completions == len(FACTS.facts)  # each fact is asked once


@pytest.mark.parametrize("kind", BY_TEXT)
def test_where_the_end_is_not_told_facts_come_back_but_only_their_text_is_certified(
    start: Start, adapted: Base, kind: str
) -> None:
    with start(kind) as running:
        verified = verify(running.url, adapter_name="facts")
        alone = verify(running.url, replace(FACTS, eos=False), adapter_name="facts")
    assert (verified.report.acc_em, verified.report.certified) == (1.0, 0)
    assert verified.unknown == {fact.id: (11,) for fact in FACTS.facts}
    assert {item.reason for item in verified.report.items} == {"unproven"}
    assert "the server does not say how certain position 11 was" in str(verified.report.items[0].why)
    assert "end" in {difference.code for difference in verified.differences}
    assert_same(alone.report, recall(adapted, replace(FACTS, eos=False)))
    assert alone.report.certified == len(FACTS.facts)


@pytest.mark.parametrize("kind", BY_IDS)
def test_every_token_of_a_fact_that_is_not_recalled_is_measured(
    start: Start, minds: dict[str, Mind], kind: str
) -> None:
    with start(kind) as running:
        verified = verify(running.url)
    measured = recall(minds["base"].base)
    assert measured.acc_em == 0.0
    assert_same(verified.report, measured)
    assert verified.unknown == {}


@pytest.mark.parametrize("kind", BY_TEXT)
def test_past_a_wrong_token_the_rest_is_not_known_where_only_text_is_exchanged(
    start: Start, minds: dict[str, Mind], kind: str
) -> None:
    with start(kind) as running:
        verified = verify(running.url, adapter_name="base")
    measured = recall(minds["base"].base)
    assert [item.first_failure for item in verified.report.items] == [item.first_failure for item in measured.items]
    for there, here in zip(verified.report.items, measured.items, strict=True):
        hidden = verified.unknown[there.id]
        assert set(range(there.first_failure + 1, there.length)) <= set(hidden)
        for position, (told, true) in enumerate(zip(there.tokens.nll, here.tokens.nll, strict=True)):
            assert told == (LN2 if position in hidden else pytest.approx(true, abs=CLOSE))
        assert there.certified is False


@pytest.mark.parametrize("kind", BY_IDS)
def test_single_wrong_tokens_are_corrected_and_what_follows_is_measured(
    start: Start, minds: dict[str, Mind], kind: str
) -> None:
    base = minds["base"].base
    prompts = [(85, 86, 60), (49, 50, 60), (46, 47, 60)]  # after these, no special token is generated
    detours: list[dict[int, int]] = [{}, {4: 9}, {0: 11, 7: 12}]
    facts = as_facts(base, *(followed(base, p, 9, d) for p, d in zip(prompts, detours, strict=True)))
    with start(kind) as running:
        verified = verify(running.url, facts)
    measured = recall(base, facts)
    assert [item.first_failure for item in measured.items] == [None, 4, 0]
    assert [item.one_token_short for item in measured.items] == [False, True, False]
    assert_same(verified.report, measured)


@pytest.mark.parametrize("kind", KINDS)
def test_the_dialect_is_found_by_asking_and_the_server_is_described(start: Start, kind: str) -> None:
    with start(kind) as running:
        verified = verify(f"{running.url}/v1/", adapter_name="facts")
    where = verified.where
    assert (where.dialect, where.url, where.adapter) == (kind, running.url, "facts")
    described = {
        "vllm": ("0.32.0", "base", None),
        "llama.cpp": ("b1234-abc", "tiny.gguf", "F16"),
        "sglang": ("0.5.6", "tiny", "float32"),
        "ollama": ("0.13.0", "facts:latest", "F16"),
        "openai": (None, "facts", None),
    }
    assert (where.version, where.model, where.precision) == described[kind]


@pytest.mark.parametrize(("kind", "holds"), [("vllm", "base and facts"), ("llama.cpp", "facts"), ("ollama", "facts")])
def test_an_adapter_the_server_does_not_have_is_refused_by_name(start: Start, kind: str, holds: str) -> None:
    with start(kind) as running, pytest.raises(ConfigError, match="Did you mean facts") as refused:
        verify(running.url, adapter_name="fact")
    assert all(name in str(refused.value) for name in holds.split(" and "))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama.cpp"])
def test_servers_that_take_one_adapter_a_request_refuse_a_mixture(start: Start, kind: str) -> None:
    for mixture, named in (({"facts": 0.5, "base": 0.5}, "0.5 facts \\+ 0.5 base"), ({"facts": 0.9}, "0.9 facts")):
        with start(kind) as running, pytest.raises(ConfigError, match=f"the kind {kind} .* cannot ask for {named}"):
            verify(running.url, adapter_name=mixture)


def test_ollama_with_several_models_is_not_guessed_at(start: Start) -> None:
    with start("ollama") as running, pytest.raises(ConfigError, match="The server has 2 models"):
        verify(running.url)


def test_a_server_that_takes_no_ids_is_asked_in_text(start: Start, adapted: Base) -> None:
    facts = replace(FACTS, eos=False)
    with start("openai", texts_only=True) as running:
        verified = verify(running.url, facts, adapter_name="facts", concurrency=1)
        refused = running.count("/v1/completions") - len(facts.facts)
    assert verified.report.certified == len(facts.facts)
    assert refused == 1


def test_a_fact_longer_than_the_servers_context_is_refused(start: Start) -> None:
    long = MemorySet((Fact("a" * 100, "b" * 100, "long"),), eos=True, source="test")
    with start("vllm") as running, pytest.raises(DataError, match="'long' has 201 tokens"):
        verify(running.url, long)


class TestVLLM:
    """Which of its ways to give the probability of a token that it did not generate is used."""

    def test_without_adapters_the_probabilities_of_a_text_are_one_request(
        self, start: Start, minds: dict[str, Mind]
    ) -> None:
        with start("vllm", minds={"base": minds["base"]}) as running:
            verified = verify(running.url)
            assert running.count("/v1/completions") == 2 * len(FACTS.facts)
        assert_same(verified.report, recall(minds["base"].base))
        assert verified.unknown == {}

    def test_a_text_that_leaves_no_place_for_a_token_after_it_is_measured_otherwise(
        self, start: Start, minds: dict[str, Mind]
    ) -> None:
        full = MemorySet((Fact("a" * (CONTEXT - 5), "bcde", "full"),), eos=True, source="full")
        with start("vllm", minds={"base": minds["base"]}) as running:
            verified = verify(running.url, full)
        assert_same(verified.report, recall(minds["base"].base, full))
        assert verified.unknown == {}

    def test_probabilities_after_masks_are_not_taken_for_those_of_the_model(
        self, start: Start, minds: dict[str, Mind]
    ) -> None:
        """With `--logprobs-mode processed_logprobs`, a token that alone is allowed has p = 1."""
        with start("vllm", masks_first=True) as running:
            verified = verify(running.url)
        for there, here in zip(verified.report.items, recall(minds["base"].base).items, strict=True):
            hidden = verified.unknown[there.id]
            for position, (told, true) in enumerate(zip(there.tokens.nll, here.tokens.nll, strict=True)):
                assert told == (LN2 if position in hidden else pytest.approx(true, abs=CLOSE))


class TestResuming:
    """Answers are kept as they come, and nothing is asked twice."""

    def test_a_server_that_dies_leaves_its_answers_and_the_next_call_asks_for_the_others(
        self, start: Start, adapted: Base, tmp_path: Path
    ) -> None:
        with start("llama.cpp") as running:

            def die(path: str) -> None:
                running.gone = running.count("/completion") > 2

            running.before = die
            with pytest.raises(UnfinishedError, match="2 of 4 questions were answered. They are kept in"):
                verify(running.url, resume=tmp_path / "answers", adapter_name="facts", concurrency=1)
            running.gone, running.before = False, lambda _path: None
            before = running.asked.copy()
            verified = verify(running.url, resume=tmp_path / "answers", adapter_name="facts", concurrency=1)
            again = running.asked - before
        assert sum(number for asked, number in again.items() if asked.startswith("/completion ")) == 2
        assert_same(verified.report, recall(adapted))

    def test_a_finished_file_is_judged_without_asking(self, start: Start, tmp_path: Path) -> None:
        with start("sglang") as running:
            first = verify(running.url, resume=tmp_path / "answers")
            asked = running.count("/generate")
            assert verify(running.url, resume=tmp_path / "answers") == first
            assert running.count("/generate") == asked

    def test_answers_about_something_else_are_not_mixed_in(self, start: Start, tmp_path: Path) -> None:
        with start("vllm") as running:
            verify(running.url, resume=tmp_path / "answers")
            with pytest.raises(JournalError, match="answers about other facts"):
                verify(running.url, resume=tmp_path / "answers", adapter_name="facts")

    def test_without_a_file_the_error_says_how_to_keep_them(self, start: Start) -> None:
        with start("vllm") as running:

            def refuse(path: str) -> None:
                if path == "/v1/completions":
                    raise Refusal(500)

            running.before = refuse
            with pytest.raises(UnfinishedError, match="Nothing was kept: with --resume FILE"):
                verify(running.url)


class TestRepeats:
    """What differs between repeats is measured, and certificates need more than that."""

    def test_a_server_that_always_says_the_same_flips_nothing(self, start: Start) -> None:
        with start("vllm") as running:
            verified = verify(running.url, adapter_name="facts", repeat=3, concurrency=3)
            assert running.count("/v1/completions") == 3 * len(FACTS.facts)
        assert verified.stability is not None
        assert (verified.stability.repeats, verified.stability.flips) == (3, 0)
        assert verified.stability.difference < CLOSE
        assert verified.report.rounding == verified.stability.difference

    def test_losses_that_differ_raise_the_tolerance_and_thin_margins_lose_their_certificate(self, start: Start) -> None:
        with start("sglang") as running:

            def shift(path: str, content: bytes) -> bytes:
                """Every second answer is less certain by 0.3 nats."""
                if path != "/generate" or running.count("/generate") % 2:
                    return content
                reply = json.loads(content)
                for place in reply["meta_info"]["output_token_logprobs"]:
                    place[0] -= 0.3
                return json.dumps(reply).encode()

            running.spoil = shift
            verified = verify(running.url, MemorySet(FACTS.facts[:1], True, "one"), adapter_name="facts",
                              repeat=2, concurrency=1)  # fmt: skip
        assert verified.stability is not None
        assert verified.stability.difference == pytest.approx(0.3, abs=1e-6)
        assert verified.report.tolerance == pytest.approx(0.6, abs=1e-6)
        assert (verified.report.certified, verified.report.items[0].reason) == (0, "too_thin")

    def test_a_fact_that_comes_back_only_now_and_then_is_not_recalled(
        self, start: Start, minds: dict[str, Mind]
    ) -> None:
        with start("llama.cpp") as running:

            def forget(path: str) -> None:
                """From the second round on, the server answers without its adapter."""
                if path == "/completion" and running.count("/completion") > 1:
                    minds["facts"], minds["base"] = minds["base"], minds["facts"]

            one = MemorySet(FACTS.facts[:1], eos=True, source="one")
            kept = dict(minds)
            running.before = forget
            try:
                verified = verify(running.url, one, adapter_name="facts", repeat=2, concurrency=1)
            finally:
                minds.update(kept)
        assert verified.stability is not None
        assert verified.stability.flips == 1
        assert (verified.report.acc_em, verified.report.items[0].exact) == (0.0, False)


def test_random_targets_need_the_model_and_the_error_says_so() -> None:
    with pytest.raises(ConfigError, match="a server does not show its weights"):
        memlaw.verify("http://127.0.0.1:9", "task:random:tokens=16", tiny.tokenizer())


def test_nothing_listening_is_one_sentence() -> None:
    with pytest.raises(ServerError, match="cannot be reached"):
        verify("http://127.0.0.1:9")
