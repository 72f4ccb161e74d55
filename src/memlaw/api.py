"""The Python API: plan, check, train, recall, side effects, advise and probe, on a model and tokenizer in memory.

Each function is a few lines over the rooms; read them as examples of how the parts fit together. They import what they
need when they are called, so that a plan from a model's files loads no torch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from memlaw.core.config import UNTIL_RECALLED, Execution, TrainConfig
from memlaw.core.errors import ConfigError, FitError
from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.core.precision import Precision
from memlaw.core.recall import LN2, RecallReport
from memlaw.core.side_effects import SideEffects
from memlaw.data import Reading, border_merges, encode, read, target_tokens
from memlaw.data.tasks import SPEC_PREFIX
from memlaw.diagnosis.findings import SEVERITIES, CheckReport, Finding
from memlaw.model.files import BUNDLED
from memlaw.model.outline import Outline
from memlaw.planning import Plan, PlanRequest, Target
from memlaw.planning.library import FOLDER, KnownLaw, LawChooser, library

if TYPE_CHECKING:
    from memlaw.adapter.faults import Allow
    from memlaw.data.load import Facts
    from memlaw.diagnosis.side_effects import Alone, Yardstick
    from memlaw.law import LawFit
    from memlaw.model.base import Base
    from memlaw.planning.advice import Advice, History
    from memlaw.planning.for_facts import Names
    from memlaw.serving.settings import VerifyConfig
    from memlaw.serving.verify import Facts as FactsToAsk
    from memlaw.serving.verify import Verification
    from memlaw.sweep.probe import ProbeSummary
    from memlaw.training.result import Trained

StrPath = str | os.PathLike[str]


class AllowOptions(TypedDict, total=False):
    """Keywords of `recall` about faults of the adapter to go on with."""

    allow_partial: bool
    """Judge an adapter of which only a part can be loaded."""
    allow_other_base: bool
    """Judge an adapter on another base than the one it names."""


class RecallOptions(AllowOptions, total=False):
    """Keywords of `recall` about how the model is served."""

    served_as: Precision | None
    """Judge on the weights as they are in this precision, such as "q4_0"."""


class CheckOptions(AllowOptions, total=False):
    """Keywords of `check`."""

    adapter: StrPath | None
    """Directory of an adapter that is to recall the facts."""
    law: KnownLaw | LawFit | StrPath | None
    """Judges the rank: a law, a file of `memlaw fit --save`, or a probe; by default the published law of Qwen3-8B."""
    rank: int | None
    """Rank to judge; by default that of an adapter which memlaw wrote."""
    placement: str | None
    """Where the adapter sits, such as "down_proj@4"; by default that of the adapter, or else memlaw's own."""


class PlanSettings(TypedDict, total=False):
    """What a plan is for, whichever law it rests on."""

    target: Target | str | float
    """What to recall: "all" (default), a share such as 0.99 or "99%", or a mean loss in nats: "loss=0.1"."""
    rank: int | None
    """Also say how much this rank holds; by default the recommended one."""
    placement: str | None
    """Where the adapter will sit; by default the MLP's last module, two thirds up the stack."""
    calibrate: bool
    """Time a few real training steps; for a model given by name, also load it and measure its loss on the facts."""


class PlanOptions(PlanSettings, total=False):
    """Keywords of `plan`."""

    law: KnownLaw | LawFit | StrPath | None
    """A law, a file of `memlaw fit --save`, or a probe; by default the nearest of `laws`."""
    laws: StrPath | None
    """A folder of saved laws; by default the one named by the environment variable MEMLAW_LAWS, or else "laws"."""
    cells: StrPath | None
    """A probe of a few cells of facts like these, to fit the law to."""


@overload
def plan(model: StrPath, facts: Facts, /, **options: Unpack[PlanOptions]) -> Plan: ...


@overload
def plan(model: Any, tokenizer: Any, facts: Facts, **options: Unpack[PlanOptions]) -> Plan: ...


