"""memlaw verify: ask a live server for every fact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memlaw.cli.options import (
    AsJson,
    Junit,
    OnConflictChoice,
    PromptField,
    ShowText,
    TargetField,
    TurnsChoice,
    Weights,
    numbers,
)
from memlaw.cli.output import aligned_rows, counted, emit, note, paragraph, printable
from memlaw.cli.records import setting
from memlaw.core.canonical import canonical_json
from memlaw.core.errors import ConfigError, listed
from memlaw.serving.settings import DialectName, VerifyConfig

if TYPE_CHECKING:
    from memlaw.data import Reading
    from memlaw.serving.verify import Facts, Verification


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The server, the facts, and how these are read."""

    url: Annotated[str, typer.Argument(metavar="URL", help="The server, such as http://127.0.0.1:8080.")]
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Facts: JSONL, CSV or text file, saved dataset, Hub id, or a task.")
    ]
    tokenizer: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Model whose tokens the facts are: as --model of `memlaw recall`."),
    ] = "memlaw/base"
    eos: Annotated[
        bool | None,
        typer.Option(
            "--eos/--no-eos",
            help="Targets end with the end-of-sequence token.  [default: yes for records, no for one long target]",
        ),
    ] = None
    on_conflict: OnConflictChoice = "error"
    turns: TurnsChoice = "all"
    prompt_field: PromptField = None
    target_field: TargetField = None

    def facts(self) -> Facts:
        """The facts in the model's tokens; warnings go to stderr."""
        from memlaw.api import facts_to_ask
        from memlaw.cli.options import with_warnings
        from memlaw.data.spelling import changed_facts, changed_warning

        facts = facts_to_ask(self.data, self.tokenizer, reading=self._reading)
        with_warnings(facts.memory_set)
        if changed := changed_facts(facts, facts.encoded):
            note(f"Warning: {changed_warning(changed, len(facts.encoded))}")
        return facts

    @property
    def _reading(self) -> Reading:
        from memlaw.data import Reading

        return Reading(
            eos=self.eos,
            on_conflict=self.on_conflict,
            turns=self.turns,
            prompt_field=self.prompt_field,
            target_field=self.target_field,
        )


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the server is asked."""

    adapter_name: Annotated[list[str] | None, setting(VerifyConfig, "adapter_name", metavar="NAME")] = None
    weights: Weights = None
    dialect: Annotated[DialectName, setting(VerifyConfig, "dialect")] = VerifyConfig.dialect
    concurrency: Annotated[int, setting(VerifyConfig, "concurrency")] = VerifyConfig.concurrency
    repeat: Annotated[int, setting(VerifyConfig, "repeat")] = VerifyConfig.repeat
    timeout: Annotated[float, setting(VerifyConfig, "timeout")] = VerifyConfig.timeout
    retries: Annotated[int, setting(VerifyConfig, "retries")] = VerifyConfig.retries

    def config(self) -> VerifyConfig:
        """The settings. Raises ConfigError."""
        given = {name: value for name, value in vars(self).items() if name != "weights"}
        return VerifyConfig(**given | {"adapter_name": self._adapters or None})

    @property
    def _adapters(self) -> dict[str, float]:
        names = self.adapter_name or []
        weights = numbers(self.weights) or [1.0] * len(names)
        if len(weights) != len(names):
            raise ConfigError(
                f"There are {len(names)} adapters and {len(weights)} weights: give one weight for each --adapter-name, "
                "in the same order."
            )
        if len(set(names)) < len(names):
            raise ConfigError(f"--adapter-name {listed(names)} names an adapter twice. Name each once.")
        return dict(zip(names, weights, strict=True))


@dataclass(frozen=True, kw_only=True)
class Results:
    """What counts, and where it is written."""

    verbatim: Annotated[
        bool, typer.Option("--verbatim", help="A fact holds if it comes back, without the certificate.")
    ] = False
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of answers: append to it, and do not ask for what it holds."),
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="Save per-token results as JSON; `memlaw report DIR` includes DIR/recall.json.")
    ] = None
    junit: Junit = None
    show_text: ShowText = False


def verify(*, asked: Asked, asking: Asking, results: Results, as_json: AsJson = False) -> None:
    """Did it stick where it runs? Ask the server at URL for every fact of DATA, and certify what comes back.

    Ends with 0 only if every fact holds, with 1 if some do not, with 2 for bad input, and with 3 if the server stopped
    answering. A key goes into the environment variable MEMLAW_API_KEY.
    """
    from memlaw.cli.progress import asking_bar
    from memlaw.core.files import write_text
    from memlaw.report.junit import holds, junit_xml
    from memlaw.serving.documents import verification_to_dict
    from memlaw.serving.verify import token_texts, verify_facts

    config = asking.config()
    facts = asked.facts()
    with asking_bar() as on_progress:
        verified = verify_facts(asked.url, facts, config, resume=results.resume, on_progress=on_progress)
    for difference in verified.differences:
        note(f"Warning: {difference.message}")
    texts = token_texts(facts) if results.show_text else None
    document = verification_to_dict(verified, texts=texts)
    if results.out is not None:
        write_text(results.out, canonical_json(document), private=results.show_text)
    if results.junit is not None:
        xml = junit_xml(verified.report, suite="memlaw.verify", verbatim=results.verbatim, texts=texts)
        write_text(results.junit, xml, private=results.show_text)
    emit(as_json, document, verify_lines(verified))
    if not all(holds(item, verbatim=results.verbatim) for item in verified.report.items):
        raise typer.Exit(1)


def verify_lines(verified: Verification) -> Iterator[str]:
    """The verdict as printed: where it was measured, and what `memlaw recall` prints."""
    from memlaw.cli.recall import recall_lines

    where, report = verified.where, verified.report
    model = "" if where.model is None else f", model {printable(where.model)}"
    kind = "adapter" if where.mixture is None else "a mixture of adapters:"
    adapter = "" if where.adapter is None else f", {kind} {printable(where.adapter)}"
    version = "" if where.version is None else f" {printable(where.version)}"
    yield f"{where.url}: {where.dialect}{version}{model}{adapter}."
    yield from recall_lines(report)
    if (stability := verified.stability) is not None:
        yield ""
        yield from aligned_rows(
            {
                "repeats": f"each fact asked {stability.repeats:,} times, {stability.concurrency:,} at a time",
                "flips": f"{stability.flips:,} of {counted(report.records, 'fact')} came back otherwise at least once",
                "difference": f"{stability.difference:.2g} nats at most; certificates need {report.tolerance:.2g}",
            }
        )
    if verified.unknown:
        number = sum(map(len, verified.unknown.values()))
        yield ""
        yield from paragraph(
            f"The server did not say the probability of {counted(number, 'token')} (in {listed(verified.unknown)}); "
            "they count as p = 1/2."
        )
