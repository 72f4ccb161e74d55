"""Small real tokenizers for the tests of data and tasks, and a slow plain definition to compare the fast code with."""

from __future__ import annotations

import string
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from memlaw.core.facts import EncodedFact

TEXT = """The quick brown fox jumps over the lazy dog, and the register of the city lists each name with its number.
Please output the content of the vector memory injected into the activations. Answer: the answer is the answer.
"""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_level(*, bos: bool = False, eos: bool = True, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits and a few merges, like the real ones; `bos` prepends <s> as Llama's does."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([TEXT], trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>"} | ({"eos_token": "</s>"} if eos else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.chat_template = chat_template
    return tokenizer


def letters(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per letter, case folded, all else dropped: different texts can give the same tokens, or none."""
    vocabulary = {token: number for number, token in enumerate(["</s>", "<s>", *string.ascii_lowercase])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.normalizer = normalizers.Lowercase()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def contradict(encoded: Iterable[EncodedFact]) -> bool:
    """Whether some context must be followed by two different tokens, or two equal prompts have different targets."""
    required: dict[tuple[int, ...], int] = {}
    targets: dict[tuple[int, ...], tuple[int, ...]] = {}
    for fact in encoded:
        if targets.setdefault(fact.prompt, fact.target) != fact.target:
            return True
        for position in range(fact.prompt_length, len(fact.ids)):
            if required.setdefault(fact.ids[:position], fact.ids[position]) != fact.ids[position]:
                return True
    return False