def plan(model: Any, tokenizer: Any = None, facts: Facts | None = None, **options: Unpack[PlanOptions]) -> Plan:
    """Will it fit? The smallest LoRA rank predicted to recall `facts`, with its 95% interval, cost and a LoraConfig.

    Takes a model by name or in memory:

        memlaw.plan("Qwen/Qwen3-0.6B", facts)      # from the model's files: no weights and no torch are loaded
        memlaw.plan(model, tokenizer, facts)       # also measures the model's loss on the facts

    A Hub id or directory is loaded only where the plan needs the model: with `calibrate=True`, and for facts that are a
    task (`"task:phonebook:tokens=1000"`). `options` are those of PlanOptions: target, rank, placement, calibrate, law,
    laws, cells. Nothing is trained except, with `calibrate`, a few steps on a throw-away adapter.

    Raises ConfigError, DataError, ModelError, AdapterError; FitError for a law that cannot be used here.
    """
    facts, tokenizer = (tokenizer, None) if facts is None else (facts, tokenizer)
    if facts is None:
        raise ConfigError("A plan needs facts: memlaw.plan(model, tokenizer, facts), or memlaw.plan(name, facts).")
    choose = _law_chooser(options.pop("law", None), options.pop("laws", None), options.pop("cells", None))
    settings: PlanSettings = options
    named = isinstance(model, str | os.PathLike)
    source: Base | Outline
    if named and not settings.get("calibrate") and not str(facts).startswith(SPEC_PREFIX):
        source, tokenizer, memory_set = _from_files(str(model), tokenizer, facts)
    else:
        base, memory_set = (_load if named else _wrap)(model, tokenizer, facts)
        source, tokenizer = base, base.tokenizer
    encoded = encode(memory_set, tokenizer, context=source.context, stops=_stops(source, tokenizer))
    # Only a model with a name can be trained by a command, so only then does the plan name the facts for it.
    names = _names(*((str(model), facts) if named else (source.name, memory_set)), memory_set, tokenizer)
    return plan_on(source, encoded, names, choose, **settings)


def plan_on(
    source: Base | Outline,
    encoded: Sequence[EncodedFact],
    names: Names,
    choose: LawChooser,
    **settings: Unpack[PlanSettings],
) -> Plan:
    """`plan`, for facts already encoded: by a loaded model, or by the outline that its files give."""
    from memlaw.planning.for_facts import plan_for, plan_from_files

    timed = settings.get("calibrate", False)
    request = PlanRequest(_target(settings.get("target", "all")), settings.get("rank"), timed=timed)
    if isinstance(source, Outline):
        from memlaw.adapter.placement import resolve

        return plan_from_files(source, encoded, resolve(settings.get("placement"), source), choose, names, request)
    from memlaw.adapter.on_model import placement_on

    where = placement_on(settings.get("placement"), source.model)
    return plan_for(source, encoded, where, choose, names, request)


def check(model: Any, tokenizer: Any, facts: Facts, **options: Unpack[CheckOptions]) -> CheckReport:
    """What would keep `facts` from being recalled by this model, with this adapter or at this rank.

    Nothing is trained or changed. `options` are those of CheckOptions: adapter, law, rank, placement,
    allow_partial, allow_other_base. Raises DataError
    for facts that cannot be read, AdapterError for an adapter that cannot be loaded, ConfigError for a law without a
    rank to judge.
    """
    base, memory_set = _wrap(model, tokenizer, facts)
    return check_on(base, memory_set, **options)


