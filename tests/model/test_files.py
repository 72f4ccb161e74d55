from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from helpers import tiny
from memlaw.core.errors import ModelError
from memlaw.model.base import load
from memlaw.model.files import BUNDLED, cached, file_of, source_of
from memlaw.model.outline_from_files import outline_of_files
from memlaw.model.outline_from_module import outline_of_model
from memlaw.model.tokenizer import auto_tokenizer, load_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model with its tokenizer, in several files."""
    folder = tmp_path / "repository"
    tiny.model().save_pretrained(folder, max_shard_size="20KB")
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def snapshot(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of owner/tiny in the Hub's cache, as after a download."""
    kept = tmp_path / "cache" / "models--owner--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(COMMIT)
    shutil.copytree(repository, kept / "snapshots" / COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return kept / "snapshots" / COMMIT


def test_a_model_in_the_cache_needs_no_network(snapshot: Path) -> None:
    outline = outline_of_files("owner/tiny")
    assert outline == outline_of_model(tiny.model(), name="owner/tiny")
    assert load_tokenizer("owner/tiny").encode("facts") == auto_tokenizer("owner/tiny").encode("facts")
    assert load("owner/tiny").layers == outline.layers


def test_a_partly_cached_model_says_what_is_missing(snapshot: Path) -> None:
    next(snapshot.glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match=r"weights of owner/tiny are not in the local cache, .* Check the network"):
        outline_of_files("owner/tiny")
    (snapshot / "config.json").unlink()
    with pytest.raises(ModelError, match=r"owner/tiny has no config\.json in the local cache"):
        outline_of_files("owner/tiny")


def test_a_malformed_name_is_refused() -> None:
    with pytest.raises(ModelError, match="neither a local directory nor a model that can be loaded from the Hub"):
        outline_of_files("no such name!")


def test_files_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert source_of(str(tmp_path)) == str(tmp_path)
    assert file_of(str(tmp_path), "config.json") == cached(str(tmp_path), "config.json") == tmp_path / "config.json"
    assert file_of(str(tmp_path), "model.safetensors") is None
    assert file_of(source_of(BUNDLED), "model.safetensors")


class Answer(BaseHTTPRequestHandler):
    """Serves /owner/tiny/resolve/main/FILE, whole or the requested range of bytes."""

    folder: Path

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        asked = re.fullmatch(r"/owner/tiny/resolve/[^/]+/([\w.-]+)", self.path)
        if asked is None or not (self.folder / asked[1]).is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if asked else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = (self.folder / asked[1]).read_bytes()
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part:
            body = body[int(part[1]) : int(part[2]) + 1]
        self.send_response(206 if part else 200)
        self.send_header("ETag", '"' + COMMIT + asked[1] + '"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint(repository: Path) -> Iterator[str]:
    handler = type("RepositoryHandler", (Answer,), {"folder": repository})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def online(program: str, endpoint: str, home: Path) -> list[str]:
    """The lines printed by a program in its own process, since the client reads its settings once, at import."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | settings, capture_output=True, text=True, check=True
    )
    return ended.stdout.splitlines()


ONLINE = """
import json, sys
from pathlib import Path
from memlaw.core.errors import ModelError
from memlaw.model.outline_from_files import outline_of_files
outline = outline_of_files("owner/tiny")
print(json.dumps([outline.digest, outline.layers, outline.context, outline.head_weights]))
print("torch" in sys.modules)
try:
    outline_of_files("owner/other")
except ModelError as error:
    print(error)
"""


def test_for_a_model_on_the_hub_only_the_headers_of_its_weights_are_fetched(
    endpoint: str, repository: Path, tmp_path: Path
) -> None:
    facts, torch_loaded, refusal = online(ONLINE, endpoint, tmp_path / "home")
    outline = outline_of_model(tiny.model())
    assert json.loads(facts) == [outline.digest, outline.layers, outline.context, outline.head_weights]
    assert torch_loaded == "False"
    assert refusal.startswith("owner/other is neither a local directory nor a model that can be loaded from the Hub")
    assert not list((tmp_path / "home").rglob("*.safetensors"))
