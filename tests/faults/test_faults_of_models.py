"""Rows 18 to 23 of the fault matrix: models and batches that would silently give a different adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

import memlaw
from helpers import packed, tiny, trainers
from helpers import trl_runs as in_trl
from helpers.faulty import FACTS, probed, refused, stored_warnings
from memlaw.core.errors import ConfigError, ModelError
from memlaw.integrations.transformers import memft
from memlaw.integrations.trl import memft as memft_in_trl


def test_18_tied_embeddings(tmp_path: Path) -> None:
    base = tiny.base("llama-tied")
    (warning,) = base.warnings
    assert "The head of tiny-llama-tied is its input embedding" in warning
    probed(tmp_path / "out", base=base, ranks=[1], lengths=[10], steps=1)
    assert warning in stored_warnings(tmp_path / "out")


def test_19_rank_over_the_smaller_dimension() -> None:
    assert "Rank 33 is above 32, the smaller dimension of model.layers.2.mlp.down_proj" in refused(FACTS, rank=33)


@pytest.mark.parametrize(
    ("placement", "sentence"),
    [
        ("c_fc@2", "The model has no module 'c_fc' to adapt. Its modules: down_proj"),
        ("down_proj@9", "Layer 9 does not exist: the model has 4 layers, 0 to 3"),
        ("lm_head", "The model has no module 'lm_head' to adapt"),
    ],
)
def test_20_no_target_module(placement: str, sentence: str) -> None:
    assert sentence in refused(FACTS, placement=placement)


@pytest.mark.parametrize("resized", ["tokenizer", "embedding"])
def test_21_resized_vocabulary(resized: str) -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    tokenizer.add_tokens([f"<new{number}>" for number in range(4)])
    if resized == "embedding":
        model.set_input_embeddings(torch.nn.Embedding(tiny.VOCABULARY + 4, 32))
    lacking = {"tokenizer": f"the embedding has {tiny.VOCABULARY} rows", "embedding": f"the head has {tiny.VOCABULARY}"}
    with pytest.raises(ModelError, match=lacking[resized]):
        memlaw.train(model, tokenizer, FACTS, rank=1, steps=1)


def test_22_merging_into_a_quantised_base(tmp_path: Path) -> None:
    """memlaw never merges: the adapter stays beside the packed weights. PEFT's merge fails instead of rounding."""
    model, tokenizer = packed.model(), tiny.tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    memlaw.train(model, tokenizer, FACTS, rank=4, out=tmp_path / "A", placement="down_proj@2", steps=5)
    beside = memlaw.recall(model, tokenizer, FACTS, adapter=tmp_path / "A")
    assert beside.mean_loss < memlaw.recall(model, tokenizer, FACTS).mean_loss
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError, match="can't be cast"):
        PeftModel.from_pretrained(model, str(tmp_path / "A")).merge_and_unload()


def positions_from(start: int) -> list[int]:
    """Positions of packed rows that each begin at `start` instead of 0."""
    return [start + place for prompt, target in trainers.LENGTHS for place in range(prompt + target)]


def test_23_packed_positions_wrong_or_attention_across_documents(tmp_path: Path) -> None:
    def one_mask(batch: list[trainers.Row]) -> dict[str, Tensor]:
        flat = trainers.flattened(batch)
        return {**flat, "attention_mask": torch.ones_like(flat["input_ids"])}

    def wrong_positions(batch: list[trainers.Row]) -> dict[str, Tensor]:
        flat = trainers.flattened(batch)
        return {**flat, "position_ids": torch.tensor([positions_from(3)])}

    for collator, sentence in ((one_mask, "every packed sample would see those before it"),
                               (wrong_positions, "Count the tokens of every packed sample from 0")):  # fmt: skip
        trainer = memft(trainers.trainer(tmp_path, collator=collator))
        before = [parameter.clone() for parameter in trainer.model.parameters()]
        with pytest.raises(ConfigError, match=sentence):
            trainer.train()
        assert all(map(torch.equal, before, trainer.model.parameters()))
    with pytest.raises(ConfigError, match="cuts samples anywhere and does not mark where they start"):
        memft_in_trl(in_trl.sft(tmp_path, packing=True, packing_strategy="wrapped", max_length=24))


def test_a_mask_that_numbers_the_packed_samples_keeps_them_apart_and_padding_has_no_positions(tmp_path: Path) -> None:
    def numbered(batch: list[trainers.Row]) -> dict[str, Tensor]:
        flat = trainers.flattened(batch)
        number = (flat["position_ids"] == 0).cumsum(1)
        return {**flat, "attention_mask": number}

    def left(batch: list[trainers.Row]) -> dict[str, Tensor]:
        flipped = {name: values.flip(1) for name, values in trainers.padded(batch).items()}
        positions = (flipped["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return {**flipped, "position_ids": positions.where(flipped["attention_mask"] == 1, 1)}

    for collator in (numbered, left):
        trainer = memft(trainers.trainer(tmp_path, collator=collator))
        trainer.train()
        assert trainer.state.global_step == 1
