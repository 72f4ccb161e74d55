"""Whether prompts are written the way they will be asked: as raw text, or in the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memlaw.core.facts import MemorySet
from memlaw.diagnosis.findings import Finding

MARKS = ("<|im_start|>", "<|start_header_id|>", "[INST]", "<start_of_turn>", "<|user|>", "<|assistant|>", "<|turn|>")
"""Markers of a turn in the chat templates of common model families; ordinary questions do not contain them."""

_CODE = "chat-template-mismatch"


def chat_findings(memory_set: MemorySet, tokenizer: Any) -> Iterator[Finding]:
    """Prompts in another model's template, a mix of templated and raw prompts, or raw prompts throughout."""
    ending = _generation_prompt(tokenizer)
    templated = {f.id for f in memory_set.facts if ending is not None and f.prompt.endswith(ending)}
    marked = {f.id: mark for f in memory_set.facts for mark in MARKS if mark in f.prompt and f.id not in templated}
    for name, mark in marked.items():
        yield Finding(
            "error",
            name,
            _CODE,
            f"Its prompt is in a chat template ({mark}) but does not end the way this tokenizer's template does, so no "
            "chat will ever send it.",
            "Store the fact as messages; memlaw renders them with the tokenizer's own template.",
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
                f"Its prompt is raw text, but {len(templated):,} other facts use the tokenizer's chat template. Asked "
                "the same way as those, it becomes a different prompt.",
                "Store all facts as messages, or none of them.",
            )
    else:
        yield Finding(
            "warning",
            None,
            _CODE,
            "The tokenizer has a chat template, but the prompts are raw text. A chat wraps each question in the "
            "template, so the model sees a different prompt from the one it was trained on.",
            "Store the facts as messages if they will be asked in a chat; otherwise ask with the raw prompts.",
        )


def _generation_prompt(tokenizer: Any) -> str | None:
    """What the template puts between a question and its answer; None if there is no template or it puts nothing."""
    if tokenizer.chat_template is None:
        return None
    question = [{"role": "user", "content": "question"}]
    try:
        asked: str = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        answered: str = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=False)
    # Templates are programs written by the model's authors and can raise anything, not only Jinja's own errors.
    except Exception:
        return None
    added = asked.removeprefix(answered) if asked.startswith(answered) else ""
    return added or asked.rpartition("question")[2] or None