def check_on(base: Base, memory_set: MemorySet, **options: Unpack[CheckOptions]) -> CheckReport:
    """`check`, on a base and facts already loaded."""
    from memlaw.adapter.faults import Allow
    from memlaw.adapter.info import DEEPER
    from memlaw.diagnosis.lint.model import base_findings, reach_findings
    from memlaw.diagnosis.lint.tokens import encodable
    from memlaw.planning.rank_check import rank_findings

    adapter, law, rank = options.get("adapter"), options.get("law"), options.get("rank")
    if law is not None and rank is None and adapter is None:
        raise ConfigError("A law needs a rank to judge: give a rank (--rank) or an adapter (--adapter).")
    encoded, directory = encodable(memory_set, base.tokenizer, base.stops), None if adapter is None else Path(adapter)
    allow = Allow(options.get("allow_partial", False), options.get("allow_other_base", False))
    about_set = list(_set_findings(base, memory_set, encoded, directory, allow))
    if any(finding.code == DEEPER for finding in about_set):
        directory = None  # nothing in it says at which rank to judge
    findings = [
        *base_findings(base),
        *about_set,
        *reach_findings(base, encoded),
        *rank_findings(base, encoded, directory, _known_law(law), rank, options.get("placement")),
    ]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return CheckReport(len(memory_set.facts), target_tokens(encoded), tuple(findings))


def train(
    model: Any,
    tokenizer: Any,
    facts: Facts,
    *,
    rank: int,
    placement: str | None = None,
    out: StrPath | None = None,
    **options: Any,
) -> Trained:
    """Train one adapter until `facts` are recalled (or for a budget), and save it in PEFT's format to `out`.

    `model` is left as it was. With `out`, rerunning an interrupted training resumes from its last checkpoint.

    `options` are fields of TrainConfig, such as method="ot" or steps=500, and
        config: a TrainConfig that the fields change; by default the settings of `memlaw train`.
        execution: an Execution, which changes time and memory but not the result.
        on_step: a function that is called with a StackProgress after every step.
        protect_on: the path of a plain text that protection is to keep as it is; by default the model writes one.
        side_effects: True to measure them afterwards as well (`memlaw.side_effects`), into `Trained.side_effects` and
            `memlaw_adapter.json`; or the path of a neutral text to measure them on.

    Raises AdapterError, ConfigError, DataError.
    """
    from memlaw.adapter.on_model import placement_on
    from memlaw.training.adapter import train_adapter
    from memlaw.training.protection import text_of_file
    from memlaw.training.run import Run

    execution: Execution | None = options.pop("execution", None)
    on_step = options.pop("on_step", None)
    asked: bool | StrPath = options.pop("side_effects", False)
    protect_on: StrPath | None = options.pop("protect_on", None)
    config = replace(options.pop("config", None) or UNTIL_RECALLED, **options)
    base, memory_set = _wrap(model, tokenizer, facts)
    kept = None if protect_on is None else text_of_file(base, Path(protect_on))
    run = Run(rank, placement_on(placement, model), config, neutral=kept)
    neutral = None if isinstance(asked, bool) else Path(asked)
    judged = where_it_runs(base, config)
    given = (
        None if neutral is None else yardstick_for(judged, memory_set, neutral)
    )  # refused now, not after the training
    trained = train_adapter(base, memory_set, run, out=out, execution=execution, on_step=on_step)
    if asked is False or trained.status != "finished":
        return trained
    measured_with = given or yardstick_for(judged, memory_set)
    return with_side_effects(judged, memory_set, trained, measured_with, out)


def with_side_effects(
    base: Base, memory_set: MemorySet, trained: Trained, measured_with: Yardstick, out: StrPath | None = None
) -> Trained:
    """An adapter that was just trained with its side effects, which are added to what was saved of it in `out`."""
    from memlaw.adapter.info import record_side_effects
    from memlaw.diagnosis.measure import measure
    from memlaw.diagnosis.side_effects import alone
    from memlaw.diagnosis.side_effects import side_effects as compare

    before = alone(base, measured_with)
    with trained.attached(base.model):
        effects = compare(base, before)
        if out is not None:
            facts = encode(memory_set, base.tokenizer, context=base.context, stops=base.stops)
            report = measure(base, facts, decode=False)
            record_side_effects(Path(out), effects, sum(item.margin > 0 for item in report.items))
    return replace(trained, side_effects=effects)


