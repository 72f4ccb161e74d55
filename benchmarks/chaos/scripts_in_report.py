"""A thousand script injections in everything a report shows, opened in a real browser: none may come to life.

    python benchmarks/chaos/scripts_in_report.py [--payloads 1000] [--on-a-page 5] [--seed 0]

Each payload is the id of a record, its target text, a message, a placement, a source, a setting and a command; payloads
take turns as title, plan, advice and name of a law. The pages are opened in headless Chromium with the content-security
policy off, so that only escaping protects them. Every record is opened, searched and hovered over, since the page's own
script writes that part. A payload is live if it ran, opened a dialog, made a request, or left an element or a handler
that a page of harmless strings does not have.

Prints one JSON line. Needs playwright, and Chromium at the path in CHROMIUM (default: the one on the PATH).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from memlaw.core.cells import Cell, CellResult
from memlaw.core.config import TrainConfig
from memlaw.core.facts import EncodedFact
from memlaw.core.points import LawPoint
from memlaw.core.recall import TokenRecall
from memlaw.diagnosis.verdicts import diagnose
from memlaw.law import fit_law
from memlaw.report import FittedLaw, ReportContent, write

RUN = "window.broken=(window.broken||0)+1"

WAYS_OUT = [
    "", '">', "'>", "--><", "</script>", "</style>", "</title>", "</textarea>", "]]>", "</svg>", "</bdi>",
    "</template>", "\\u003c/script>", "</scr\x00ipt>", "\u2028", "</noscript>", "\ufeff",
    "</option></select>", "<!--", "</xmp>", "\n\n", "\\", "'\"><", "</pre></code>", "&quot;>", "</p></dd></dl>",
    "\x1b[31m",
]  # fmt: skip

SCRIPTS = [
    "<script>{run}</script>", "<script>{run}//", "<ScRiPt src=data:text/javascript,{run}></sCrIpT>",
    "<img src=x onerror={run}>", "<img src=x onerror='{run}'>", "<svg onload={run}>",
    "<svg><script>{run}</script></svg>", "<svg><animate onbegin={run} attributeName=x dur=1s>",
    "<body onload={run}>", "<details open ontoggle={run}>",
    "<input autofocus onfocus={run}>", "<video><source onerror={run}></video>", "<audio src=x onerror={run}>",
    "<iframe srcdoc='<script>parent.{run}</script>'></iframe>", "<iframe src='javascript:parent.{run}'></iframe>",
    "<object data='javascript:{run}'></object>", "<embed src='javascript:{run}'>", "<marquee onstart={run}>x</marquee>",
    "<a href='javascript:{run}'>x</a>", "<form><button formaction='javascript:{run}'>x</button></form>",
    "<meta http-equiv=refresh content='0;url=javascript:{run}'>", "<base href='https://example.invalid/'>",
    "<link rel=stylesheet href='https://example.invalid/x.css'>", "<style>*{{background:url(https://example.invalid)}}",
    "<math><mtext><mglyph><style><img src=x onerror={run}>", "<div style='animation:x' onanimationstart={run}>",
    "<template shadowrootmode=open><img src=x onerror={run}></template>", "<portal src='javascript:{run}'>",
    '";{run};//', "';{run};//", "`;{run};//", "${{{run}}}", "{{{{{run}}}}}", "{{% {run} %}}", "\\\";{run};//",
    '","x":{run},"y":"', "<!--<script>{run}-->", "&lt;script&gt;{run}&lt;/script&gt;", "%3Cscript%3E{run}%3C/script%3E",
    "\\x3cscript\\x3e{run}\\x3c/script\\x3e", "\uff1cscript\uff1e{run}\uff1c/script\uff1e",
    "$\\href{{javascript:{run}}}{{x}}$",
    '" onmouseover="{run}" x="', "' onfocus='{run}' autofocus x='", "{{{{ cycler.__init__.__globals__.os }}}}{run}",
]  # fmt: skip

FIRED = """() => ({
    broken: window.broken || 0,
    elements: Object.fromEntries(
        'script img iframe object embed form base link meta video audio input button a math details template style'
            .split(' ').map(tag => [tag, document.querySelectorAll(tag).length])),
    handlers: [...document.querySelectorAll('*')].filter(
        at => [...at.attributes].some(one => one.name.startsWith('on') || /^\\s*javascript:/i.test(one.value))).length,
})"""


def payloads(count: int, seed: int) -> list[str]:
    """The first `count` of all combinations, in a seeded order."""
    every = [out + script.format(run=RUN) for out, script in product(WAYS_OUT, SCRIPTS)]
    random.Random(seed).shuffle(every)
    if count > len(every):
        raise SystemExit(f"There are {len(every)} payloads.")
    return every[:count]


def content(texts: Sequence[str]) -> ReportContent:
    """A report in which every string of a user is one of `texts`."""
    turn = dict(zip(("title", "reason", "advice", "label", "status", "source", "form"), texts * 7, strict=False))
    cells = [_cell(rank, text) for rank, text in enumerate(texts, start=1)]
    points = [LawPoint(rank, length, 3.0 * rank**0.4 * length**-0.3, 2.0) for rank in (1, 2, 4) for length in (8, 16)]
    law = fit_law(points, "paper", source=turn["source"])
    shown = {"status": turn["status"], "source": turn["source"], "form": turn["form"]}
    facts = [EncodedFact(text, (1, 2, 3, 4), 1) for text in dict.fromkeys(texts)]
    tokens = [TokenRecall((0.1, 2.0, 0.2), (True, False, True), (True, False, False)) for _ in facts]
    return ReportContent(
        title=turn["title"],
        cells=cells,
        fits=[FittedLaw(summary=law.summary() | shown, points=points, predictor=law, label=turn["label"])],
        plan={"records": 1, "tokens": 3, "bits": 9.0, "rank": {"value": 2, "low": 1, "high": 3},
              "reason": turn["reason"], "caveats": list(texts), "lora_config": {text: text for text in texts}},
        recall=diagnose(facts, tokens, tolerance=1e-5, dtype="float32"),
        advice=[turn["advice"]],
        texts={fact.id: (fact.id, "b", fact.id) for fact in facts},
        sources={f"{rank:064}": text for rank, text in enumerate(texts, start=1)},
        made={text: text for text in texts},
        commands=list(texts),
    )  # fmt: skip


def _cell(rank: int, text: str) -> CellResult:
    cell = Cell("m" * 64, "t" * 64, f"{rank:064}", text, rank, 16, TrainConfig(), "float32")
    return CellResult(cell, "diverged", 3, 512, 9.0, None, None, None, None, None, None, 1, message=text)


def look(page: Any, path: Path) -> dict[str, Any]:
    """Open a report, use every part of it, and count its elements and handlers."""
    page.goto(path.as_uri())
    for row in page.locator("#records button.row").all():
        row.click()
        for token in page.locator("#records .details .token").all():
            token.hover()
        row.click()
    page.locator("#find").fill("<img src=x>")
    page.locator("#find").fill("")
    for order in ("margin", "failure", "stubborn", "id"):
        page.locator("#order").select_option(order)
    page.wait_for_timeout(20)
    state: dict[str, Any] = page.evaluate(FIRED)
    return state


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser()
    parser.add_argument("--payloads", type=int, default=1000)
    parser.add_argument("--on-a-page", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tried = payloads(options.payloads, options.seed)
    live, alarms, harmless = [], [], {}
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync"]  # fmt: skip
    chromium_path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        path = Path(directory) / "report.html"
        browser = playwright.chromium.launch(executable_path=chromium_path, headless=True, args=flags)
        page = browser.new_context(bypass_csp=True).new_page()
        page.on("dialog", lambda dialog: (alarms.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: request.url == path.as_uri() or alarms.append(request.url))
        page.on("pageerror", lambda error: alarms.append(str(error)))
        for start in range(0, len(tried), options.on_a_page):
            group = tried[start : start + options.on_a_page]
            if len(group) not in harmless:
                write(content([f"harmless-{number}" for number in range(len(group))]), path, show_text=True)
                harmless[len(group)] = look(page, path)
            write(content(group), path, show_text=True)
            alarms.clear()
            state = look(page, path)
            if alarms or state != harmless[len(group)]:
                live.append({"payloads": group, "alarms": alarms[:3], "found": state})
        version = browser.version
        browser.close()
    line = {"benchmark": "scripts_in_report", "case": f"Chromium {version}", "payloads": len(tried), "live": len(live)}
    print(json.dumps(line | {"first": live[:1]}))


if __name__ == "__main__":
    main()
