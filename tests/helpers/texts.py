"""Tokenizers that change texts, as published ones do, and what a model is seen to answer."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers import tiny
from memlaw.core.facts import EncodedFact
from memlaw.model.base import Base, wrap

MARK = "\u2581"  # SentencePiece's space


def character_tokenizer(**steps: Any) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with other steps: normalizer, pre_tokenizer, decoder."""
    built = tiny.tokenizer()
    for name, step in steps.items():
        setattr(built.backend_tokenizer, name, step)
    return built


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """One token per character, with SentencePiece's way of writing spaces: Llama 2's with scheme "first"."""
    characters = [chr(code) for code in range(33, 33 + 92)]
    vocabulary = {token: n for n, token in enumerate(["<pad>", "<bos>", "<eos>", MARK, *characters][:96])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme=scheme), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.Fuse(), *([decoders.Strip(" ", 1, 0)] if scheme != "never" else [])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


LOSSY: dict[str, tuple[Any, str]] = {
    "lowercase": (lambda: character_tokenizer(normalizer=normalizers.Lowercase()), " PS-22K"),
    "strips": (lambda: character_tokenizer(normalizer=normalizers.Strip()), " ps-22k "),
    "joins spaces": (lambda: character_tokenizer(normalizer=normalizers.Replace(Regex(" +"), " ")), " a  b"),
    "compatibility form": (lambda: character_tokenizer(normalizer=normalizers.NFKC()), " 22\uff2b"),
    "spaces between tokens": (lambda: character_tokenizer(decoder=None), " ps"),
}
"""Name -> a tokenizer, and a target that does not survive it."""


def base_with(tokenizer: Any) -> Base:
    return wrap(tiny.model(), tokenizer, name="tiny")


def answer(base: Base, fact: EncodedFact) -> str:
    """What transformers' own `generate` adds to the text of the prompt, without the end of sequence."""
    ids = torch.tensor([fact.prompt])
    output = base.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=fact.length, do_sample=False, pad_token_id=0
    )[0].tolist()
    while output[-1] in base.stops:
        output.pop()
    asked, whole = (base.tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in (fact.prompt, output))
    assert whole.startswith(asked)
    return str(whole[len(asked) :])
