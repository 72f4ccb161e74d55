"""What the fields of a record mean: a prompt and its target, or a chat, in each of the shapes that people have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memlaw.core.errors import DataError
from memlaw.data.rows import CHAT, INSTRUCTION, SHAPES, SHAREGPT, Shape, json_type

CHAT_OPTIONS = ("tools", "documents", "chat_template_kwargs")
"""Fields beside the messages of a chat that reach its template."""

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""ShareGPT's `from`, as the role of a message."""


@dataclass(frozen=True)
class Chat:
    """The messages of one record as they are, and what else its template is given."""

    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]
    """`tools`, `documents` and variables of the template."""
    first: int = 0
    """Position of the first message that can be an answer: those before it are a prompt."""


def names(row: Mapping[str, Any], most: int = 12) -> str:
    """The names of the fields of a record, for messages."""
    shown = ", ".join(repr(name) for name in list(row)[:most])
    return f"{shown}, ..." if len(row) > most else shown or "(none)"


def shape_of(row: Mapping[str, Any], usual: Shape | None, where: str) -> Shape:
    """The one known shape of a record; `usual` is that of the first, which decides where there are several.

    Tables have every column in every row, so a field that is null counts only where no other shape is filled. Raises
    DataError for a record that can be read in no way, or in several.
    """
    present = [shape for shape in SHAPES if set(shape) <= row.keys()]
    present = [shape for shape in present if all(row[field] is not None for field in shape)] or present
    if usual in present:
        return usual
    if len(present) == 1:
        return present[0]
    if present:
        raise DataError(
            f"{where} can be read as {' or as '.join('/'.join(shape) for shape in present)}. Name the fields you mean "
            "with prompt_field and target_field (--prompt-field, --target-field), or leave the others out."
        )
    if usual is not None:
        lacking = next(field for field in usual if field not in row)
        raise DataError(
            f"{where} lacks the field {lacking!r}; it has {names(row)}, and the first record is read as "
            f"{'/'.join(usual)}. Add the field, or remove the record."
        )
    raise DataError(
        f"{where} has the fields {names(row)}, so it is unclear which is the prompt and which the target. Known: "
        f"{', '.join('/'.join(shape) for shape in SHAPES)}. Rename the fields, or name them with prompt_field and "
        "target_field (--prompt-field, --target-field)."
    )


def chat_of(row: Mapping[str, Any], shape: Shape, where: str) -> Chat | None:
    """The chat in a record of this shape; None if it holds texts. Raises DataError."""
    if shape in (CHAT, SHAREGPT):
        return _whole_chat(row, shape[0], where)
    parts = [row.get(field) for field in shape]
    chats = [isinstance(part, list) and any(isinstance(message, Mapping) for message in part) for part in parts]
    if not any(chats):
        return None
    if not all(chats):
        which = shape[chats.index(True)]
        raise DataError(
            f"{where}: {which!r} is a list of messages, but {shape[1 - shape.index(which)]!r} is not. Write both as "
            "messages, or both as texts."
        )
    prompt, answer = (_messages(part, f"{where}: {field!r}") for field, part in zip(shape, parts, strict=True))
    return Chat([*prompt, *answer], _options(row, where), first=len(prompt))


def _whole_chat(row: Mapping[str, Any], field: str, where: str) -> Chat:
    messages = _messages(row[field], f"{where}: {field!r}")
    system = row.get("system")
    if system in (None, ""):
        return Chat(messages, _options(row, where))
    if not isinstance(system, str) or (messages and messages[0]["role"] == "system"):
        raise DataError(
            f"{where} has a field 'system' that {'is not a text' if not isinstance(system, str) else 'comes on top of'}"
            f"{'' if not isinstance(system, str) else ' a system message'}. Write one system message, the first of "
            f"{field!r}."
        )
    return Chat([{"role": "system", "content": system}, *messages], _options(row, where))


def _messages(value: Any, what: str) -> list[dict[str, Any]]:
    """Messages with a role each; ShareGPT's from/value become role/content, all other fields stay."""
    if not isinstance(value, list):
        raise DataError(f"{what} is {json_type(value)}. A chat is a list of messages with a role and a content.")
    messages = []
    for position, message in enumerate(value, start=1):
        place = f"{what}, message {position}"
        if not isinstance(message, Mapping):
            raise DataError(f"{place} is {json_type(message)}, not an object with 'role' and 'content'.")
        messages.append(_message(message, place))
    return messages


def _message(message: Mapping[str, Any], place: str) -> dict[str, Any]:
    # A null field is an absent one: transformers drops it too, and tables fill the gaps with nulls.
    fields = {name: value for name, value in message.items() if value is not None or name == "content"}
    if "role" not in fields and "from" in fields:
        speaker = fields.pop("from")
        if speaker not in _SPEAKERS:
            raise DataError(
                f"{place} is from {speaker!r}, which is no role of a chat. Known: {', '.join(_SPEAKERS)}. Write a tool "
                "call as 'tool_calls' of a message with 'role' and 'content'."
            )
        fields = {"role": _SPEAKERS[speaker], "content": fields.pop("value", None), **fields}
    if not isinstance(fields.get("role"), str):
        state = json_type(fields["role"]) if "role" in fields else f"missing; it has {names(message)}"
        raise DataError(f"{place}: 'role' is {state}. Every message needs a role, such as user or assistant.")
    return fields


def _options(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What `apply_chat_template` gets beside the messages."""
    for field in ("functions", "function_call"):
        if row.get(field):
            raise DataError(
                f"{where} has {field!r}, which chat templates no longer read. Write the functions as 'tools' and the "
                "calls as 'tool_calls' of their message."
            )
    options = {field: _parsed(row[field], field, where) for field in CHAT_OPTIONS if row.get(field)}
    variables = options.pop("chat_template_kwargs", {})
    if not isinstance(variables, Mapping):
        raise DataError(
            f"{where}: 'chat_template_kwargs' is {json_type(variables)}, but the variables of a template have names. "
            'Write an object, such as {"enable_thinking": false}.'
        )
    taken = sorted(set(variables) & _NOT_VARIABLES)
    if taken:
        raise DataError(
            f"{where}: 'chat_template_kwargs' sets {', '.join(map(repr, taken))}, which memlaw sets itself. Leave it "
            "out."
        )
    return {**options, **variables}


_NOT_VARIABLES = {
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
}  # fmt: skip
"""Arguments of `apply_chat_template` that are no variables of a template."""


def _parsed(value: Any, field: str, where: str) -> Any:
    """A list; tables and some tools write it as JSON in a string."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f"{where}: {field!r} is a text that is not JSON. Write it as JSON.") from None
    if field == "chat_template_kwargs":
        return value
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise DataError(f"{where}: {field!r} is {json_type(value)}. Chat templates take a list of objects.")
    return value


def joined_instruction(row: Mapping[str, Any], shape: Shape, where: str) -> str | None:
    """Alpaca's instruction and `input`, with a line end between; None without an input, or for another shape.

    Raises DataError for an input that is not a text, and for fields of the shape that would be left out.
    """
    if shape != INSTRUCTION:
        return None
    for field in ("system", "history"):
        if row.get(field):
            raise DataError(
                f"{where} has {field!r} beside 'instruction', which belongs to the prompt and which every tool joins "
                "in its own way. Write the record as 'messages', or the whole prompt as 'prompt' with a 'completion'."
            )
    more = row.get("input")
    if more in (None, ""):
        return None
    if not isinstance(more, str):
        raise DataError(f"{where}: 'input' is {json_type(more)}, not a string. Write it in quotes.")
    return f"{row['instruction']}\n{more}"
