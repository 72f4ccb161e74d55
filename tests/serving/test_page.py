"""The commands of docs/how-to/serving.md, with llama.cpp's own server behind the name `llama-server`."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from helpers import servers
from helpers.paths import ROOT

PAGE = ROOT / "docs" / "how-to" / "serving.md"

LLAMA_SERVER = """#!{python}
import json, os, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
assert given.keys() == {{"-m", "--lora", "--port"}}, given
asked = {{"model": given["-m"], "loras": [given["--lora"]], "settings": {{"port": int(given["--port"])}}}}
log = os.open("server.log", os.O_WRONLY | os.O_CREAT)
kept, end = os.pipe()  # the server of the tests ends with its caller's end of stdin, and a background job has none
os.set_inheritable(end, True)
for place, source in enumerate((kept, log, log)):
    os.dup2(source, place)
os.execv(sys.executable, [sys.executable, {servers!r}, json.dumps(asked)])
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def script(path: Path, program: str) -> None:
    path.write_text(program)
    path.chmod(0o755)


@pytest.mark.slow
def test_five_commands_lead_to_a_verdict(tmp_path: Path) -> None:
    (block, *_) = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    commands = block.strip().replace("8080", str(free_port()))
    assert len(commands.splitlines()) == 5
    python = shlex.quote(sys.executable)
    script(tmp_path / "memlaw", f'#!/bin/sh\nexec {python} -m memlaw "$@"\n')
    script(tmp_path / "llama-server", LLAMA_SERVER.format(python=sys.executable, servers=servers.__file__))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shell = subprocess.Popen(
        ["bash", "-m", "-e", "-c", f"trap 'kill %1 2> /dev/null || true' EXIT\n{commands}"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = shell.communicate(timeout=500)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, err
    assert "certified 12 of 12 records" in " ".join(out.split())
    assert (tmp_path / "verify.xml").read_text().count("<testcase") == 12
