from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from xml.dom import minidom

import pytest
from pydantic import TypeAdapter

from helpers.commands import SECRETS, Run, assert_refused, jsonl, write
from helpers.serving import LlamaCpp, Mind, Refusal, Running, serving
from memlaw.adapter.peft import attach
from memlaw.diagnosis.documents import report_from_dict
from memlaw.model.base import load
from memlaw.serving.client import KEY
from memlaw.serving.documents import VerifyDocument


@pytest.fixture(scope="module")
def fake(model: Path, adapter: Path) -> Iterator[LlamaCpp]:
    bare, adapted = load(str(model)), load(str(model))
    with ExitStack() as stack:
        stack.enter_context(attach(adapted, adapter))
        yield LlamaCpp({"base": Mind(bare), "facts": Mind(adapted)})


@pytest.fixture
def server(fake: LlamaCpp) -> Iterator[Running]:
    with serving(fake.routes()) as running:
        yield running


def test_exit_code_0_if_every_fact_holds(run: Run, server: Running, facts: Path, model: Path) -> None:
    ran = run("verify", server.url, facts, "--tokenizer", model, "--adapter-name", "facts")
    assert (ran.code, ran.err.count("Warning")) == (0, 1)
    told = " ".join(ran.out.split())
    assert told.startswith(f"{server.url}: llama.cpp b1234-abc, model tiny.gguf, adapter facts. 4 records")
    assert "measured in F16" in told
    assert "certified 4 of 4 records" in told
    assert "temperature 0.8" in ran.err


def test_exit_code_1_if_a_fact_does_not_hold(run: Run, server: Running, facts: Path, model: Path) -> None:
    ran = run("verify", server.url, facts, "--tokenizer", model)
    assert ran.code == 1
    assert "recalled verbatim 0 of 4 records" in " ".join(ran.out.split())
    assert "The server has adapters (facts.gguf)" in ran.err
    assert not any(secret in ran.out + ran.err for secret in SECRETS)


def test_a_scaled_adapter_is_said_to_be_a_mixture(run: Run, server: Running, facts: Path, model: Path) -> None:
    ran = run(
        "verify", server.url, facts, "--tokenizer", model, "--adapter-name", "facts", "--weights", "0.5", "--json"
    )
    assert ran.document["where"]["mixture"] == [{"adapter": "facts", "weight": 0.5}]
    assert "Every request asks for 0.5 facts: a mixture" in ran.err
    assert '"lora": [{"id": 0, "scale": 0.5}]' in next(
        asked for asked in server.asked if asked.startswith("/completion")
    )