def yardstick_for(base: Base, memory_set: MemorySet, neutral: StrPath | None = None) -> Yardstick:
    """What to measure the side effects of adapters with that store `memory_set`; nothing may be attached to `base`."""
    from memlaw.diagnosis.side_effects import yardstick

    return yardstick(base, memory_set, neutral=None if neutral is None else Path(neutral))


def recall(
    model: Any,
    tokenizer: Any,
    facts: Facts,
    *,
    adapter: StrPath | Mapping[StrPath, float] | None = None,
    decode: bool = True,
    **options: Unpack[RecallOptions],
) -> RecallReport:
    """Did it stick? Per-token probabilities and, with `decode`, verbatim recall and certificates of `facts`.

    `model` is a base, a merged model, or a PEFT model; `adapter` is a directory to add to it for the measurement, or a
    mixture: directories with the factors before what they add, such as {"A": 0.5, "B": 0.5}. Afterwards `model` is
    bit-identical to what it was. `options` are those of RecallOptions: served_as="q4_0" judges a copy of the base with
    the weights of a server in that precision; allow_partial and allow_other_base are faults of the adapter to go on
    with, each of which is a warning. Also warns if facts failed and the adapter was trained on others, or is a mixture.
    Raises AdapterError, DataError, ModelError.
    """
    from memlaw.adapter.faults import Allow
    from memlaw.adapter.mixture import MIXTURE, attach_all, is_mixture, mixture_of
    from memlaw.diagnosis.measure import measure
    from memlaw.model.rounding import served_as

    base, memory_set = _wrap(model, tokenizer, facts)
    encoded = encode(memory_set, tokenizer, context=base.context, stops=base.stops)
    base = served_as(base, options.get("served_as") or base.judged_in)
    given = adapter if isinstance(adapter, Mapping) else {} if adapter is None else {adapter: 1.0}
    parts = mixture_of([Path(one) for one in given], list(given.values()))
    with attach_all(
        base, parts, Allow(options.get("allow_partial", False), options.get("allow_other_base", False))
    ) as faults:
        for fault in faults:
            warnings.warn(fault.message, stacklevel=2)
        report = measure(base, encoded, decode=decode, explain=True)
    mixed = is_mixture(parts)
    for sentence in (MIXTURE,) if mixed else other_prompts(memory_set, next(iter(given), None), report):
        warnings.warn(sentence, stacklevel=2)
    return report


def verify(
    url: str,
    facts: Facts,
    tokenizer: Any = BUNDLED,
    *,
    stops: Sequence[int] | None = None,
    resume: StrPath | None = None,
    config: VerifyConfig | None = None,
) -> Verification:
    """Did it stick where it runs? Asks the server at `url` for every fact, and judges its answers as `recall` does.

        verified = memlaw.verify("http://127.0.0.1:8080", "facts.jsonl", "Qwen/Qwen3-0.6B")
        verified.report.certified, verified.where, verified.differences

    Works with vLLM, llama.cpp, SGLang, Ollama and servers of the OpenAI completions API; `config`, a VerifyConfig,
    names the adapter, the dialect, and how often and how many at a time to ask. A key goes into the environment
    variable MEMLAW_API_KEY. `tokenizer` is that of the base, or the name of the model it belongs to, as for
    `memlaw.load`; `stops` are the ids at which generation ends, by default those of that model, or the tokenizer's end
    of sequence. Answers are appended to the file `resume`, and what it holds is not asked for again. Loads no torch.

    Raises ConfigError, DataError, ModelError; ServerError for a server that cannot be reached or understood;
    UnfinishedError for one that stops answering.
    """
    from memlaw.serving.settings import VerifyConfig
    from memlaw.serving.verify import verify_facts

    asked = facts_to_ask(facts, tokenizer, stops=stops)
    return verify_facts(url, asked, config or VerifyConfig(), resume=None if resume is None else Path(resume))


