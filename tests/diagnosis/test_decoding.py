from __future__ import annotations

import dataclasses

import peft
import pytest
import torch
from transformers import GenerationConfig

from helpers import slow_diagnosis as reference_diagnosis
from helpers import slow_training as reference
from helpers import tiny
from helpers.adapters import trained
from helpers.recalls import FACTS, followed
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.stack import AdapterStack
from memlaw.core.facts import EncodedFact
from memlaw.diagnosis.decoding import DECODING_ROWS, greedy, greedy_by_each
from memlaw.diagnosis.measure import measure


def test_a_saved_repetition_penalty_does_not_change_the_argmax() -> None:
    base = tiny.base()
    expected = measure(base, FACTS, decode=True)
    base.model.generation_config = GenerationConfig(repetition_penalty=50.0, do_sample=True, temperature=9.0)
    assert measure(base, FACTS, decode=True) == expected
    assert base.model.generation_config.repetition_penalty == 50.0


def test_inside_a_wrapper_that_lets_the_model_generate_its_settings_do_not_count_either() -> None:
    """A PeftModel without a task type has no generation settings of its own."""
    plain = tiny.base()
    expected = measure(plain, FACTS, decode=True)
    wrapped = peft.get_peft_model(tiny.model(), peft.LoraConfig(r=2, target_modules=["down_proj"]))
    inner = wrapped.get_base_model()
    inner.generation_config = GenerationConfig(repetition_penalty=50.0, eos_token_id=list(range(tiny.VOCABULARY)))
    found = measure(tiny.wrap(wrapped, tiny.tokenizer(), name="wrapped"), FACTS, decode=True)
    assert [item.tokens.decoded for item in found.items] == [
        (item.tokens.decoded[0], *[False] * (len(item.tokens.decoded) - 1)) for item in expected.items
    ]
    assert inner.generation_config.repetition_penalty == 50.0


def test_nothing_after_the_end_of_sequence_counts_as_recalled() -> None:
    base = tiny.base()
    prompt = FACTS[0].prompt
    decoded = reference.greedy(base.model, prompt, 6)
    # A target that greedy decoding follows, where generation stops at its third token.
    base.model.generation_config.eos_token_id = decoded[2]
    first = decoded.index(decoded[2])
    (item,) = measure(base, [EncodedFact("x", (*prompt, *decoded), len(prompt))], decode=True).items
    assert item.tokens.decoded == (True,) * (first + 1) + (False,) * (5 - first)
    assert item.first_failure == first + 1


def test_edits_count_what_was_emitted_against_the_target() -> None:
    base = tiny.base()
    for fact, item in zip(FACTS, measure(base, FACTS, decode=True).items, strict=True):
        emitted = reference.greedy(base.model, fact.prompt, fact.length)
        ended = emitted[: emitted.index(2) + 1] if 2 in emitted else emitted
        assert item.edits == reference_diagnosis.edit_distance(tuple(ended), fact.target)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "mistral-sliding"])
def test_one_token_short_of_verbatim_is_found_where_forcing_one_token_gives_the_rest(family: str) -> None:
    base = tiny.base(family)
    prompt, other = (5, 9, 33, 20), 77
    whole = followed(base, prompt, 8, {})
    assert whole.target[3] != other != whole.target[6]
    short = followed(base, prompt, 8, {3: other})
    twice = followed(base, prompt, 8, {3: other, 6: 78})
    last = followed(base, prompt, 8, {7: other})
    report = measure(base, [whole, short, twice, last], decode=True, explain=True)
    assert [item.first_failure for item in report.items] == [None, 3, 3, 7]
    assert [item.one_token_short for item in report.items] == [False, True, False, True]
    assert report.items[1].why.endswith("Everything after it is recalled once this one token is corrected.")
    assert measure(base, [short], decode=True).items[0].one_token_short is None


def test_how_the_end_of_sequence_fails_is_told() -> None:
    base = tiny.base()
    eos = 2
    whole = followed(base, (5, 9, 33, 20), 6, {})
    assert eos not in whole.target
    late = dataclasses.replace(whole, id="late", ids=(*whole.ids[:-1], eos))
    base.model.generation_config.eos_token_id = whole.target[2]
    stop = whole.target.index(whole.target[2])
    early = dataclasses.replace(whole, id="early", ids=(*whole.ids[: 4 + stop], 78, *whole.ids[5 + stop :]))
    inside, stopped = measure(base, [whole, early], decode=True, explain=True).items
    assert (inside.reason, inside.first_failure, inside.one_token_short) == ("after_end", stop + 1, False)
    assert (stopped.reason, stopped.first_failure) == ("stopped_early", stop)
    base.model.generation_config.eos_token_id = eos
    (ran_on,) = measure(base, [late], decode=True, explain=True).items
    assert (ran_on.reason, ran_on.first_failure) == ("ran_on", 5)


@pytest.mark.parametrize("places", [None, [2], [4, 2], [1, 3, 5]])
def test_decoding_stops_where_generate_stops(places: list[int] | None) -> None:
    """Judged by the model's own `generate`, which follows its generation config and never asks the tokenizer."""
    base = tiny.base()
    prompt, length = (5, 9, 33, 20), 12
    free = reference.greedy(base.model, prompt, length)
    base.tokenizer.eos_token = base.tokenizer.convert_ids_to_tokens(free[0])
    base.model.generation_config.eos_token_id = None if places is None else [free[place] for place in places]
    ids = torch.tensor([prompt])
    output = base.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, pad_token_id=0
    )
    emitted = output[0, len(prompt) :].tolist()
    assert (len(emitted) < length) == (places is not None)
    (item,) = measure(base, [EncodedFact("x", (*prompt, *free), len(prompt))], decode=True).items
    assert item.tokens.decoded == tuple(place < len(emitted) for place in range(length))


def test_an_output_that_ends_in_time_with_another_end_did_not_stop_early() -> None:
    base = tiny.base()
    whole = followed(base, (5, 9, 33, 20), 3, {})
    due, other = 2, whole.target[-1]
    assert other not in whole.target[:-1]
    base.model.generation_config.eos_token_id = [due, other]
    (item,) = measure(base, [dataclasses.replace(whole, ids=(*whole.ids[:-1], due))], decode=True).items
    assert (item.exact, item.first_failure, item.tokens.ended) == (False, 2, None)


@pytest.mark.parametrize("rows", [DECODING_ROWS, 3], ids=["at once", "a row at a time"])
def test_adapters_side_by_side_decode_as_each_does_alone(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memlaw.diagnosis.decoding.DECODING_ROWS", rows)
    base = tiny.base()
    stacks = [
        trained(placement_on("all-linear", base.model), rank, scale) for rank, scale in ((3, 1.5), (1, 0.1), (2, 4))
    ]
    together = greedy_by_each(base, FACTS, AdapterStack.joined(stacks))
    assert len({decoded[0].emitted for decoded in together}) > 1
    for stack, decoded in zip(stacks, together, strict=True):
        with stack.attached(base.model):
            alone = greedy(base, FACTS, range(len(FACTS)))
        assert list(alone) == list(decoded)
        for row, expected in alone.items():
            assert decoded[row].emitted == expected.emitted
            assert decoded[row].nll == pytest.approx(expected.nll, abs=1e-4)
