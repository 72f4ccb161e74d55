"""`memlaw check` on small real models and tokenizers: every rule finds what it is for, and is silent elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_data import CHAT_TEMPLATE, byte_level, contradict, letters
from safetensors.torch import load_file, save_file

import memlaw
from memlaw.adapter import files, parse_placement
from memlaw.data import encode
from memlaw.errors import AdapterError, ConfigError, DataError
from memlaw.findings import CheckReport, Finding
from memlaw.laws import KnownLaw, Use, nearest
from memlaw.lint import check, check_on
from memlaw.lint.keys import key_findings
from memlaw.lint.model import BARELY
from memlaw.lint.tokens import encodable
from memlaw.model import Base, load, wrap
from memlaw.plan import default_law
from memlaw.planning import plan_for
from memlaw.reach import frozen_head, reach
from memlaw.records import Fact, MemorySet

SECRET = "hunter"

LAW = KnownLaw(default_law())

GOOD = [("Code of door A:", "4917#"), ("Code of door B:", "0286#"), ("Password of the archive:", "hunter2")]


def facts(*pairs: tuple[str, str], eos: bool = True) -> MemorySet:
    return MemorySet(tuple(Fact(q, a, str(n)) for n, (q, a) in enumerate(pairs, start=1)), eos, "test")


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base()


def other_base(tokenizer: Any) -> Base:
    return wrap(tiny.model(vocab_size=340), tokenizer)


def found(report: CheckReport, code: str) -> list[Finding]:
    """The findings of one rule; none of any rule repeats a target."""
    assert SECRET not in json.dumps(report.to_dict())
    return [finding for finding in report.findings if finding.code == code]


def the_one(report: CheckReport, code: str) -> Finding:
    (finding,) = found(report, code)
    return finding


def test_good_facts_have_no_findings(base: Base) -> None:
    report = check_on(base, facts(*GOOD))
    assert report == CheckReport(records=3, tokens=3 + sum(len(target) for _, target in GOOD), findings=())


def test_from_python_and_from_a_file_it_is_the_same(base: Base, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in [*GOOD, ("code of door A:", "x")])
    )
    by_file = memlaw.check(base.model, base.tokenizer, path)
    assert by_file == check_on(base, facts(*GOOD, ("code of door A:", "x")))
    assert [finding.code for finding in by_file.findings] == ["near-duplicate"]


def test_the_gravest_come_first_and_one_fault_hides_no_other(base: Base) -> None:
    report = check_on(base, facts(("a", "x" * 200), ("A ", "\u20ac"), ("c", "<eos>z"), eos=True))
    assert [(f.severity, f.code, f.record) for f in report.findings] == [
        ("error", "too-long", "1"),
        ("error", "unknown-token", "2"),
        ("error", "eos-inside", "3"),
        ("warning", "near-duplicate", "2"),
    ]
    assert report.counts == {"error": 3, "warning": 1, "info": 0}


def test_facts_that_cannot_be_read_stay_errors(base: Base, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        check(base.model, base.tokenizer, tmp_path / "none.jsonl")


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_fact_longer_than_the_context_names_both_numbers(base: Base) -> None:
    finding = the_one(check_on(base, facts(("ab", "x" * 126), ("cd", "y" * 125))), "too-long")
    assert (finding.record, finding.severity) == ("1", "error")
    assert "has 129 tokens (2 of its prompt, 127 of its target), but the context of the model is 128" in finding.message


def test_end_of_sequence_that_is_not_stored_is_told_and_for_one_long_target_only_mentioned(base: Base) -> None:
    assert the_one(check_on(base, facts(*GOOD, eos=False)), "no-eos").severity == "warning"
    assert the_one(check_on(base, facts(GOOD[0], eos=False)), "no-eos").severity == "info"


def test_a_tokenizer_without_end_of_sequence_or_padding() -> None:
    base = other_base(byte_level(eos=False))
    finding = the_one(check_on(base, facts(*GOOD)), "no-eos-token")
    assert finding.severity == "error"
    assert "--no-eos" in finding.fix
    assert not found(check_on(base, facts(*GOOD, eos=False)), "no-eos-token")
    assert the_one(check_on(base, facts(*GOOD)), "no-pad-token").severity == "info"


def test_padding_with_the_end_of_sequence_loses_it_in_other_trainers() -> None:
    tokenizer = byte_level()
    tokenizer.pad_token = tokenizer.eos_token
    report = check_on(other_base(tokenizer), facts(*GOOD))
    assert "leaves the end of every target out too" in the_one(report, "pad-is-eos").message


def test_end_of_sequence_inside_a_target_names_where_decoding_stops(base: Base) -> None:
    finding = the_one(check_on(base, facts(("a", "hunter<eos>2"))), "eos-inside")
    assert finding.positions == (6,)
    assert "first at position 6 of 9" in finding.message
    at_the_end = the_one(check_on(base, facts(("a", "hunter<eos>"))), "eos-inside")
    assert at_the_end.positions == (6,)
    assert not found(check_on(base, facts(("a", "hunter<eos>"), eos=False)), "eos-inside")


def test_characters_the_tokenizer_does_not_know_are_lost(base: Base) -> None:
    finding = the_one(check_on(base, facts(("a", "1\u20ac2\u20ac"))), "unknown-token")
    assert finding.positions == (1, 3)
    assert "2 of the 5 tokens of its target are the tokenizer's unknown token, first at position 1" in finding.message


def test_a_prompt_or_target_without_tokens() -> None:
    base = other_base(letters())
    report = check_on(base, facts(("abc", "123"), ("456", "abc"), ("ab", "cd")))
    assert [(f.record, f.message.split()[1]) for f in found(report, "no-tokens")] == [("1", "target"), ("2", "prompt")]
    assert (report.records, report.tokens) == (3, 3)
    assert check_on(base, facts(("123", "abc"))).tokens == 0


def test_a_start_that_others_will_double_is_a_warning_and_one_doubled_in_the_text_an_error() -> None:
    base = other_base(byte_level(bos=True))
    report = check_on(base, facts(("<s>ask", "a"), ("<s><s>demand", "b"), ("plain", "c")))
    assert [(f.record, f.severity) for f in found(report, "doubled-bos")] == [("2", "error"), ("1", "warning")]
    unadded = check_on(other_base(byte_level()), facts(("<s>ask", "a"), ("plain", "c")))
    assert not found(unadded, "doubled-bos")


def test_a_merge_across_the_border_is_found_once_also_where_reading_has_warned_of_it(tmp_path: Path) -> None:
    base = other_base(byte_level())
    report = check_on(base, facts(("say t", "he"), ("say", " the")))
    assert the_one(report, "border-merge").record == "1"
    path = tmp_path / "facts.jsonl"
    rows = [{"prompt": "say t", "completion": "he"}, {"prompt": "say", "completion": " it"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[1]]))
    report = check(base.model, base.tokenizer, path)
    assert the_one(report, "border-merge").record == "1"
    assert the_one(report, "reading").message.startswith("Dropped 1 identical repetitions")


# --- chats -----------------------------------------------------------------------------------------------------------

CHAT = "chat-template-mismatch"


@pytest.fixture(scope="module")
def chatting() -> Base:
    return other_base(byte_level(chat_template=CHAT_TEMPLATE))


def test_raw_prompts_for_a_model_that_chats_are_one_warning(chatting: Base, base: Base) -> None:
    finding = the_one(check_on(chatting, facts(*GOOD)), CHAT)
    assert (finding.severity, finding.record) == ("warning", None)
    assert not found(check_on(base, facts(*GOOD)), CHAT)


def test_prompts_in_the_template_are_as_they_should_be(chatting: Base, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Code?"}, {"role": "assistant", "content": "4917"}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    assert not found(check(chatting.model, chatting.tokenizer, path), CHAT)


def test_raw_prompts_among_templated_ones_are_named(chatting: Base) -> None:
    report = check_on(chatting, facts(("<s><user>Code?</s><assistant>", "1"), ("Name?", "2"), ("Place?", "3")))
    assert [(f.record, f.severity) for f in found(report, CHAT)] == [("2", "warning"), ("3", "warning")]


def test_another_models_template_is_an_error_with_and_without_a_template_of_ones_own(
    chatting: Base, base: Base
) -> None:
    foreign = facts(("[INST] Code? [/INST]", "4917"))
    for judged in (chatting, base):
        finding = the_one(check_on(judged, foreign), CHAT)
        assert (finding.severity, finding.record) == ("error", "1")
        assert "[INST]" in finding.message


def test_a_template_that_refuses_the_question_says_nothing(chatting: Base) -> None:
    tokenizer = byte_level(chat_template="{{ raise_exception('never') }}")
    assert not found(check_on(other_base(tokenizer), facts(*GOOD)), CHAT)


def test_a_template_without_a_generation_prompt_is_known_by_the_end_of_the_question() -> None:
    base = other_base(byte_level(chat_template="{% for m in messages %}[{{ m['content'] }}] {% endfor %}"))
    assert not found(check_on(base, facts(("[Code?] ", "4917"))), CHAT)
    assert found(check_on(base, facts(("Code? ", "4917"))), CHAT)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_prompts_that_become_the_same_tokens_collide_or_repeat() -> None:
    report = check_on(other_base(letters()), facts(("abc", "x"), ("A b C!", "y"), ("ABC", "X")))
    assert the_one(report, "same-prompt").record == "2"
    assert "the same 3 tokens as that of fact '1'" in the_one(report, "same-prompt").message
    assert (the_one(report, "repeated-fact").record, the_one(report, "repeated-fact").severity) == ("3", "info")


def test_a_prompt_that_runs_through_another_facts_target_collides_unless_they_agree(base: Base) -> None:
    collision = the_one(check_on(base, facts(("ab", "cd"), ("abc", "x"))), "prefix-collision")
    assert (collision.record, collision.severity) == ("2", "error")
    assert "fact '1'" in collision.message
    agreeing = check_on(base, facts(("ab", "cd"), ("abc", "d")))
    assert not found(agreeing, "prefix-collision")
    assert (the_one(agreeing, "prefix-prompt").record, the_one(agreeing, "prefix-prompt").severity) == ("2", "warning")


def test_prompts_alike_but_for_case_and_space_name_the_earlier_one(base: Base) -> None:
    report = check_on(base, facts(("Code of A:", "1"), ("Code  of a:", "2"), ("Code of B:", "3")))
    finding = the_one(report, "near-duplicate")
    assert (finding.record, finding.severity) == ("2", "warning")
    assert "fact '1'" in finding.message


WORDS = st.text("ab", min_size=1, max_size=3)


@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5), eos=st.booleans())
def test_a_collision_is_found_exactly_where_encoding_would_refuse(pairs: list[tuple[str, str]], eos: bool) -> None:
    tokenizer, memory_set = letters(), facts(*pairs, eos=eos)
    one_by_one = encodable(memory_set, tokenizer)
    collisions = [finding for finding in key_findings(memory_set, one_by_one) if finding.severity == "error"]
    assert bool(collisions) == contradict(one_by_one)
    try:
        encode(memory_set, tokenizer, context=None)
    except DataError:
        assert collisions
    else:
        assert not collisions


# --- the head --------------------------------------------------------------------------------------------------------


def with_row(row: torch.Tensor, token: int) -> Base:
    model = tiny.model()
    with torch.no_grad():
        model.get_output_embeddings().weight[token] = row
    return wrap(model, tiny.tokenizer())


def test_tokens_no_adapter_can_order_are_named_by_position(base: Base) -> None:
    (token,) = base.tokenizer.encode("z", add_special_tokens=False)
    judged = with_row(torch.zeros(32), token)  # its logit is 0 whatever the hidden state, and some other's is above
    finding = the_one(check_on(judged, facts(("a", "xzyz"), ("b", "xy"))), "unreachable-token")
    assert (finding.record, finding.severity, finding.positions) == ("1", "error", (1, 3))
    assert "2 of its 5 target tokens (first at position 1)" in finding.message
    assert "Word the target otherwise" in finding.fix
    assert not found(check_on(base, facts(("a", "xzyz"))), "unreachable-token")


def test_a_token_just_above_one_half_is_a_warning(base: Base) -> None:
    (token,) = base.tokenizer.encode("z", add_special_tokens=False)
    direction = base.model.get_output_embeddings().weight[token].detach()
    low, high = 0.0, 1.0
    for _ in range(30):  # the shorter its row, the less of the probability a token can have
        middle = (low + high) / 2
        judged = with_row(middle * direction, token)
        attained = float(reach(frozen_head(judged.model), [token])[0])
        if 0.51 < attained < BARELY - 0.01:
            break
        low, high = (middle, high) if attained < 0.51 else (low, middle)
    finding = the_one(check_on(judged, facts(("a", "xz"))), "barely-reachable")
    assert (finding.severity, finding.positions) == ("warning", (1,))


def test_a_head_of_no_known_form_is_said_and_the_rest_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = tiny.base()
    judged.model.model.norm = torch.nn.Sequential(judged.model.model.norm, torch.nn.Tanh())
    report = check_on(judged, facts(("a", "x"), ("A", "y")))
    assert the_one(report, "reach-unknown").severity == "info"
    assert found(report, "near-duplicate")


def test_a_tied_head_is_said() -> None:
    finding = the_one(check_on(tiny.base("llama-tied"), facts(*GOOD)), "base")
    assert "its input embedding" in finding.message


# --- an adapter ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lint") / "A"
    memlaw.train(base.model, base.tokenizer, facts(*GOOD), rank=32, steps=3, until="budget", out=out)
    return out


def codes(report: CheckReport) -> set[str]:
    assert SECRET not in json.dumps(report.to_dict())
    return {finding.code for finding in report.findings}


def test_an_adapter_in_order_has_no_findings_and_one_of_other_facts_is_told(base: Base, adapter: Path) -> None:
    assert codes(check_on(base, facts(*GOOD), adapter=adapter)) == set()
    report = check_on(base, facts(*GOOD, eos=False), adapter=adapter)
    assert codes(report) == {"no-eos", "adapter-of-other-facts"}


def test_an_adapter_of_another_base_is_a_finding(adapter: Path) -> None:
    finding = the_one(check_on(tiny.base(seed=1), facts(*GOOD), adapter=adapter), "adapter-of-another-base")
    assert finding.severity == "error"
    assert "tiny-qwen3" in finding.message


def peft_adapter(source: Path, copy: Path, *, scaled: float) -> Path:
    """The adapter as PEFT alone would have written it, B multiplied by `scaled`."""
    copy.mkdir()
    (copy / files.PEFT_CONFIG).write_text((source / files.PEFT_CONFIG).read_text())
    tensors = {
        name: tensor * scaled if "lora_B" in name else tensor
        for name, tensor in load_file(source / files.WEIGHTS).items()
    }
    save_file(tensors, copy / files.WEIGHTS, metadata={"format": "pt"})
    return copy


def test_an_adapter_that_changes_nothing_is_an_error(base: Base, adapter: Path, tmp_path: Path) -> None:
    zero = peft_adapter(adapter, tmp_path / "zero", scaled=0.0)
    finding = the_one(check_on(base, facts(*GOOD), adapter=zero), "adapter-is-zero")
    assert finding.severity == "error"
    alive = peft_adapter(adapter, tmp_path / "alive", scaled=1.0)
    assert codes(check_on(base, facts(*GOOD), adapter=alive)) == set()


def test_a_directory_that_is_no_adapter_stays_an_error(base: Base, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="There is no adapter directory"):
        check_on(base, facts(*GOOD), adapter=tmp_path / "none")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(AdapterError, match="a pickle that could run code"):
        check_on(base, facts(*GOOD), adapter=tmp_path)


# --- a rank ----------------------------------------------------------------------------------------------------------


def many(count: int) -> MemorySet:
    """Ten tokens each, the end of sequence among them."""
    return facts(*[(f"key {n:03}:", f"{7919 * n % 10**9:09}") for n in range(count)])


def borrowed(use: Use) -> KnownLaw:
    """The law where nothing nearer is known."""
    return nearest((), use)


def test_a_rank_under_the_laws_interval_is_a_warning_inside_it_a_remark_above_it_nothing() -> None:
    base = load()
    plan = plan_for(base, encode(many(300), base.tokenizer, context=None), parse_placement(None, base.model), borrowed)
    assert plan.rank.value is not None
    assert plan.rank.low is not None
    assert 2 <= plan.rank.low < plan.rank.value
    low = the_one(check_on(base, many(300), rank=plan.rank.low - 1), "rank-too-small")
    assert low.severity == "warning"
    assert f"At down_proj@4 the law asks for rank {plan.rank.value} (95%: {plan.rank.low} to" in low.message
    assert f"3,000 target tokens, and the rank is {plan.rank.low - 1}. The law is borrowed" in low.message
    assert f"rank {plan.rank.value} or" in low.fix
    remark = the_one(check_on(base, many(300), rank=plan.rank.value - 1, law=LAW), "rank-too-small")
    assert remark.severity == "info"
    assert not found(check_on(base, many(300), rank=plan.rank.value), "rank-too-small")


def test_a_set_that_no_rank_holds_is_told_with_the_ways_out(base: Base) -> None:
    finding = the_one(check_on(base, many(600), rank=16, placement="k_proj@3"), "no-rank-fits")
    assert finding.severity == "warning"
    assert "No rank up to 16" in finding.message
    assert "split" in finding.fix


def test_a_set_that_the_law_only_doubts_is_a_remark(base: Base) -> None:
    where = parse_placement("k_proj@3", base.model)
    plan = plan_for(base, encode(many(3), base.tokenizer, context=None), where, borrowed)
    assert plan.rank.value is None
    assert plan.rank.low is not None
    assert 1 < plan.rank.low < 16
    for rank, severity in ((plan.rank.low, "info"), (plan.rank.low - 1, "warning")):
        finding = the_one(check_on(base, many(3), rank=rank, placement="k_proj@3"), "no-rank-fits")
        assert finding.severity == severity


def test_the_rank_of_an_adapter_is_judged_at_its_placement(base: Base, tmp_path: Path) -> None:
    once = {"rank": 1, "steps": 2, "until": "budget", "placement": "all-linear"}
    memlaw.train(base.model, base.tokenizer, many(40), out=tmp_path / "A", **once)
    report = check_on(base, many(40), adapter=tmp_path / "A", law=LAW)
    assert "At all-linear" in the_one(report, "rank-too-small").message


def test_a_rank_that_is_none_here_is_refused(base: Base) -> None:
    with pytest.raises(AdapterError, match="Rank 33 is above 32"):
        check_on(base, facts(*GOOD), rank=33)


def test_a_law_without_a_rank_to_judge_is_refused(base: Base) -> None:
    with pytest.raises(ConfigError, match="A law judges a rank, and none was given"):
        check_on(base, facts(*GOOD), law=LAW)


def test_facts_beyond_the_context_do_not_keep_the_rank_from_being_judged(base: Base) -> None:
    with_long = replace(many(60), facts=(*many(60).facts, Fact("long", "x" * 300, "long")))
    report = check_on(base, with_long, rank=1)
    assert {"too-long", "no-rank-fits"} <= codes(report)
    assert "600 target tokens" in the_one(report, "no-rank-fits").message
