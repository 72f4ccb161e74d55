"""Train the bundled base: tokenizer, weights, reach table, measurements and model card, in one run.

    python scripts/train_base.py [--out src/memlaw/model/bundled] [--heldout tests/fixtures/heldout.txt]

The text is the standard library of the running interpreter, cut into many short documents so that the end of a document
is learned as well as any other token. One thread, one seed: the same interpreter, library versions and machine give the
same weights. The model is for tests and examples, which need a language model but not a good one.
"""

import argparse
import ast
import itertools
import json
import math
import os
import platform
import random
import string
import sys
import sysconfig
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from memlaw.model.head import frozen_head
from memlaw.model.reach import Reach, reach_bounds

EOS = "<|endoftext|>"
PAD = "<|pad|>"

SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "lib2to3",  # fixtures in many dialects
    "encodings",  # 1.4 MB of code tables
    "pydoc_data",  # one escaped string
}
HELD_OUT = ("colorsys.py", "fractions.py", "heapq.py", "shlex.py", "textwrap.py")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].capitalize() + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights, besides the text."""

    vocabulary: int = 1024
    width: int = 160
    layers: int = 6
    feed_forward: int = 480
    head_width: int = 32
    context: int = 2048
    """Positions that the configuration allows; training sees `window` of them."""
    window: int = 256
    """Tokens per training row."""
    batch: int = 8
    """Rows per step: few, since the time of a step on one core is proportional to its tokens."""
    steps: int = 2800
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW: linear warm-up over `warm_up` steps, then linear decay to zero."""
    head_learning_rate: float = 6e-3
    """Of the head and final norm, which have no weight decay: large rows make tokens reachable."""
    warm_up: int = 100
    weight_decay: float = 0.1
    """Of the matrices in the decoder layers; all else has none."""
    initial_std: float = 0.05
    digit_share: float = 0.06
    """Seeded lines of digits, as a share of the library's documents, which have too few digits."""
    longest_document: int = 1200
    """Characters; longer pieces are cut at blank lines."""
    seed: int = 42


# Text


def library_files(root: Path) -> Iterator[Path]:
    """The library's Python files in a fixed order, without tests and tables."""
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if not SKIPPED_FOLDERS.intersection(folders) and not any(folder.startswith("config-") for folder in folders):
            yield path


def documents(path: Path, longest: int) -> Iterator[str]:
    """Cut one source file into the pieces before, in and between its functions.

    A file that is not UTF-8 or not valid Python gives none.
    """
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (UnicodeDecodeError, SyntaxError):
        return
    lines = source.splitlines(keepends=True)
    cuts = sorted({0, len(lines), *definition_starts(tree)})
    for start, stop in itertools.pairwise(cuts):
        piece = textwrap.dedent("".join(lines[start:stop])).strip("\n")
        yield from shorter_pieces(piece.expandtabs(), longest)


def definition_starts(tree: ast.Module) -> Iterator[int]:
    """Lines, from 0, where a top-level definition or a method of a top-level class begins."""
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else []
        for definition in (node, *inner):
            if isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = definition.decorator_list[0] if definition.decorator_list else definition
                yield first.lineno - 1


def shorter_pieces(piece: str, longest: int) -> Iterator[str]:
    """Cut `piece` at blank lines into parts of at most `longest` characters; a longer paragraph stays whole."""
    part = ""
    for paragraph in piece.split("\n\n"):
        if part and len(part) + len(paragraph) > longest:
            yield part.strip("\n")
            part = ""
        part = f"{part}\n\n{paragraph}" if part else paragraph
    if part.strip():
        yield part.strip("\n")


def library_text(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Distinct training documents and held-out documents from the interpreter's library."""
    root = Path(sysconfig.get_path("stdlib"))
    training: dict[str, None] = {}
    held_out: dict[str, None] = {}
    for path in library_files(root):
        side = held_out if path.relative_to(root).as_posix() in HELD_OUT else training
        side.update(dict.fromkeys(documents(path, recipe.longest_document)))
    return [text for text in training if text not in held_out], list(held_out)


def digit_lines(count: int, seed: int) -> list[str]:
    """Seeded lines such as `4937105528` or `kesat: 20815`, which teach digits and when to stop."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        digits = "".join(rng.choices(string.digits, k=rng.randint(4, 24)))
        word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 8)))
        lines.append(rng.choice([digits, f"{word}: {digits}", f"{word} {digits}"]))
    return lines


# Tokenizer


def train_tokenizer(texts: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that never merges digits and decodes every text byte for byte."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=recipe.vocabulary,
            special_tokens=[EOS, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of each document, followed by the end-of-text token."""
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts, verbose=False)["input_ids"]]