def test_exit_code_2_for_bad_input(
    run: Run, server: Running, facts: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--tokenizer", model)
    assert_refused(run("verify", "http://me:hunter@host", facts, *asked), "holds a user name or password")
    assert_refused(run("verify", server.url, facts, *asked, "--concurrency", 0), "concurrency", "from 1 to 256")
    assert_refused(run("verify", server.url, facts, *asked, "--adapter-name", "other"), "has no LoRA adapter 'other'")
    assert_refused(run("verify", server.url, facts.parent / "none", *asked), "none")
    named = (*asked, "--adapter-name", "facts")
    assert_refused(run("verify", server.url, facts, *named, "--weights", "1,1"), "1 adapters and 2 weights")
    assert_refused(run("verify", server.url, facts, *named, "--weights", "half"), "'half' is not a list of numbers")
    assert_refused(run("verify", server.url, facts, *named, "--adapter-name", "facts"), "names an adapter twice")

    def locked(_path: str) -> None:
        raise Refusal(401)

    server.before = locked
    monkeypatch.setenv(KEY, "hunter-key")
    assert_refused(run("verify", server.url, facts, *asked), "MEMLAW_API_KEY is not the right one")


def test_exit_code_3_if_the_server_stops_answering_and_a_second_call_goes_on(
    run: Run, server: Running, facts: Path, model: Path, tmp_path: Path
) -> None:
    asked = ("verify", server.url, facts, "--tokenizer", model, "--adapter-name", "facts", "--concurrency", 1,
             "--retries", 0, "--resume", tmp_path / "answers")  # fmt: skip

    def die(_path: str) -> None:
        server.gone = server.count("/completion") > 3

    server.before = die
    ran = run(*asked)
    assert (ran.code, ran.out) == (3, "")
    assert f"3 of 4 questions were answered. They are kept in {tmp_path / 'answers'}" in " ".join(ran.err.split())
    server.gone, server.before = False, lambda _path: None
    before = server.count("/completion")
    assert run(*asked).code == 0
    assert server.count("/completion") == before + 1
    assert not any(secret in (tmp_path / "answers").read_text() for secret in SECRETS)


def test_ctrl_c_keeps_what_was_answered(run: Run, server: Running, facts: Path, model: Path, tmp_path: Path) -> None:
    asked = ("verify", server.url, facts, "--tokenizer", model, "--adapter-name", "facts", "--concurrency", 1,
             "--resume", tmp_path / "answers")  # fmt: skip

    def interrupt(_path: str) -> None:
        if server.count("/completion") == 3:
            server.before = lambda _path: None
            os.kill(os.getpid(), signal.SIGINT)

    server.before = interrupt
    ran = run(*asked)
    assert ran.code == 130
    assert "rerun the command to go on" in ran.err
    before = server.count("/completion")
    assert run(*asked).code == 0
    assert 1 <= server.count("/completion") - before <= 2  # one may have been under way


def test_the_document_is_a_recall_document_about_a_place(
    run: Run, server: Running, facts: Path, model: Path, tmp_path: Path
) -> None:
    asked = ("verify", server.url, facts, "--tokenizer", model, "--adapter-name", "facts", "--json", "--repeat", 2)
    document = run(*asked, "--out", tmp_path / "recall.json").document
    TypeAdapter(VerifyDocument).validate_json(json.dumps(document), strict=True)
    assert document["schema"] == "memlaw.recall/1"
    assert document["where"]["url"] == server.url
    assert document["stability"]["repeats"] == 2
    assert report_from_dict(document).certified == 4
    assert json.loads((tmp_path / "recall.json").read_text()) == document
    assert run("report", tmp_path, "--out", tmp_path / "report.html").code == 0


def test_junit_has_a_case_for_each_fact_and_texts_only_on_request(
    run: Run, server: Running, facts: Path, model: Path, tmp_path: Path
) -> None:
    plain, shown = tmp_path / "plain.xml", tmp_path / "shown.xml"
    asked = ("verify", server.url, facts, "--tokenizer", model)
    assert run(*asked, "--junit", plain).code == 1
    assert run(*asked, "--junit", shown, "--show-text", "--adapter-name", "facts").code == 0
    suite = minidom.parse(str(plain)).getElementsByTagName("testsuite")[0]
    assert (suite.getAttribute("tests"), suite.getAttribute("failures")) == ("4", "4")
    assert not any(secret in plain.read_text() for secret in SECRETS)
    assert all(secret in shown.read_text() for secret in SECRETS)
    assert stat.S_IMODE(shown.stat().st_mode) == 0o600


def test_verbatim_counts_what_comes_back(run: Run, server: Running, facts: Path, model: Path, fake: LlamaCpp) -> None:
    def doubtful(path: str, content: bytes) -> bytes:
        if path != "/completion":
            return content
        reply = json.loads(content)
        for place in reply["completion_probabilities"]:
            place["logprob"] = -1.0
        return json.dumps(reply).encode()

    server.spoil = doubtful
    asked = ("verify", server.url, facts, "--tokenizer", model, "--adapter-name", "facts")
    assert run(*asked).code == 1
    assert run(*asked, "--verbatim").code == 0


def test_recall_writes_junit_too_but_only_of_certificates(
    run: Run, facts: Path, model: Path, adapter: Path, tmp_path: Path
) -> None:
    asked = ("recall", facts, "--model", model, "--adapter", adapter, "--junit", tmp_path / "recall.xml")
    assert_refused(run(*asked), "certificates need --decode")
    assert run(*asked, "--decode").code == 0
    (suite,) = minidom.parse(str(tmp_path / "recall.xml")).getElementsByTagName("testsuite")
    assert (suite.getAttribute("name"), suite.getAttribute("failures")) == ("memlaw.recall", "0")


def test_data_are_read_as_recall_reads_them(run: Run, server: Running, model: Path, tmp_path: Path) -> None:
    rows = [{"asked": "key 0:", "told": "a"}, {"asked": "key 0:", "told": "b"}]
    data = write(tmp_path / "rows.jsonl", jsonl(*rows))
    asked = ("verify", server.url, data, "--tokenizer", model, "--prompt-field", "asked", "--target-field", "told")
    assert_refused(run(*asked), "--on-conflict")
    ran = run(*asked, "--on-conflict", "last", "--no-eos", "--json")
    assert [item["length"] for item in json.loads(ran.out)["items"]] == [1]