def facts_to_ask(
    facts: Facts, tokenizer: Any = BUNDLED, *, reading: Reading | None = None, stops: Sequence[int] | None = None
) -> FactsToAsk:
    """Facts in the tokens of a model, by its tokenizer or, given the name, its files alone. Raises as `verify`."""
    from memlaw.data.load import load_memory_set
    from memlaw.model.tokenizer import load_tokenizer, stop_ids, stop_ids_of_files
    from memlaw.serving.verify import Facts as FactsToAsk

    named = isinstance(tokenizer, str | os.PathLike)
    name = str(tokenizer)
    tokenizer = load_tokenizer(name) if named else tokenizer
    if stops is None:
        stops = stop_ids_of_files(name, tokenizer) if named else stop_ids(tokenizer, None)
    memory_set = load_memory_set(facts, tokenizer, _no_random_targets, reading)
    encoded = encode(memory_set, tokenizer, context=None, stops=stops)
    return FactsToAsk(memory_set, encoded, tokenizer, tuple(stops))


def _no_random_targets() -> Sequence[int]:
    raise ConfigError(
        "Random targets are drawn from the tokens that a model can emit, and a server does not show its weights. Ask "
        "for a file of facts, or for another task."
    )


def where_it_runs(base: Base, config: TrainConfig) -> Base:
    """The base that an adapter of this training is measured on: as loaded, or as it is in the first precision of it."""
    from memlaw.model.rounding import served_as

    return served_as(base, config.served_as[0]) if config.served_as else base


class SideEffectOptions(AllowOptions, total=False):
    """Keywords of `side_effects`."""

    adapter: StrPath | Trained | None
    """The adapter: a directory, or what `train` returned. Not for a PEFT or merged model, which holds its own."""
    base: Any
    """The model that a merged model is compared with."""
    neutral: StrPath | None
    """A file of plain text to compare on; by default text sampled from the base, and a page of prose."""


def side_effects(model: Any, tokenizer: Any, facts: Facts, **options: Unpack[SideEffectOptions]) -> SideEffects:
    """What did it cost? How an adapter that stores `facts` changes its base on neutral text and on near misses.

        memlaw.side_effects(model, tokenizer, facts, adapter="adapter").loss_difference

    `model` is the base that `adapter` belongs to, a PEFT model, which is compared with itself without its adapter, or a
    merged model with its `base`. Near misses are prompts shaped like those of `facts` that were not stored. Afterwards
    `model` is bit-identical to what it was. `options` are those of SideEffectOptions: adapter, base, neutral,
    allow_partial, allow_other_base. Raises AdapterError; ConfigError if nothing says what to compare; DataError for a
    neutral text shorter than a window; ModelError.
    """
    from memlaw.diagnosis.side_effects import side_effects as compare

    base, memory_set = _wrap(model, tokenizer, facts)
    adapter, neutral = options.get("adapter"), options.get("neutral")
    allow = options.get("allow_partial", False), options.get("allow_other_base", False)
    before = model_without(base, memory_set, adapter=adapter, without=options.get("base"), neutral=neutral)
    with nullcontext() if adapter is None else _attached(base, adapter, *allow):
        return compare(base, before)


def model_without(
    base: Base,
    memory_set: MemorySet,
    *,
    adapter: StrPath | Trained | None = None,
    without: Any = None,
    neutral: StrPath | None = None,
) -> Alone:
    """The half of `side_effects` before `adapter` is attached: `base` itself, or the model `without` what was merged.

    Raises ConfigError unless exactly one of them, or a PEFT model, says what the model is to be compared with.
    """
    from memlaw.diagnosis.side_effects import alone
    from memlaw.model.base import wrap

    peft_model = getattr(base.model, "active_peft_config", None) is not None
    ways = sum((adapter is not None, without is not None, peft_model))
    if ways != 1:
        raise ConfigError(
            f"Side effects compare a model with its base, and here {'is none' if ways == 0 else 'are several'}. Give "
            "one of these: an adapter (--adapter), a PEFT model or, for a merged model, the one it was made from: "
            "base=... (--base)."
        )
    bare = base if without is None else wrap(without, base.tokenizer)
    with base.model.disable_adapter() if peft_model else nullcontext():
        return alone(bare, yardstick_for(bare, memory_set, neutral))


