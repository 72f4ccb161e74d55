from __future__ import annotations

from pathlib import Path

from helpers.commands import LENGTH, POINTS, RECORDS, SECRETS, Run, assert_refused, jsonl, write


def test_check_prints_findings_as_json_and_as_lines_and_says_nothing_else(
    run: Run, model: Path, facts: Path, adapter: Path, tmp_path: Path
) -> None:
    clean = run("check", facts, "--model", model, "--json")
    assert clean.err == ""
    assert clean.document == {"schema": "memlaw.check/1", "records": 4, "tokens": 4 * LENGTH, "findings": []}
    judged = run("check", facts, "--model", model, "--adapter", adapter, "--json").document
    assert {finding["severity"] for finding in judged["findings"]} <= {"info"}

    doubtful = write(tmp_path / "doubtful.jsonl", jsonl(*RECORDS, {**RECORDS[0], "prompt": "KEY  1:"}))
    document = run("check", doubtful, "--model", model, "--json").document
    (finding,) = document["findings"]
    assert {"severity": "warning", "record": "5", "code": "near-duplicate"}.items() <= finding.items()
    assert finding.keys() >= {"severity", "record", "code", "message", "fix"}
    shown = run("check", doubtful, "--model", model)
    assert (shown.code, shown.err) == (0, "")
    assert "warning: near-duplicate: 5" in shown.out
    assert " ".join(f"Fix: {finding['fix']}".split()) in " ".join(shown.out.split())
    assert "hunter" not in shown.out


def test_check_finds_what_reading_only_warns_of_and_asks_for_the_same_options(
    run: Run, model: Path, tmp_path: Path
) -> None:
    twice = write(tmp_path / "twice.jsonl", jsonl(*[{"q": "key:", "a": secret} for secret in SECRETS[:2]]))
    named = ("--prompt-field", "q", "--target-field", "a", "--no-eos")
    ran = run("check", twice, "--model", model, *named, "--on-conflict", "first", "--json")
    assert ran.err == ""
    assert [finding["code"] for finding in ran.document["findings"]] == ["reading", "no-eos"]
    assert_refused(run("check", twice, "--model", model, *named), "have the same prompt but different targets")


def test_check_judges_a_rank_by_a_law_at_hand(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    law = tmp_path / "law.json"
    assert run("fit", POINTS, "--out", law).code == 0
    rank = ("--model", model, "--rank", 1, "--placement", "k_proj@3")
    (finding,) = run("check", facts, *rank, "--json").document["findings"]
    assert finding["code"] == "no-rank-fits"
    assert "The law is borrowed" in finding["message"]
    assert run("check", facts, *rank, "--law", law, "--json").document["findings"] == []
    assert_refused(run("check", facts, "--model", model, "--law", law), "A law needs a rank to judge")
    assert_refused(run("check", facts, "--model", model, "--rank", 1, "--law", tmp_path / "none"), "cannot be read")
    assert_refused(run("check", facts, "--model", model, "--adapter", tmp_path), "memlaw loads safetensors only")
