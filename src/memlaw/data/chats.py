"""From chats to facts: each answer of the assistant, with all before it as the template renders it for a server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from memlaw.core.errors import DataError
from memlaw.core.facts import Fact
from memlaw.data.reading import Turns
from memlaw.data.rows import Table, json_type, numbers, refuse_surrogates
from memlaw.data.shapes import Chat
from memlaw.model.tokenizer import Tokenizer, special_tokens

Message = Mapping[str, Any]

_DATES = (datetime(2024, 3, 5, 9, 7, 8), datetime(2031, 11, 26, 21, 43, 54))
"""Two moments that differ in every part of a date and time."""

_PROBE = "4711-probe-4711"


@dataclass
class ChatNotes:
    """What was noticed while chats were read: the numbers of the records, for one warning each."""

    before_answer: list[int] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    dated: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    """One entry for each answer that is not stored."""
    openings: list[int] = field(default_factory=list)
    unread: dict[str, list[int]] = field(default_factory=dict)
    """Field -> records in which the template ignores it."""

    def warnings(self, table: Table) -> Iterator[str]:
        def at(records: Sequence[int]) -> str:
            return f"{table.unit}s {numbers(list(dict.fromkeys(records)))}"

        if self.before_answer:
            yield (
                "The chat template writes more between question and answer than its generation prompt has (such as an "
                f"empty thinking block): {at(self.before_answer)}. The answer is stored directly after the generation "
                "prompt; ask for it in the same way. If the template has a variable that puts it into the prompt "
                "(such as enable_thinking, set to false), set it in 'chat_template_kwargs' of every record."
            )
        if self.changed:
            yield (
                f"The chat template does not write the answer as it stands, such as without the white space around it: "
                f"{at(self.changed)}. Stored is the text of the record; trainers that use the template store another."
            )
        if self.unread:
            fields = "; ".join(f"{name!r} ({at(records)})" for name, records in self.unread.items())
            yield (
                f"The chat template does not show the model these fields: {fields}. Prompts are stored as it renders "
                "them, without. If they matter, use a tokenizer whose template has them."
            )
        if self.dated:
            yield (
                f"The chat template prints the date, so the prompts of tomorrow are not those of today: "
                f"{at(self.dated)}. Fix the date in the tokenizer's chat_template and serve with that template or, if "
                "the template has a variable for it (such as date_string), set it in 'chat_template_kwargs' of every "
                "record and of every request."
            )
        if self.skipped:
            yield (
                f"{len(self.skipped)} earlier answers of chats are not stored, only the last of each: "
                f"{at(self.skipped)}. Store them too with turns (--turns) all."
            )
        if self.openings:
            yield (
                f"{len(self.openings)} messages of the assistant open their chat, so they answer nothing and are not "
                f"stored: {at(self.openings)}."
            )


@dataclass(frozen=True)
class _Renderer:
    """One chat and the template that renders it."""

    chat: Chat
    tokenizer: Tokenizer
    where: str

    def __call__(self, messages: Sequence[Message], *, asking: bool = False, **options: Any) -> str:
        """The messages as the template renders them; `asking` for the answer to come."""
        given = {**self.chat.options, **options}
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=asking, **given
            )
        # A template is a program of the model's authors and can raise anything, not only Jinja's errors.
        except Exception as error:
            unusual = _unusual(self.chat)
            more = f" (it has {unusual})" if unusual else ""
            raise DataError(
                f"{self.where} cannot be rendered: the chat template refuses its roles or their order "
                f"({type(error).__name__}), or what else the messages hold{more}. Use the roles, the order and the "
                "fields that the model's documentation allows."
            ) from error
        return text


def chat_facts(
    chat: Chat, row: tuple[int, str], table: Table, tokenizer: Tokenizer, turns: Turns, notes: ChatNotes
) -> Iterator[Fact]:
    """The answers of one chat, each with the rendering of all messages before it as prompt.

    `row` is the number of the record and its id: that of the only answer, or the first; the others get `-2`, `-3`, ...
    Raises DataError for a chat that has no answer or that the template cannot render.
    """
    number, identity = row
    where = table.at(number)
    answers = _answers(chat, where)
    openings = _openings(chat, answers)
    notes.openings += [number] * len(openings)
    answers = answers[len(openings) :]
    if turns == "last":
        notes.skipped += [number] * (len(answers) - 1)
        answers = answers[-1:]
    render = _Renderer(_with_texts(chat, where, tokenizer), tokenizer, where)
    _note_unread(render, number, notes)
    _note_date(render, number, notes)
    for count, position in enumerate(answers, start=1):
        prompt, target, end = _answer(render, position, number, notes)
        yield Fact(prompt, target, identity if count == 1 else f"{identity}-{count}", number, end=end)


def _answers(chat: Chat, where: str) -> list[int]:
    """Positions of the assistant's messages that are to be stored, the chat's own checked."""
    messages = chat.messages
    for position, message in enumerate(messages, start=1):
        _check_content(message, f"{where}, message {position}")
    found = [position for position, message in enumerate(messages) if position >= chat.first and _is_answer(message)]
    if len(messages) < 2 or not _is_answer(messages[-1]):
        ending = f", the last with the role {messages[-1]['role']!r}" if messages else ""
        raise DataError(
            f"{where} has {len(messages)} messages{ending}: the last message is the target and must be the "
            "assistant's, and the prompt is at least one message before it."
        )
    return found


def _openings(chat: Chat, answers: Sequence[int]) -> Sequence[int]:
    """The answers before the first question, unless they are all: a system prompt alone can ask, nothing cannot."""
    silent = ("system", "developer", "assistant")
    asked = (position for position, message in enumerate(chat.messages) if message["role"] not in silent)
    first = next(asked, 1)
    return [position for position in answers if position < first]


def _is_answer(message: Message) -> bool:
    return bool(message["role"] == "assistant")


def _check_content(message: Message, place: str) -> None:
    """Refuse a content that is missing or that no template can be shown as text."""
    said = message.get("content")
    if isinstance(said, str):
        refuse_surrogates(said, f"{place}: 'content'")
        blank = not said or said.isspace()
        if blank and message["role"] != "tool" and not _extras(message):
            raise DataError(
                f"{place}: 'content' is empty, and a fact needs a prompt to ask and a target to recall. Fill it or "
                "remove the record."
            )
    elif isinstance(said, list):
        _check_parts(said, place)
    elif said is not None:
        raise DataError(f"{place}: 'content' is {json_type(said)}. Write it as a string or as a list of parts.")
    elif not (_is_answer(message) and _extras(message)):
        state = "is null" if "content" in message else f"is missing; the message has {', '.join(map(repr, message))}"
        raise DataError(
            f"{place}: 'content' {state}. Only the assistant can say nothing, where it calls a tool ('tool_calls'): "
            "give every other message a content, or remove it."
        )


def _check_parts(parts: Sequence[Any], place: str) -> None:
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else json_type(part)
        if kind != "text" or not isinstance(part.get("text"), str):
            raise DataError(
                f"{place}: 'content' has a part of the type {kind!r}, but memlaw stores what is said in text. Write "
                'every part as {"type": "text", "text": "..."}, or the content as a string.'
            )
        refuse_surrogates(part["text"], f"{place}: 'content'")
    if not "".join(part["text"] for part in parts).strip():
        raise DataError(f"{place}: 'content' is empty. Fill it or remove the record.")


def _extras(message: Message) -> list[str]:
    """Fields beside role and content that say something."""
    return [name for name, value in message.items() if name not in ("role", "content") and value not in (None, [], "")]


def _unusual(chat: Chat) -> str:
    fields = dict.fromkeys(name for message in chat.messages for name in _extras(message))
    empty = ["content: null"] if any(message.get("content") is None for message in chat.messages) else []
    parts = ["content as a list"] if any(isinstance(message.get("content"), list) for message in chat.messages) else []
    return ", ".join([*map(repr, [*fields, *chat.options]), *empty, *parts])


def _with_texts(chat: Chat, where: str, tokenizer: Tokenizer) -> Chat:
    """The chat as its template can show it: a content of one text part as that text, where it takes no parts."""
    parted = [message["content"] for message in chat.messages if isinstance(message.get("content"), list)]
    if not parted:
        return chat
    try:
        shown = _Renderer(chat, tokenizer, where)(chat.messages)
    except DataError:
        shown = ""
    in_words = all(part["text"].strip() in shown for parts in parted for part in parts)
    as_data = any(repr(parts) in shown or json.dumps(parts, ensure_ascii=False) in shown for parts in parted)
    if in_words and not as_data:
        return chat
    if any(len(parts) > 1 for parts in parted):
        raise DataError(
            f"{where} has messages whose 'content' is a list of several parts, but the chat template takes only text, "
            "and servers join the parts in different ways. Write 'content' as one string, as it will be sent."
        )
    one_text = [
        {**message, "content": message["content"][0]["text"]} if isinstance(message.get("content"), list) else message
        for message in chat.messages
    ]
    return Chat(one_text, chat.options, chat.first)


def _note_unread(render: _Renderer, number: int, notes: ChatNotes) -> None:
    """Note the fields without which the template renders the same."""
    messages, options = render.chat.messages, render.chat.options
    for place, message in enumerate(messages):
        for name in _extras(message):
            without = {key: value for key, value in message.items() if key != name}
            # A template may show the reasoning of the last message alone, so an answer is judged as the last one too.
            ends = [len(messages), *([place + 1] if _is_answer(message) else [])]
            if all(_same_without(render, messages[:end], place, without) for end in ends):
                notes.unread.setdefault(name, []).append(number)
    for name in options:
        fewer = Chat(messages, {key: value for key, value in options.items() if key != name})
        without_it = replace(render, chat=fewer)
        if all(
            _rendered_or_none(without_it, some, asking=asking) == render(some, asking=asking)
            for some, asking in ((messages, False), (messages[:-1], True))
        ):
            notes.unread.setdefault(name, []).append(number)


def _same_without(render: _Renderer, messages: Sequence[Message], place: int, without: Message) -> bool:
    changed = [*messages[:place], without, *messages[place + 1 :]]
    return _rendered_or_none(render, changed) == render(messages)


def _rendered_or_none(render: _Renderer, messages: Sequence[Message], *, asking: bool = False) -> str | None:
    try:
        return render(messages, asking=asking)
    except DataError:  # a template that refuses a chat without the field reads the field
        return None


def _note_date(render: _Renderer, number: int, notes: ChatNotes) -> None:
    """Note a chat that the template renders differently on two dates.

    transformers gives templates the date by a function `strftime_now`; a macro of that name takes its place.
    """
    source = render.tokenizer.get_chat_template(tools=render.chat.options.get("tools"))
    if "strftime_now" not in source:
        return
    formats = {match[2] for match in re.finditer(r"""strftime_now\(\s*(['"])(.*?)\1""", source)}
    on_dates = {render(render.chat.messages, chat_template=_frozen(date, formats) + source) for date in _DATES}
    if len(on_dates) > 1:
        notes.dated.append(number)


def _frozen(date: datetime, formats: set[str]) -> str:
    """A macro `strftime_now` of one moment."""
    cases = "".join(f"{{%- if format == {form!r} -%}}{date.strftime(form)}{{%- endif -%}}" for form in sorted(formats))
    rest = f"{{%- if format not in {sorted(formats)!r} -%}}{date:%Y-%m-%d %H:%M:%S}{{%- endif -%}}"
    return f"{{%- macro strftime_now(format) -%}}{cases}{rest}{{%- endmacro %}}"


def _answer(render: _Renderer, position: int, number: int, notes: ChatNotes) -> tuple[str, str, str]:
    """Prompt, target and what the template writes after the target."""
    messages, message = render.chat.messages, render.chat.messages[position]
    prompt = render(messages[:position], asking=True)
    whole = render(messages[: position + 1])
    if not prompt or not whole.startswith(prompt):
        raise DataError(
            f"{render.where} does not fit the chat template: the rendered chat does not begin with the rendered turns "
            f"before the answer (message {position + 1}), so the model would be asked something other than what it was "
            "trained on. Convert the chat to prompt/completion, with the prompt exactly as you will send it."
        )
    written = whole[len(prompt) :]
    said = _said(message)
    if said is None or _more_than_said(render, position, whole):
        around = _around(render, position, prompt)
        if around[0] and written.startswith(around[0]):
            notes.before_answer.append(number)
            written = written.removeprefix(around[0])
        return prompt, *_written_answer(render, position, written, around[1])
    if written.startswith(said):
        return prompt, said, written.removeprefix(said)
    core = said if said in written else said.strip()
    (notes.before_answer if core == said else notes.changed).append(number)
    return prompt, said, written.rpartition(core)[2] if core in written else ""


def _said(message: Message) -> str | None:
    """The text of a message that says something in words."""
    said = message.get("content")
    text = "".join(part["text"] for part in said) if isinstance(said, list) else said
    return text if isinstance(text, str) and text.strip() else None


def _more_than_said(render: _Renderer, position: int, whole: str) -> bool:
    """Whether the template writes more of an answer than its content, such as tool calls or reasoning."""
    message = render.chat.messages[position]
    if not _extras(message):
        return False
    words_alone = {"role": message["role"], "content": message["content"]}
    return _rendered_or_none(render, [*render.chat.messages[:position], words_alone]) != whole


def _around(render: _Renderer, position: int, prompt: str) -> tuple[str, str]:
    """What the template writes before and after an answer in words."""
    answered = [*render.chat.messages[:position], {"role": "assistant", "content": _PROBE}]
    before, found, after = (_rendered_or_none(render, answered) or "").removeprefix(prompt).partition(_PROBE)
    return (before, after) if found else ("", "")


def _written_answer(render: _Renderer, position: int, written: str, end: str) -> tuple[str, str]:
    """An answer as the template writes it, tool calls and reasoning included, and what follows it, usually `end`."""
    if not end or not written.endswith(end):  # calls of tools may end otherwise than words
        marks = special_tokens(render.tokenizer).values()
        end = written[max((written.rfind(mark) for mark in marks if mark in written), default=len(written)) :]
    target = written.removesuffix(end)
    if not target.strip():
        raise DataError(
            f"{render.where}, message {position + 1}: the chat template writes nothing for "
            f"{', '.join(map(repr, _extras(render.chat.messages[position])))}, so the message has no text to recall. "
            "Use a tokenizer whose template has these fields, or write what the model should answer into 'content'."
        )
    return target, end