@contextmanager
def _attached(base: Base, adapter: StrPath | Trained, partial_too: bool, other_base_too: bool) -> Iterator[None]:
    """The base with a saved adapter, whose allowed faults are warnings, or with one just trained."""
    from memlaw.adapter.faults import Allow
    from memlaw.adapter.peft import attach

    if not isinstance(adapter, str | os.PathLike):
        with adapter.attached(base.model):
            yield
        return
    with attach(base, Path(adapter), Allow(partial_too, other_base_too)) as faults:
        for fault in faults:
            warnings.warn(fault.message, stacklevel=5)
        yield


def trained_on(memory_set: MemorySet, adapter: StrPath | None) -> bool | None:
    """Whether an adapter was trained on exactly this set; None without one, or where memlaw did not record it.

    Raises AdapterError.
    """
    from memlaw.adapter.info import load_info

    info = None if adapter is None else load_info(Path(adapter))
    if info is None or info.facts_fingerprint is None:
        return None
    return info.facts_fingerprint == memory_set.fingerprint


def other_prompts(memory_set: MemorySet, adapter: StrPath | None, report: RecallReport) -> Iterator[str]:
    """The warning that facts failed in `report` and the adapter was trained on others, if so. Raises AdapterError."""
    from memlaw.planning.advice import OTHER_PROMPTS, failing

    if failing(report) and trained_on(memory_set, adapter) is False:  # all of a part of its facts may come back
        yield str(OTHER_PROMPTS)


class AdviseOptions(TypedDict, total=False):
    """Keywords of `advise`."""

    adapter: StrPath | Trained | None
    """The adapter that was measured: a directory, or what `train` returned. Without it, its training is unknown, as
    that of a merged model is."""
    laws: StrPath | None
    """A folder of saved laws to plan with; by default as for `plan`."""


def advise(
    model: Any, tokenizer: Any, facts: Facts, report: RecallReport, **options: Unpack[AdviseOptions]
) -> tuple[Advice, ...]:
    """What would bring the facts that failed in `report` to recall, the most promising lever first.

        trained = memlaw.train(model, tokenizer, facts, rank=4, out="adapter")
        report = memlaw.recall(model, tokenizer, facts, adapter="adapter")
        for advice in memlaw.advise(model, tokenizer, facts, report, adapter="adapter"):
            print(advice.lever, advice)

    Rests on the report, the curve of the training, the findings of `check`, and a plan where a law of `laws` can be
    used. The published law of Qwen3-8B is not used: its rank is right only within a factor of 4, and what was observed
    on the adapter itself says more. `model` is the bare base. Empty where every fact is recalled. `options` are those
    of AdviseOptions: adapter, laws. Raises AdapterError, DataError.
    """
    base, memory_set = _wrap(model, tokenizer, facts)
    return advise_on(base, memory_set, report, **options)


def advise_on(
    base: Base, memory_set: MemorySet, report: RecallReport, **options: Unpack[AdviseOptions]
) -> tuple[Advice, ...]:
    """`advise`, on a base and facts already loaded."""
    from memlaw.diagnosis.lint.tokens import encodable
    from memlaw.planning.advice import OTHER_PROMPTS, failing
    from memlaw.planning.advice import advise as advise_by

    if not failing(report):
        return ()
    adapter = options.get("adapter")
    directory = Path(adapter) if isinstance(adapter, str | os.PathLike) else None
    encoded = encodable(memory_set, base.tokenizer, base.stops)
    same = trained_on(memory_set, directory)
    history = _history(adapter)
    if directory is not None and same is not False:
        history = _with_losses(history, base, encoded, report)
    # `recall` has searched the reach of the stubborn tokens already, so those findings are not repeated here.
    findings = list(_set_findings(base, memory_set, encoded, directory))
    planned = _plan_at(base, memory_set, encoded, history, options.get("laws"))
    first = (OTHER_PROMPTS,) if same is False else ()
    return first + advise_by(report, history, plan=planned, findings=findings)


