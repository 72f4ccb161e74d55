"""From rows of named fields to a memory set: unique prompts, one target each, every character kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memlaw.core.errors import DataError
from memlaw.core.facts import Fact, MemorySet
from memlaw.data.reading import OnConflict, Reading
from memlaw.data.sources import open_table
from memlaw.data.tables import CHAT, LONG_TARGET, SHAPES, Row, Shape, Table, json_type
from memlaw.model.tokenizer import Tokenizer


def read(
    source: str | Path,
    *,
    eos: bool | None = None,
    on_conflict: OnConflict = "error",
    tokenizer: Tokenizer | None = None,
    prompt_field: str | None = None,
    target_field: str | None = None,
) -> MemorySet:
    """Read the memory set D = {(q_i, a_i)} of a file, a saved dataset or a Hub dataset, its text verbatim.

    The format is recognised by content: JSONL, a JSON list, CSV or TSV (each possibly gzipped) and Hugging Face
    datasets, with the fields prompt/completion, query/target, question/matching, instruction/output or messages; any
    other text is one long target under the stress-test prompt. Other field names go into `prompt_field` and
    `target_field`. Chats (messages) need the `tokenizer`: the prompt is its rendering of all turns but the last, and
    the target is the text of the last turn, which must be the assistant's. `eos` says whether every target ends with
    end-of-sequence; by default records do, and one long target (plain text, or a single question/matching record) does
    not. `on_conflict` says what happens to a prompt with several targets.

    Facts keep the `id` field of their record, or take its number. Identical repetitions are dropped with a warning.
    Raises DataError for anything else that cannot be recalled as intended, naming the line but never the text, and
    ConfigError for an unknown `on_conflict` or only one of the two fields.
    """
    reading = Reading(eos=eos, on_conflict=on_conflict, prompt_field=prompt_field, target_field=target_field)
    return read_as(source, reading, tokenizer)


def read_as(source: str | Path, reading: Reading, tokenizer: Tokenizer | None) -> MemorySet:
    """`read`, with its choices as one record."""
    table = open_table(source, reading.fields)
    numbered = list(table.rows)
    if not numbered:
        raise DataError(
            f"{table.name} (read as {table.kind}) holds no records, so there is nothing to store. Give it at least one."
        )
    shape = reading.fields or _recognised_shape(numbered[0][1], table, numbered[0][0])
    facts, chat_warnings = _chats(numbered, table, tokenizer) if shape == CHAT else (_facts(numbered, shape, table), ())
    kept, warnings = _one_target_each(facts, table, reading.on_conflict)
    _refuse_shared_ids(kept, table)
    long_target = shape == LONG_TARGET and len(numbered) == 1
    return MemorySet(
        facts=tuple(kept),
        eos=not long_target if reading.eos is None else reading.eos,
        source=f"{table.name} ({table.kind})",
        warnings=(*table.warnings, *chat_warnings, *warnings),
    )


def _recognised_shape(row: Mapping[str, Any], table: Table, number: int) -> Shape:
    """The one known shape of the first record; the others must have it too."""
    present = [shape for shape in SHAPES if set(shape) <= row.keys()]
    known = ", ".join("/".join(shape) for shape in SHAPES)
    if not present:
        raise DataError(
            f"{table.at(number)} has the fields {_names(row)}, so it is unclear which is the prompt and which the "
            f"target. Known: {known}. Rename the fields, or name them with prompt_field and target_field."
        )
    if len(present) > 1:
        raise DataError(
            f"{table.at(number)} can be read as {' or as '.join('/'.join(shape) for shape in present)}. Name the "
            "fields you mean with prompt_field and target_field, or leave the others out."
        )
    if present == [("instruction", "output")] and row.get("input"):
        raise DataError(
            f"{table.at(number)} has an 'input' beside 'instruction', which every tool joins in its own way. Write the "
            "prompt exactly as you will send it into a field 'prompt', and the answer into 'completion'."
        )
    return present[0]


def _names(row: Mapping[str, Any], most: int = 12) -> str:
    shown = ", ".join(repr(name) for name in list(row)[:most])
    return f"{shown}, ..." if len(row) > most else shown or "(none)"


def _facts(numbered: Iterable[Row], shape: Shape, table: Table) -> Iterator[Fact]:
    for number, row in numbered:
        prompt, target = (_text(row, field, table.at(number)) for field in shape)
        yield Fact(prompt=prompt, target=target, id=_identity(row, number, table), line=number)


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    """The text of a field, verbatim. Raises DataError unless a model can be shown it and asked for it."""
    if field not in row:
        raise DataError(f"{where} lacks the field {field!r}; it has {_names(row)}. Every record needs the same fields.")
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
    _refuse_surrogates(value, f"{where}: {field!r}")
    return value


def _refuse_surrogates(value: str, what: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} has half of a surrogate pair at character {error.start}, which is not a character and cannot be "
            "written as UTF-8. The text was cut or decoded wrongly: export it again from its source."
        ) from None


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
    _refuse_surrogates(identity, f"{table.at(number)}: 'id'")
    return identity


def _chats(numbered: Sequence[Row], table: Table, tokenizer: Tokenizer | None) -> tuple[list[Fact], tuple[str, ...]]:
    if tokenizer is None or tokenizer.chat_template is None:
        lack = "no tokenizer was given" if tokenizer is None else "the tokenizer has no chat template"
        raise DataError(
            f"{table.name} (read as {table.kind}) holds chats ('messages'), but {lack}, so the text that the model "
            "sees is unknown. Use the tokenizer of a chat model, or convert the chats to prompt/completion."
        )
    facts, indirect = [], []
    for number, row in numbered:
        turns = _turns(row, table.at(number))
        prompt, whole = _rendered(turns, table.at(number), tokenizer)
        facts.append(Fact(prompt, turns[-1]["content"], _identity(row, number, table), number))
        if not whole.startswith(prompt + turns[-1]["content"]):
            indirect.append(number)
    if not indirect:
        return facts, ()
    warning = (
        f"The chat template writes more between question and answer than its generation prompt has (such as an empty "
        f"thinking block): {table.unit}s {_numbers(indirect)}. The answer is stored directly after the generation "
        "prompt; ask for it in the same way."
    )
    return facts, (warning,)


def _turns(row: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    """The messages of one chat, checked: texts with a role, at least one before the last, the last the assistant's."""
    messages = row.get("messages")
    if "messages" not in row or not isinstance(messages, list):
        kind = json_type(messages) if "messages" in row else f"missing; it has {_names(row)}"
        raise DataError(f"{where}: 'messages' is {kind}. Every record of this file needs a list of messages.")
    turns = []
    for position, message in enumerate(messages, start=1):
        place = f"{where}, message {position}"
        if not isinstance(message, Mapping):
            raise DataError(f"{place} is {json_type(message)}, not an object with 'role' and 'content'.")
        turns.append({key: _text(message, key, place) for key in ("role", "content")})
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        ending = f", the last with the role {turns[-1]['role']!r}" if turns else ""
        raise DataError(
            f"{where} has {len(turns)} messages{ending}: the last message is the target and must be the assistant's, "
            "and the prompt is at least one message before it."
        )
    return turns