# Model


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Qwen3ForCausalLM:
    heads = recipe.width // recipe.head_width
    config = Qwen3Config(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        intermediate_size=recipe.feed_forward,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=recipe.head_width,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=False,
        initializer_range=recipe.initial_std,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def new_optimizer(model: Qwen3ForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with three groups: layer matrices (weight decay), head and final norm (higher learning rate), the rest."""
    matrices, head, rest = [], [], []
    for name, parameter in model.named_parameters():
        if name.startswith(("lm_head", "model.norm")):
            head.append(parameter)
        elif ".layers." in name and parameter.ndim == 2:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": head, "weight_decay": 0.0, "lr": recipe.head_learning_rate},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def rows_of(encoded: list[list[int]], recipe: Recipe) -> Iterator[Tensor]:
    """Endless batches of rows [batch, window + 1]; the documents are shuffled again in every epoch."""
    rng = random.Random(recipe.seed)
    order = list(range(len(encoded)))
    size = recipe.batch * recipe.window + 1
    stream: list[int] = []
    while True:
        rng.shuffle(order)
        for index in order:
            stream.extend(encoded[index])
            while len(stream) >= size:
                yield overlapping_rows(stream[:size], recipe.window)
                stream = stream[size - 1 :]


def overlapping_rows(ids: list[int], window: int) -> Tensor:
    """Rows [n, window + 1]; each begins with the last token of the previous one."""
    return torch.tensor(ids).unfold(0, window + 1, window)


def mean_nll(model: Qwen3ForCausalLM, rows: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token, each token given those before it in its row."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def train_model(model: Qwen3ForCausalLM, encoded: list[list[int]], recipe: Recipe) -> dict[str, float]:
    """Train in place; return the tokens seen, the seconds, and the mean loss (nats) of the last 100 steps."""
    optimizer = new_optimizer(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / recipe.warm_up,
            (recipe.steps - step) / (recipe.steps - recipe.warm_up),
        ),
    )
    losses: list[float] = []
    began = time.monotonic()
    for step, rows in zip(range(1, recipe.steps + 1), rows_of(encoded, recipe), strict=False):
        loss = mean_nll(model, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 100 == 0:
            recent = sum(losses[-100:]) / 100
            print(f"step {step}  loss {recent:.4f}  {time.monotonic() - began:.0f} s", file=sys.stderr)
    last = losses[-100:]
    return {
        "tokens": recipe.steps * recipe.batch * recipe.window,
        "seconds": round(time.monotonic() - began),
        "final_loss": round(sum(last) / len(last), 4),
    }


# Measurements


def perplexity(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str, window: int) -> float:
    """exp of the mean nats per token of `text`, in independent rows of `window` tokens."""
    rows = overlapping_rows(tokenizer(text, verbose=False)["input_ids"], window)
    with torch.no_grad():
        losses = [mean_nll(model, row[None]).item() for row in rows]
    return math.exp(sum(losses) / len(losses))


def reach_statistics(table: Reach, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    reach = table.lower
    digits = tokenizer.convert_tokens_to_ids(list(string.digits))
    ascii_ids = [tokenizer(c)["input_ids"][0] for c in map(chr, [10, *range(32, 127)])]
    return {
        "above_0.5": int((reach > 0.5).sum()),
        "above_0.9": int((reach > 0.9).sum()),
        "above_0.98": int((reach > 0.98).sum()),
        "share_above_0.5": round((reach > 0.5).float().mean().item(), 4),
        "share_above_0.9": round((reach > 0.9).float().mean().item(), 4),
        "proven_unreachable": int((table.upper <= 0.5).sum()),
        "digits_min": round(reach[digits].min().item(), 6),
        "ascii_min": round(reach[ascii_ids].min().item(), 6),
        "eos": round(reach[tokenizer.eos_token_id].item(), 6),
    }


def model_card(measured: dict[str, Any], recipe: Recipe) -> str:
    reach, training, heldout = measured["reach"], measured["training"], measured["heldout"]
    heads = recipe.width // recipe.head_width
    times = training["tokens"] / training["distinct_tokens"]
    return f"""---
license: mit
library_name: transformers
pipeline_tag: text-generation
---
# memlaw/base

A language model of {measured["parameters"]:,} parameters that ships with memlaw, so that its demo, tests and
examples run on one processor core without a download. It is a test bench for memory, not an
assistant: it has read Python's standard library about {times:.1f} times and little else, and what it
writes looks like Python and means nothing.

| | |
|---|---|
| architecture | Qwen3: {recipe.layers} layers, width {recipe.width}, feed-forward \
{recipe.feed_forward}, {heads} heads of {recipe.head_width}; the head is not tied to the embedding |
| tokenizer | byte-level BPE, {recipe.vocabulary} tokens, one per digit; `{EOS}` ends a \
text, `{PAD}` pads, no start token; decoding restores every text byte for byte |
| chat template | `User: ...`, a new line, `Assistant: ...` and the end token; the model was not \
trained on chats |
| context | trained on windows of {recipe.window} tokens; accepts up to {recipe.context} |
| weights | bfloat16, safetensors |
| text | {training["documents"]:,} short documents cut from the standard library of CPython \
{measured["python"]}, and {training["digit_documents"]:,} seeded lines of digits; \
{training["distinct_tokens"]:,} tokens |
| training | {training["tokens"]:,} tokens, AdamW, {training["seconds"] / 60:.0f} minutes on one core |
| held-out perplexity | {heldout["perplexity"]:.2f} per token (windows of {heldout["window"]}) over \
{heldout["tokens"]:,} tokens of {", ".join(f"`{name}`" for name in HELD_OUT)}, which training left out |

## What its head can reach

`reach(v)` is the largest probability that any adapter below the final norm can give token v
(`memlaw.model.reach`). A token at or below 1/2 can never be ordered (p > 1/2), at any rank, with any
method, after any number of steps. `../bundled_reach/reach.safetensors` holds the values of all tokens,
in float32 by token id: `reach`, a probability that is attained, and `upper`, a proven upper bound. (It
has a folder of its own because vLLM takes every safetensors file beside the weights for weights.)

| | |
|---|---|
| reach > 0.5 | {reach["above_0.5"]} tokens ({reach["share_above_0.5"]:.1%}) |
| reach > 0.9 | {reach["above_0.9"]} tokens ({reach["share_above_0.9"]:.1%}) |
| reach > 0.98 | {reach["above_0.98"]} tokens |
| proven at or below 0.5 | {reach["proven_unreachable"]} tokens |
| smallest reach of a digit | {reach["digits_min"]:.4f} |
| smallest reach of a printable ASCII character or newline | {reach["ascii_min"]:.4f} |
| reach of `{EOS}` | {reach["eos"]:.4f} |

Out of reach are the padding token, control characters (including tab and carriage return, which do
not occur in the text) and most bytes of non-ASCII characters: no adapter on this base recalls `é` or
a tab with certainty. `memlaw check` needs such a base for its tests.

Beyond ordinary training, these choices raise the reach: a small vocabulary with an untied head;
larger initial weights than usual (standard deviation {recipe.initial_std}), so that the rows of rare
tokens differ; no weight decay on embedding, head and norms; a learning rate of
{recipe.head_learning_rate:g} for head and final norm, and {recipe.learning_rate:g} for the rest; short
documents, so that the end token is frequent; {recipe.digit_share:.0%} as many seeded lines of digits as documents.

## Licence

The weights and the script that made them: MIT, like memlaw. The text they were trained on is part
of CPython, copyright Python Software Foundation, under the PSF License Agreement; none of it is in
this folder.

## Reproduce

    python scripts/train_base.py

This needs the same interpreter ({measured["python"]}), torch {measured["torch"]}, transformers
{measured["transformers"]} and tokenizers {measured["tokenizers"]}. Another Python version has
another standard library, and so gives another base with other numbers. All numbers above are in
`measured.json`, and the test suite measures them again.
"""


def train_and_save(out: Path, heldout: Path, recipe: Recipe) -> dict[str, Any]:
    """Train on the library's text, and save tokenizer, weights and held-out text."""
    texts, held_out = library_text(recipe)
    tokenizer = train_tokenizer(texts, recipe)
    digits = digit_lines(round(len(texts) * recipe.digit_share), recipe.seed)
    encoded = encode(tokenizer, texts + digits)
    model = new_model(tokenizer, recipe)
    training = {
        "documents": len(texts),
        "digit_documents": len(digits),
        "distinct_tokens": sum(map(len, encoded)),
        **train_model(model, encoded, recipe),
    }
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    model.to(torch.bfloat16).save_pretrained(out)
    heldout.parent.mkdir(parents=True, exist_ok=True)
    heldout.write_text("".join(text + EOS for text in held_out), encoding="utf-8")
    return training


def measure(folder: Path, heldout: Path, training: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Load the saved model as users will, measure it, and write its reach table into a folder beside its own."""
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    text = heldout.read_text(encoding="utf-8")
    table = reach_bounds(frozen_head(model))
    reach = folder.with_name(f"{folder.name}_reach") / "reach.safetensors"
    reach.parent.mkdir(exist_ok=True)
    save_file({"reach": table.lower, "upper": table.upper}, reach)
    for file in (*folder.glob("*.safetensors"), reach):
        file.chmod(0o644)  # safetensors lets only the owner read, but package data is for everyone
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "recipe": asdict(recipe),
        "training": training,
        "heldout": {
            "perplexity": round(perplexity(model, tokenizer, text, recipe.window), 4),
            "window": recipe.window,
            "tokens": len(tokenizer(text, verbose=False)["input_ids"]),
        },
        "reach": reach_statistics(table, tokenizer),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the base model that ships with memlaw.")
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--out", type=Path, default=root / "src/memlaw/model/bundled")
    parser.add_argument("--heldout", type=Path, default=root / "tests/fixtures/heldout.txt")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument(
        "--measure-only", action="store_true", help="keep the weights; measure them and write the model card again"
    )
    arguments = parser.parse_args()
    if arguments.steps <= Recipe.warm_up:
        parser.error(f"--steps must exceed the {Recipe.warm_up} steps of warm-up")
    recipe = Recipe(steps=arguments.steps)
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)

    if arguments.measure_only:
        training = json.loads((arguments.out / "measured.json").read_text())["training"]
    else:
        training = train_and_save(arguments.out, arguments.heldout, recipe)
    measured = measure(arguments.out, arguments.heldout, training, recipe)
    (arguments.out / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    (arguments.out / "README.md").write_text(model_card(measured, recipe), encoding="utf-8")
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