def probe(
    model: Any,
    tokenizer: Any,
    facts: Facts,
    out: StrPath,
    *,
    execution: Execution | None = None,
    **settings: Any,
) -> ProbeSummary:
    """Train and measure a grid of adapters; `settings` are those of ProbeConfig, such as ranks=[1, 2], lengths=[16].

    Finished cells in `out` are skipped. Raises ConfigError, DataError, AdapterError, JournalError.
    """
    from memlaw.sweep.config import ProbeConfig
    from memlaw.sweep.probe import probe as run
    from memlaw.sweep.scheduler import ProbeRun

    base, memory_set = _wrap(model, tokenizer, facts)
    return run(base, memory_set, ProbeConfig(**settings), out, ProbeRun(execution=execution or Execution()))


def _wrap(model: Any, tokenizer: Any, facts: Facts) -> tuple[Base, MemorySet]:
    """Model and facts, ready for every function here."""
    from memlaw.adapter.wrapper import base_of
    from memlaw.data.load import memory_set_for

    base = base_of(model, tokenizer)
    return base, memory_set_for(base, facts)


def _load(name: StrPath, tokenizer: Any, facts: Facts) -> tuple[Base, MemorySet]:
    from memlaw.data.load import memory_set_for
    from memlaw.model.base import load, wrap

    base = load(str(name))
    if tokenizer is not None:
        base = wrap(base.model, tokenizer, name=base.name)
    return base, memory_set_for(base, facts)


def _from_files(name: str, tokenizer: Any, facts: Facts) -> tuple[Outline, Any, MemorySet]:
    """Outline and facts by the model's files alone, without torch."""
    from memlaw.model.outline_from_files import outline_of_files
    from memlaw.model.tokenizer import load_tokenizer

    outline = outline_of_files(name)
    tokenizer = tokenizer or load_tokenizer(name)
    return outline, tokenizer, facts if isinstance(facts, MemorySet) else read(facts, tokenizer=tokenizer)


def _stops(source: Base | Outline, tokenizer: Any) -> tuple[int, ...]:
    """The ids at which generation stops, of a loaded model or by its files."""
    if not isinstance(source, Outline):
        return source.stops
    from memlaw.model.tokenizer import stop_ids_of_files

    return stop_ids_of_files(source.name, tokenizer)


def _names(model: str, facts: Facts, memory_set: MemorySet, tokenizer: Any) -> Names:
    from memlaw.model.tokenizer import tokenizer_fingerprint
    from memlaw.planning.for_facts import Names

    return Names(
        model,
        None if isinstance(facts, MemorySet) else str(facts),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        data_fingerprint=memory_set.fingerprint,
    )


def _target(wanted: Target | str | float) -> Target:
    return wanted if isinstance(wanted, Target) else Target.parse(str(wanted))


def _known_law(law: KnownLaw | LawFit | StrPath | None) -> KnownLaw | None:
    if law is None or isinstance(law, KnownLaw):
        return law
    if isinstance(law, str | os.PathLike):
        from memlaw.sweep.laws import known_law

        return known_law(Path(law))
    return KnownLaw(law)


def _law_chooser(law: KnownLaw | LawFit | StrPath | None, laws: StrPath | None, cells: StrPath | None) -> LawChooser:
    from memlaw.sweep.laws import law_chooser

    shelf = saved_laws(laws) if law is None else ()
    return law_chooser(_known_law(law), None if cells is None else Path(cells), shelf=shelf)


