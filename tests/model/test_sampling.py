"""Text sampled from a base: by definition, repeatable, kept, and refused where there is nothing to start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import tiny
from memlaw.core.errors import ConfigError, ModelError
from memlaw.model import sampling
from memlaw.model.base import Base
from memlaw.model.sampling import sampled, start_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMLAW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "samples"


def spread(family: str = "qwen3") -> Base:
    """A base whose next token is anything but certain."""
    base = tiny.base(family)
    with torch.no_grad():
        base.model.get_output_embeddings().weight.mul_(0.05)
    return replace(base, fingerprint=f"spread {family}")


@torch.no_grad()
def sampled_slowly(base: Base, rows: int, tokens: int, seed: int) -> Tensor:
    """Token by token without a cache: the first token whose cumulative probability exceeds a uniform number."""
    uniform = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ids = torch.full((rows, 1), base.tokenizer.bos_token_id)
    for step in range(tokens):
        p = base.model(input_ids=ids, use_cache=False).logits[:, -1].double().softmax(-1)
        passed = p.cumsum(-1) > uniform[:, step, None]
        ids = torch.cat([ids, passed.int().argmax(-1, keepdim=True)], 1)
    return ids


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gpt2", "mistral-sliding"])
def test_each_token_is_drawn_from_all_before_it(family: str) -> None:
    base = spread(family)
    ids = sampled(base, 12, 20, seed=3)
    assert torch.equal(ids, sampled_slowly(base, 12, 20, 3))
    assert len(set(map(tuple, ids.tolist()))) == 12


def test_drawn_in_parts_or_at_once_it_is_the_same(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    at_once = sampled(spread(), 7, 9, seed=0)
    for file in cache.iterdir():
        file.unlink()
    monkeypatch.setattr(sampling, "_LOGITS", 2 * tiny.VOCABULARY)
    assert torch.equal(sampled(spread(), 7, 9, seed=0), at_once)


def test_the_first_rows_of_a_larger_sample_are_those_of_a_smaller() -> None:
    base = spread()
    assert torch.equal(sampled(base, 9, 6, seed=1)[:4], sampled(base, 4, 6, seed=1))


def test_tokens_come_as_often_as_their_probability_says() -> None:
    base = spread()
    first = sampled(base, 4000, 1, seed=5)[:, 1]
    with torch.no_grad():
        p = base.model(torch.tensor([[base.tokenizer.bos_token_id]])).logits[0, -1].softmax(-1)
    seen = torch.bincount(first, minlength=tiny.VOCABULARY) / 4000
    assert ((seen - p).abs() < 5 * (p * (1 - p) / 4000).sqrt() + 1e-9).all()


def test_generation_defaults_of_the_model_change_nothing() -> None:
    base = spread()
    plain = sampled(base, 4, 8, seed=2)
    base.model.generation_config.update(temperature=0.1, top_k=1, do_sample=True, repetition_penalty=5.0)
    assert torch.equal(sampled(replace(base, fingerprint="with defaults"), 4, 8, seed=2), plain)


def test_a_second_call_reads_what_the_first_kept(cache: Path) -> None:
    base = spread()
    ids = sampled(base, 3, 5, seed=0)
    assert len(list(cache.iterdir())) == 1
    with torch.no_grad():
        base.model.get_output_embeddings().weight.mul_(-1)  # it would write otherwise now
    assert torch.equal(sampled(base, 3, 5, seed=0), ids)
    assert not torch.equal(sampled(replace(base, fingerprint="another"), 3, 5, seed=0), ids)
    assert not torch.equal(sampled(base, 3, 5, seed=1), ids)


def test_a_damaged_file_is_told_of_and_written_again(cache: Path) -> None:
    base = spread()
    ids = sampled(base, 3, 5, seed=0)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.warns(UserWarning, match="The cached samples .* are damaged"):
        assert torch.equal(sampled(base, 3, 5, seed=0), ids)
    assert torch.equal(sampled(base, 3, 5, seed=0), ids)


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMLAW_CACHE", str(tmp_path / "file"))
    assert sampled(spread(), 2, 3, seed=0).shape == (2, 4)


def test_it_starts_from_the_beginning_of_sequence_or_else_from_the_end() -> None:
    base = tiny.base()
    assert start_of(base) == sampling.Start(1, "bos")
    base.tokenizer.bos_token = None
    assert start_of(base) == sampling.Start(2, "eos")
    base.tokenizer.eos_token = None
    assert start_of(base) == sampling.Start(2, "eos")  # the one of the generation config
    base.model.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match="neither a beginning nor an end of sequence"):
        sampled(base, 1, 1, seed=0)


@pytest.mark.parametrize(("rows", "tokens"), [(0, 5), (5, 0), (1, 128)])
def test_an_impossible_shape_is_refused(rows: int, tokens: int) -> None:
    with pytest.raises(ConfigError, match="at least one|at most 127"):
        sampled(tiny.base(), rows, tokens, seed=0)


def test_the_whole_context_can_be_sampled() -> None:
    assert sampled(spread(), 1, 127, seed=0).shape == (1, 128)
