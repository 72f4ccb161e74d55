"""From rows of named fields to a memory set: unique prompts, one target each, every character kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from memlaw.core.errors import DataError
from memlaw.core.facts import Fact, MemorySet
from memlaw.data.chats import ChatNotes, chat_facts
from memlaw.data.reading import OnConflict, Reading, Turns
from memlaw.data.rows import LONG_TARGET, Row, Shape, Table, json_type, numbers, refuse_surrogates
from memlaw.data.shapes import chat_of, joined_instruction, names, shape_of
from memlaw.data.sources import open_table
from memlaw.model.tokenizer import Tokenizer


class Choices(TypedDict, total=False):
    """Keywords of `read`; the fields of Reading say what they mean."""

    eos: bool | None
    on_conflict: OnConflict
    turns: Turns
    prompt_field: str | None
    target_field: str | None


def read(source: str | Path, *, tokenizer: Tokenizer | None = None, **choices: Unpack[Choices]) -> MemorySet:
    """Read the memory set D = {(q_i, a_i)} of a file, a saved dataset or a Hub dataset, its text verbatim.

    The format is recognised by content: JSONL, a JSON list, CSV or TSV (each possibly gzipped) and Hugging Face
    datasets; any other text is one long target under the stress-test prompt. A record has the fields prompt/completion,
    query/target, question/matching, instruction/output (with `input`, joined to the instruction by a line end), or is a
    chat: messages, ShareGPT's conversations, or prompt and completion as lists of messages. Records may differ in
    shape. Other field names go into `prompt_field` and `target_field`.

    Chats need the `tokenizer`: each answer of the assistant is a fact, and its prompt is what the chat template makes
    of everything before it, with `tools`, `tool_calls`, parts of content and all other fields, as a server renders it.
    `turns="last"` stores the last answer of each chat alone. An answer that calls tools is stored as the template
    writes it.

    `eos` says whether every target ends with the token at which generation stops; by default records do, and one long
    target (plain text, or a single question/matching record) does not. `on_conflict` says what happens to a prompt with
    several targets.

    Facts keep the `id` field of their record, or take its number; further answers of a chat add `-2`, `-3`, ... to it.
    Identical repetitions are dropped with a warning. Raises DataError for anything else that cannot be recalled as
    intended, naming the line but never the text, and ConfigError for an unknown choice or only one of the two fields.
    """
    return read_as(source, Reading(**choices), tokenizer)


def read_as(source: str | Path, reading: Reading, tokenizer: Tokenizer | None) -> MemorySet:
    """`read`, with its choices as one record."""
    table = open_table(source, reading.fields)
    numbered = list(table.rows)
    if not numbered:
        raise DataError(
            f"{table.name} (read as {table.kind}) holds no records, so there is nothing to store. Give it at least one."
        )
    records = _Records(table, reading, tokenizer)
    kept, warnings = _one_target_each(records.facts(numbered), table, reading.on_conflict)
    _refuse_shared_ids(kept, table)
    long_target = records.usual == LONG_TARGET and len(numbered) == 1
    return MemorySet(
        facts=tuple(kept),
        eos=not long_target if reading.eos is None else reading.eos,
        source=f"{table.name} ({table.kind})",
        warnings=(*table.warnings, *records.warnings(), *warnings),
        eos_token=tokenizer.eos_token if tokenizer is not None and any(fact.end for fact in kept) else None,
    )


class _Records:
    """Turns records to facts, each by its own shape, and keeps what is worth a warning."""

    def __init__(self, table: Table, reading: Reading, tokenizer: Tokenizer | None) -> None:
        self.usual: Shape | None = reading.fields
        self._named = reading.fields is not None
        self._table, self._tokenizer, self._turns = table, tokenizer, reading.turns
        self._notes = ChatNotes()
        self._joined: list[int] = []

    def facts(self, numbered: Iterable[Row]) -> Iterator[Fact]:
        for number, row in numbered:
            where = self._table.at(number)
            shape = self.usual if self._named and self.usual else shape_of(row, self.usual, where)
            self.usual = self.usual or shape
            identity = _identity(row, number, self._table)
            named = row.get("id") is not None
            chat = chat_of(row, shape, where)
            if chat is None:
                prompt, target = (_text(row, field, where) for field in shape)
                joined = joined_instruction(row, shape, where)
                self._joined += [] if joined is None else [number]
                yield Fact(prompt if joined is None else joined, target, identity, number, named=named)
            else:
                tokenizer = self._chat_tokenizer(shape)
                stored = chat_facts(chat, (number, identity), self._table, tokenizer, self._turns, self._notes)
                yield from (replace(fact, named=named) for fact in stored)

    def _chat_tokenizer(self, shape: Shape) -> Tokenizer:
        if self._tokenizer is None or self._tokenizer.chat_template is None:
            lack = "no tokenizer was given" if self._tokenizer is None else "the tokenizer has no chat template"
            raise DataError(
                f"{self._table.name} (read as {self._table.kind}) holds chats ({'/'.join(shape)}), but {lack}, so the "
                "text that the model sees is unknown. Use the tokenizer of a chat model, or convert the chats to "
                "prompt/completion with a text in each."
            )
        return self._tokenizer

    def warnings(self) -> Iterator[str]:
        if self._joined:
            yield (
                "The prompt is 'instruction' and 'input' with a line end between them, without the text that some "
                f"trainers put around both: {self._table.unit}s {numbers(self._joined)}. Ask in the same way, or write "
                "the prompt as you will send it into 'prompt', and the answer into 'completion'."
            )
        yield from self._notes.warnings(self._table)


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    """The text of a field, verbatim. Raises DataError unless a model can be shown it and asked for it."""
    if field not in row:
        raise DataError(f"{where} lacks the field {field!r}; it has {names(row)}. Every record needs the same fields.")
    value = row[field]
    if not isinstance(value, str):
        raise DataError(
            f"{where}: {field!r} is {json_type(value)}, not a string. Recall is judged by characters (007 is not 7), "
            "so write it in quotes."
        )
    if not value or value.isspace():
        raise DataError(
            f"{where}: {field!r} is empty, and a fact needs a prompt to ask and a target to recall. Fill it or "
            "remove the record."
        )
    refuse_surrogates(value, f"{where}: {field!r}")
    return value


def _identity(row: Mapping[str, Any], number: int, table: Table) -> str:
    value = row.get("id")
    if value is None:
        return str(number)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        kind = json_type(value) if value != "" else "empty"
        raise DataError(
            f"{table.at(number)}: 'id' is {kind}, but reports name facts by it. Use a string or a whole number, or "
            "leave the field out."
        )
    identity = str(value)
    refuse_surrogates(identity, f"{table.at(number)}: 'id'")
    return identity


def _one_target_each(
    facts: Iterable[Fact], table: Table, on_conflict: OnConflict
) -> tuple[list[Fact], tuple[str, ...]]:
    """The facts with unique prompts, in the order of the records kept, and warnings about those dropped."""
    kept: dict[str, Fact] = {}
    repeated: list[int] = []
    conflicting: list[int] = []
    for fact in facts:
        earlier = kept.setdefault(fact.prompt, fact)
        if earlier is fact:
            continue
        if earlier.target == fact.target:
            repeated.append(fact.line or 0)
        elif on_conflict == "error":
            raise DataError(
                f"{table.unit.capitalize()}s {earlier.line} and {fact.line} of {table.name} have the same prompt but "
                "different targets. Greedy decoding gives one answer per prompt, so both can never be recalled. Make "
                f"the prompts differ, or keep one of them: on_conflict (--on-conflict) first or last{_or_last(fact)}."
            )
        else:
            conflicting.append(fact.line or 0)
            if on_conflict == "last":
                del kept[fact.prompt]
                kept[fact.prompt] = fact
    warnings = []
    if repeated:
        warnings.append(
            f"Dropped {len(repeated)} identical repetitions of an earlier prompt and target: {table.unit}s "
            f"{numbers(repeated)}."
        )
    if conflicting:
        warnings.append(
            f"Kept only the {on_conflict} of several targets for the same prompt. Repeated prompts: {table.unit}s "
            f"{numbers(conflicting)}."
        )
    return list(kept.values()), tuple(warnings)


def _or_last(fact: Fact) -> str:
    return "" if fact.end is None else "; or store the last answer of each chat alone: turns (--turns) last"


def _refuse_shared_ids(facts: Iterable[Fact], table: Table) -> None:
    seen: dict[str, Fact] = {}
    for fact in facts:
        earlier = seen.setdefault(fact.id, fact)
        if earlier is not fact:
            raise DataError(
                f"{table.unit.capitalize()}s {earlier.line} and {fact.line} of {table.name} share the id {fact.id!r} "
                "(a record without one gets its number). Reports name facts by id: make the ids differ."
            )
