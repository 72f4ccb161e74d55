"""Whether facts are stored under the prompts they will be asked with: raw text, or the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memlaw.core.facts import MemorySet
from memlaw.diagnosis.findings import Finding

MARKS = ("<|im_start|>", "<|start_header_id|>", "[INST]", "<start_of_turn>", "<|user|>", "<|assistant|>", "<|turn|>")
"""What the chat templates of common families write before a turn; no ordinary question holds one."""

_CODE = "chat-template-mismatch"


def chat_findings(memory_set: MemorySet, tokenizer: Any) -> Iterator[Finding]:
    """Prompts in another model's template, some prompts in this one's and some not, or all of them raw."""
    ending = _generation_prompt(tokenizer)
    templated = {f.id for f in memory_set.facts if ending is not None and f.prompt.endswith(ending)}
    marked = {f.id: mark for f in memory_set.facts for mark in MARKS if mark in f.prompt and f.id not in templated}
    for name, mark in marked.items():
        yield Finding(
            "error",
            name,
            _CODE,
            f"Its prompt is written in a chat template ({mark}), but does not end as this tokenizer's would, so no "
            "chat will ever ask with it.",
            "Store the fact as messages, which memlaw renders by the tokenizer's own template.",
        )
    raw = [f.id for f in memory_set.facts if f.id not in templated and f.id not in marked]
    if ending is None or not raw:
        return
    if templated:
        for name in raw:
            yield Finding(
                "warning",
                name,
                _CODE,
                f"Its prompt is raw text, while {len(templated):,} of the facts are in the tokenizer's chat template: "
                "asked like those, it is another prompt.",
                "Store all facts as messages, or none.",
            )
    else:
        yield Finding(
            "warning",
            None,
            _CODE,
            "The tokenizer has a chat template and the prompts are raw text. A chat wraps the question in the "
            "template, which is another prompt than the one trained.",
            "Store the facts as messages if they will be asked in a chat; else ask with the raw prompts.",
        )


def _generation_prompt(tokenizer: Any) -> str | None:
    """What the template puts between a question and its answer; None without a template, or one that puts nothing."""
    if tokenizer.chat_template is None:
        return None
    question = [{"role": "user", "content": "question"}]
    try:
        asked: str = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        told: str = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=False)
    # Templates are programs of the model's authors; what they raise is not limited to Jinja's own errors.
    except Exception:
        return None
    added = asked.removeprefix(told) if asked.startswith(told) else ""
    return added or asked.rpartition("question")[2] or None