def saved_laws(folder: StrPath | None = None) -> tuple[KnownLaw, ...]:
    """The laws of a folder, by default that of MEMLAW_LAWS or else `laws`; warns of files that cannot be read."""
    shelf = library(Path(folder or os.environ.get("MEMLAW_LAWS") or FOLDER))
    for sentence in shelf.damaged:
        warnings.warn(sentence, stacklevel=2)
    return tuple(shelf.laws.values())


def _set_findings(
    base: Base,
    memory_set: MemorySet,
    encoded: Sequence[EncodedFact],
    adapter: Path | None,
    allow: Allow | None = None,
) -> Iterator[Finding]:
    """The findings that need no search over the head and no law."""
    from memlaw.adapter.faults import NOTHING
    from memlaw.diagnosis.lint.chat import chat_findings
    from memlaw.diagnosis.lint.keys import key_findings
    from memlaw.diagnosis.lint.model import adapter_findings
    from memlaw.diagnosis.lint.text import text_findings
    from memlaw.diagnosis.lint.tokens import set_findings, token_findings

    merging = border_merges(memory_set, base.tokenizer)
    yield from set_findings(memory_set, base, merging)
    yield from chat_findings(memory_set, base.tokenizer)
    yield from token_findings(memory_set, encoded, base, merging)
    yield from text_findings(base, encoded)
    yield from key_findings(memory_set, encoded)
    if adapter is not None:
        yield from adapter_findings(base, memory_set, encoded, adapter, allow or NOTHING)


def _history(adapter: StrPath | Trained | None) -> History:
    """How an adapter was trained; warns of settings that a later version of memlaw recorded.

    Raises AdapterError for a directory without an adapter, and for settings out of range.
    """
    from memlaw.adapter.info import load_info, recorded_training
    from memlaw.planning.advice import History

    if adapter is None:
        return History()
    if not isinstance(adapter, str | os.PathLike):
        return History(
            rank=adapter.rank,
            placement=str(adapter.placement),
            config=adapter.config,
            steps=adapter.steps,
            curve=adapter.curve,
            loss_init=adapter.loss_init,
            loss_final=adapter.loss_final,
            diverged=adapter.status == "diverged",
        )
    info = load_info(Path(adapter))
    if info is None:
        return History()
    config, ignored = recorded_training(info)
    for sentence in ignored:
        warnings.warn(sentence, stacklevel=2)
    return History(
        rank=info.rank,
        placement=info.placement,
        config=config,
        steps=None if config is None else config.steps,
        curve=info.curve,
        loss_init=info.loss_init,
        loss_final=info.loss_final,
    )


def _with_losses(history: History, base: Base, encoded: Sequence[EncodedFact], report: RecallReport) -> History:
    """The history with the losses before and after training, measured where they were not recorded: by an older
    memlaw, or by whatever trained an adapter that memlaw did not. `base` is bare."""
    from memlaw.diagnosis.measure import measure

    after = report.mean_loss if history.loss_final is None else history.loss_final
    if history.loss_init is not None or not encoded or after <= LN2:  # at ln 2, nothing is wrong with the step size
        return history
    return replace(history, loss_init=measure(base, encoded, decode=False).mean_loss, loss_final=after)


def _plan_at(
    base: Base, memory_set: MemorySet, encoded: Sequence[EncodedFact], history: History, laws: StrPath | None
) -> Plan | None:
    """The plan at the adapter's placement by the nearest saved law; None without one, or where it cannot be used."""
    shelf = [known for known in saved_laws(laws) if known.law.covariance is not None]
    if not shelf or history.placement is None:
        return None
    from memlaw.sweep.laws import law_chooser

    names = _names(base.name, memory_set, memory_set, base.tokenizer)
    try:
        return plan_on(base, encoded, names, law_chooser(None, shelf=shelf), placement=history.placement)
    except FitError as error:
        warnings.warn(f"The advice does without a plan: {error}", stacklevel=2)
        return None
