"""The bundled base is what its card says: it loads offline, and every number is measured again."""

import json
import math
import socket
import string
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.paths import FIXTURES
from memlaw.model.head import FrozenHead, frozen_head
from memlaw.model.reach import Reach, reach_bounds

BASE = Path(str(files("memlaw.model") / "bundled"))

HELD_OUT = FIXTURES / "heldout.txt"


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise AssertionError("The bundled base must load without a network.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(scope="module")
def model(offline: None) -> Any:
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(offline: None) -> Any:
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((BASE / "measured.json").read_text(encoding="utf-8"))
    return numbers


@pytest.fixture(scope="module")
def head(model: Any) -> FrozenHead:
    return frozen_head(model)


@pytest.fixture(scope="module")
def bounds(head: FrozenHead) -> Reach:
    return reach_bounds(head)


def test_everything_together_is_at_most_12_megabytes() -> None:
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 12_000_000


def test_no_weights_but_safetensors() -> None:
    kinds = {path.suffix for path in BASE.iterdir()}
    assert kinds <= {".safetensors", ".json", ".jinja", ".md"}


def test_it_is_the_model_the_card_describes(model: Any, measured: dict[str, Any]) -> None:
    recipe = measured["recipe"]
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert sum(p.numel() for p in model.parameters()) == measured["parameters"]
    assert 2_000_000 <= measured["parameters"] <= 5_000_000
    assert model.config.vocab_size == recipe["vocabulary"] == 1024
    assert model.config.num_hidden_layers == recipe["layers"]
    assert model.config.max_position_embeddings >= 1024
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_held_out_perplexity_is_the_one_in_the_card(model: Any, tokenizer: Any, measured: dict[str, Any]) -> None:
    window = measured["heldout"]["window"]
    ids = tokenizer(HELD_OUT.read_text(encoding="utf-8"), verbose=False)["input_ids"]
    assert len(ids) == measured["heldout"]["tokens"]
    total = 0.0
    rows = torch.tensor(ids).unfold(0, window + 1, window)
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=row[None, :-1]).logits[0]
            total += cross_entropy(logits, row[1:]).item()
    assert math.exp(total / len(rows)) == pytest.approx(measured["heldout"]["perplexity"], rel=0.01)


def test_the_card_shows_the_measured_numbers(measured: dict[str, Any]) -> None:
    card = (BASE / "README.md").read_text(encoding="utf-8")
    reach = measured["reach"]
    for shown in (
        f"{measured['parameters']:,} parameters",
        f"{measured['training']['tokens']:,} tokens",
        f"{measured['heldout']['perplexity']:.2f} per token",
        f"| reach > 0.5 | {reach['above_0.5']} tokens",
        f"| reach > 0.9 | {reach['above_0.9']} tokens",
        f"| smallest reach of a digit | {reach['digits_min']:.4f} |",
        "Python Software Foundation",
    ):
        assert shown in card


@pytest.mark.parametrize("text", ["9100672710", "x1=23", " 4 05", "1e-06\n7", "v3.11.7"])
def test_every_digit_is_a_token_of_its_own(tokenizer: Any, text: str) -> None:
    tokens = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
    assert [token for token in tokens if any(c.isdigit() for c in token)] == [c for c in text if c.isdigit()]


def test_no_token_holds_a_digit_and_something_else(tokenizer: Any) -> None:
    for token in tokenizer.get_vocab():
        assert len(token) == 1 or not any(c in string.digits for c in token)


@pytest.mark.parametrize(
    "text",
    ["", " ", "def f(x):\n    return x\n", "a  b\r\n\t\x00\u2028", "é ½ \uff11\uff12 名前 😀", "e\u0301 ﬁ"],
)
def test_any_text_comes_back_byte_for_byte(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens(tokenizer: Any, model: Any) -> None:
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.bos_token is None
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert tokenizer.pad_token_id == model.config.pad_token_id
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer("a<|endoftext|>")["input_ids"][-1] == tokenizer.eos_token_id


def test_the_chat_template_ends_each_answer(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == ("User: 2 + 2?\nAssistant: 4<|endoftext|>")
    asked = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "User: 2 + 2?\nAssistant: "


def test_the_stored_reach_is_the_measured_one(bounds: Reach, measured: dict[str, Any]) -> None:
    stored = load_file(BASE.with_name("bundled_reach") / "reach.safetensors")
    torch.testing.assert_close(stored["reach"], bounds.lower, atol=1e-3, rtol=0)
    torch.testing.assert_close(stored["upper"], bounds.upper, atol=1e-3, rtol=0)
    for line in (0.5, 0.9, 0.98):
        assert int((stored["reach"] > line).sum()) == measured["reach"][f"above_{line}"]
    assert int((stored["upper"] <= 0.5).sum()) == measured["reach"]["proven_unreachable"]


def test_every_safetensors_file_beside_the_weights_holds_weights(model: Any) -> None:
    """vLLM loads all of them, whatever their names."""
    held = [name for file in BASE.glob("*.safetensors") for name in load_file(file)]
    assert sorted(held) == sorted(model.state_dict())


def test_targets_can_be_drawn_from_at_least_512_tokens(bounds: Reach) -> None:
    assert int((bounds.lower > 0.9).sum()) >= 512


def test_every_digit_and_the_end_token_can_be_reached(bounds: Reach, tokenizer: Any, measured: dict[str, Any]) -> None:
    digits = bounds.lower[tokenizer.convert_tokens_to_ids(list(string.digits))]
    end = bounds.lower[tokenizer.eos_token_id]
    assert digits.min() > 0.9
    assert end > 0.9
    assert digits.min().item() == pytest.approx(measured["reach"]["digits_min"], abs=1e-3)
    assert end.item() == pytest.approx(measured["reach"]["eos"], abs=1e-3)


def test_every_printable_ascii_character_can_be_reached(
    bounds: Reach, tokenizer: Any, measured: dict[str, Any]
) -> None:
    single = [tokenizer(c)["input_ids"] for c in ["\n", *map(chr, range(32, 127))]]
    assert {len(ids) for ids in single} == {1}
    smallest = bounds.lower[torch.tensor(single)].min().item()
    assert smallest > 0.9
    assert smallest == pytest.approx(measured["reach"]["ascii_min"], abs=1e-3)


def test_a_tab_cannot_be_recalled_and_the_bound_proves_it(bounds: Reach, tokenizer: Any) -> None:
    # The card says so; a linter needs one such token to find.
    for text in ("\t", "\u00e9"):
        ids = tokenizer(text)["input_ids"]
        assert bounds.upper[ids].min() <= 0.5


def test_no_hidden_state_beats_the_reach_and_one_attains_it(model: Any, bounds: Reach) -> None:
    # What an adapter can do at best is to put any vector at all in front of the final norm. Train
    # that vector itself, with another optimizer, for tokens from the least to the most reachable.
    tokens = bounds.lower.argsort()[:: len(bounds.lower) // 40]
    torch.manual_seed(0)
    hidden = torch.randn(len(tokens), model.config.hidden_size, requires_grad=True)
    optimizer = torch.optim.Adam([hidden], lr=0.1)
    for _ in range(600):
        nll = cross_entropy(model.lm_head(model.model.norm(hidden)), tokens, reduction="none")
        optimizer.zero_grad()
        nll.sum().backward()
        optimizer.step()
    attained = (-nll.detach()).exp()
    assert (attained <= bounds.upper[tokens] + 1e-4).all()
    torch.testing.assert_close(attained, bounds.lower[tokens], atol=5e-3, rtol=0)
