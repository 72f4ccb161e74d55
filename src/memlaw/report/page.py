"""Render content as one HTML document, and write it to a file."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from memlaw.core import files
from memlaw.core.errors import ConfigError, DataError, JournalError
from memlaw.report.answers import did_it_stick, key_numbers, which_did_not, will_it_fit
from memlaw.report.bits import bits_view
from memlaw.report.cells import cells_view
from memlaw.report.content import ReportContent
from memlaw.report.families import named_families
from memlaw.report.harm import harm_view
from memlaw.report.law import law_view
from memlaw.report.plan import plan_view
from memlaw.report.recall import recall_view
from memlaw.report.words import nats, number, share


def write(content: ReportContent, path: str | os.PathLike[str], *, show_text: bool = False) -> None:
    """Render `content` into the file `path`, which is replaced whole or not at all.

    With `show_text` the file holds target texts, so its mode is 0600 from its first byte.

    Raises:
        JournalError: the file cannot be written.
        ConfigError, DataError: as `render`.
    """
    save(render(content, show_text=show_text), Path(path), private=show_text, command="memlaw report")


def save(page: str, path: Path, *, private: bool, command: str) -> None:
    """Write a page, which `command` made, whole or not at all; a `private` one is for its owner only.

    Raises JournalError if the file cannot be written.
    """
    # UTF-8 cannot encode a lone surrogate in an id; browsers show a character reference to it as a replacement mark.
    content = page.encode("utf-8", errors="xmlcharrefreplace")
    try:
        files.write(path, content, mode=0o600 if private else 0o666)
    except OSError as error:
        raise JournalError(
            f"The report cannot be written to {path}: {error.strerror}. The results themselves are safe. Choose "
            f"another file or free some space, and run `{command}` again."
        ) from error


def render(content: ReportContent, *, show_text: bool = False) -> str:
    """`content` as one HTML document; the same content gives the same bytes.

    Raises:
        ConfigError: `show_text` without `content.texts`.
        DataError: the plan lacks fields, or a record does not have one text for each of its target tokens.
    """
    if show_text and content.texts is None:
        raise ConfigError(
            "The report is to show target texts, but the recall contains none. Write the recall with "
            "`memlaw recall --show-text --out`, or leave out --show-text."
        )
    if content.plan is not None and (missing := {"records", "tokens", "bits", "rank"} - content.plan.keys()):
        raise DataError(
            f"The plan lacks {', '.join(sorted(missing))}, so it cannot tell whether the facts fit. Write it again "
            f"with `memlaw plan --json`."
        )
    families = named_families(content.cells, content.sources)
    return fill(
        "report",
        title=content.title,
        answers=[
            ("Will it fit?", will_it_fit(content)),
            ("Did it stick?", did_it_stick(content)),
            ("Which tokens did not?", which_did_not(content.recall)),
        ],
        key_numbers=key_numbers(content),
        families=cells_view(families),
        bits=bits_view(families),
        law=law_view(content.fits),
        plan=None if content.plan is None else plan_view(content.plan),
        recall=_recall(content, show_text),
        harm=harm_view(content.costs),
        made=content.made,
        commands=content.commands,
        shows_text=show_text,
    )


def _recall(content: ReportContent, show_text: bool) -> dict[str, Any] | None:
    if content.recall is None:
        return None
    return recall_view(content.recall, content.texts if show_text else None, content.advice)


def fill(name: str, **values: Any) -> str:
    """The template `name` with its values, and with its script as the only one that may run."""
    script = _script(name)
    return _template(name).render(
        script=Markup(script),  # safe: a file of this package
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )


@functools.cache
def _script(name: str) -> str:
    return (importlib.resources.files("memlaw.report") / "templates" / f"{name}.js").read_text(encoding="utf-8")


@functools.cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("memlaw.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, nats=nats, share=share)
    return environment.get_template(f"{name}.html.j2")