def _rendered(turns: list[dict[str, str]], where: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """The prompt and the whole chat as the template renders them; the chat must begin with the prompt."""
    try:
        prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
    # A template is a program of the model's authors and can raise anything, not only Jinja's errors.
    except Exception as error:
        raise DataError(
            f"{where} cannot be rendered: the chat template refuses its roles or their order ({type(error).__name__}). "
            "Use the roles and the order that the model's documentation allows."
        ) from error
    if not prompt or not whole.startswith(prompt):
        raise DataError(
            f"{where} does not fit the chat template: the rendered chat does not begin with the rendered turns before "
            "the answer, so the model would be asked something other than what it was trained on. Convert the chat to "
            "prompt/completion, with the prompt exactly as you will send it."
        )
    return prompt, whole


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
                "the prompts differ, or keep one of them: on_conflict (--on-conflict) first or last."
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
            f"{_numbers(repeated)}."
        )
    if conflicting:
        warnings.append(
            f"Kept only the {on_conflict} of several targets for the same prompt. Repeated prompts: {table.unit}s "
            f"{_numbers(conflicting)}."
        )
    return list(kept.values()), tuple(warnings)


def _refuse_shared_ids(facts: Iterable[Fact], table: Table) -> None:
    seen: dict[str, Fact] = {}
    for fact in facts:
        earlier = seen.setdefault(fact.id, fact)
        if earlier is not fact:
            raise DataError(
                f"{table.unit.capitalize()}s {earlier.line} and {fact.line} of {table.name} share the id {fact.id!r} "
                "(a record without one gets its number). Reports name facts by id: make the ids differ."
            )


def _numbers(numbers: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(str(number) for number in numbers[:most])
    return f"{shown}, ..." if len(numbers) > most else shown
