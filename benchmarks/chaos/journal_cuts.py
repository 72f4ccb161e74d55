"""Interrupt every system call of a cell's commit by a kill, a full disk and an I/O error: the journal recovers.

    python benchmarks/chaos/journal_cuts.py

Needs strace, which watches a process commit one cell, and then strikes other processes at each of the calls it saw that
have to do with files: the first cell of a directory, and one that another run has published before; with hard links and
without. Recovered means: what was acknowledged is there, the journal is intact, and the same commit works afterwards.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from journal_cells import no_link, report, result

from memlaw.sweep.journal import Journal, verify

COMMIT = """
import os, select, sys
from journal_cells import result, without_links
from memlaw.core.errors import JournalError
from memlaw.sweep.journal import Journal
root, links = sys.argv[1:]
if links == "no":
    without_links()
journal, cell = Journal(root), result(1, "this run's")
print("ready", flush=True)
select.select([sys.stdin], [], [])  # a call that the commit does not make, so that it does not count as one of them
os.access("commit begins", os.F_OK)
try:
    journal.publish(cell)
except JournalError:
    answer = b"refused\\n"
else:
    answer = b"acknowledged\\n"
os.access("commit ended", os.F_OK)
os.write(1, answer)
"""

BLOWS = {"kill": "signal=SIGKILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}


@dataclass(frozen=True)
class Call:
    """A system call of the commit: its name and, from 1, its number among the traced calls of that name."""

    name: str
    number: int


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for links in ("yes", "no"):
        for rival in (False, True):
            calls = calls_of_a_commit(links, rival)
            for blow in BLOWS:
                outcomes = Counter(cut(call, blow, links, rival) for call in calls)
                report(
                    f"journal, every call of a commit cut by {blow}",
                    hard_links=links,
                    cell="published before" if rival else "first",
                    points=len(calls),
                    recovered=len(calls) - outcomes["broken"] - outcomes["missed"],
                    **outcomes,
                )


def calls_of_a_commit(links: str, rival: bool) -> list[Call]:
    """The system calls that strace sees between the two marks."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        _commit(Path(folder) / "P", ["-o", str(trace)], links, rival)
        seen: Counter[str] = Counter()
        calls: list[Call] = []
        inside = False
        for line in trace.read_text().splitlines():
            name = re.match(r"(?:\d+ +)?(\w+)\(", line)
            if name is None:
                continue
            seen[name[1]] += 1
            if '"commit begins"' in line:
                inside = True
            elif '"commit ended"' in line:
                return calls
            elif inside:
                calls.append(Call(name[1], seen[name[1]]))
    raise RuntimeError("The trace has no end of the commit.")


def cut(call: Call, blow: str, links: str, rival: bool) -> str:
    """The outcome of a commit interrupted at this call: acknowledged, refused or killed.

    Or else: broken, if anything is wrong then; missed, if the blow did not fall where it should.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder) / "P"
        struck = ["-e", f"inject={call.name}:{BLOWS[blow]}:when={call.number}", "-o", os.devnull]
        answer = _commit(root, struck, links, rival)
        if (answer == "killed") != (blow == "kill"):
            return "missed"
        if links == "no":
            stack.enter_context(mock.patch("os.link", no_link))
        right = {result(1, "a rival's")} if rival else {result(1, "this run's")}
        recorded = set(Journal(root).results())
        if recorded != right and (rival or answer == "acknowledged" or recorded):
            return "broken"
        again = Journal(root)
        again.publish(result(1, "this run's"))
        again.write_table()
        state = verify(root)
        whole = state.intact or {fault.path for fault in state.unreadable} == {"probe.json"}  # nobody claimed it
        return answer if whole and not state.leftovers and set(again.results()) == right else "broken"


def _commit(root: Path, options: list[str], links: str, rival: bool) -> str:
    """One commit in its own process, with strace attached once it is ready."""
    if rival:
        Journal(root).publish(result(1, "a rival's"))
    here = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", COMMIT, str(root), links],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=here,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        strace = subprocess.Popen(
            ["strace", "-f", "-p", str(process.pid), "-e", "trace=file,desc", *options],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert strace.stderr
        if "attached" not in strace.stderr.readline():
            raise RuntimeError("strace cannot attach to its own child here.")
        process.stdin.write("go\n")
        process.stdin.flush()
        answer = process.stdout.readline().strip() or "killed"
        with suppress(BrokenPipeError):  # it was killed
            process.stdin.close()
        process.wait()
    strace.communicate()
    return answer


if __name__ == "__main__":
    main()
