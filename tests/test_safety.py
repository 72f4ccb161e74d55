"""The promises of docs/security.md: no unsafe loading, no writes outside the output directory, no leaked targets."""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
import stat
import sys
from collections import Counter
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import transformers

import memlaw
from helpers.commands import exit_code, saved_model
from memlaw.adapter.peft import attach
from memlaw.core.errors import AdapterError, ConfigError, ModelError
from memlaw.model.base import load
from memlaw.sweep.config import ProbeConfig

SECRETS = [f"pw-{7919 * number % 10_000:04d}-{104_729 * number % 10_000:04d}" for number in range(1, 7)]

FACTS = "".join(json.dumps({"prompt": f"Key {n}:", "completion": text}) + "\n" for n, text in enumerate(SECRETS))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("safety") / "model")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("safety") / "facts.jsonl"
    path.write_text(FACTS)
    return path


@pytest.fixture(scope="module")
def adapter(model: Path, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, base = tmp_path_factory.mktemp("safety") / "A", load(str(model))
    memlaw.train(base.model, base.tokenizer, facts, rank=8, steps=60, out=out)
    return out


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def planted(directory: Path, copy: Path, weights: str, pickled: str, struck: Path) -> Path:
    """A copy of the directory whose weights are a pickle that creates the file `struck` when loaded."""
    shutil.copytree(directory, copy)
    (copy / weights).unlink()
    (copy / pickled).write_bytes(pickle.dumps(Bomb(struck)))
    return copy


def test_a_pickle_is_never_opened_as_model_or_adapter(model: Path, adapter: Path, tmp_path: Path) -> None:
    struck = tmp_path / "struck"
    as_model = planted(model, tmp_path / "M", "model.safetensors", "pytorch_model.bin", struck)
    as_adapter = planted(adapter, tmp_path / "A", "adapter_model.safetensors", "adapter_model.bin", struck)
    with pytest.raises(ModelError, match="memlaw never unpickles weights"):
        load(str(as_model))
    with pytest.raises(AdapterError, match="a pickle that could run code"), attach(load(str(model)), as_adapter):
        pass
    assert not struck.exists()
    pickle.loads((as_adapter / "adapter_model.bin").read_bytes())
    assert struck.exists()


def test_a_model_with_its_own_code_is_refused_and_the_code_not_run(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "M")
    (copy / "modeling_evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'struck')!r}).touch()\n")
    config = json.loads((copy / "config.json").read_text())
    classes = {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    config |= {"model_type": "evil", "auto_map": classes}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load(str(copy))
    assert not (tmp_path / "struck").exists()


@pytest.mark.parametrize("module", ["megatron_evil", "evil"])
def test_an_adapter_cannot_name_code_to_import(
    model: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    (tmp_path / f"{module}.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    copy = shutil.copytree(adapter, tmp_path / "A")
    config = json.loads((copy / "adapter_config.json").read_text())
    config |= {"megatron_config": {"sequence_parallel": False}, "megatron_core": module}
    (copy / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError), attach(load(str(model)), copy):
        pass
    assert module not in sys.modules


def test_settings_are_yaml_that_builds_no_objects_and_1e_4_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "probe.yaml"
    path.write_text(f"ranks: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'struck'}]\nlengths: [8]\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        ProbeConfig.from_yaml(path)
    assert not (tmp_path / "struck").exists()
    path.write_text("ranks: [1]\nlengths: [8]\nlearning_rate: 1e-4\n")
    assert ProbeConfig.from_yaml(path).learning_rate == 0.0001


@pytest.mark.parametrize("name", ["../escaped", "{}/escaped", "a/../../../escaped"])
def test_what_a_file_says_never_becomes_a_path(model: Path, adapter: Path, tmp_path: Path, name: str) -> None:
    """Each string in an adapter's files, replaced by a path out of its directory: refused, and nothing is written."""
    room = tmp_path / "room"
    base = load(str(model))
    for file in ("memlaw_adapter.json", "adapter_config.json"):
        intact = json.loads((adapter / file).read_text())
        for field, value in intact.items():
            if not isinstance(value, str) or field == "weights_sha256":
                continue
            shutil.rmtree(room, ignore_errors=True)
            copy = shutil.copytree(adapter, room / "A")
            (copy / file).write_text(json.dumps({**intact, field: name.format(tmp_path)}))
            before = sorted(tmp_path.rglob("*"))
            with suppress(AdapterError), attach(base, copy):
                pass
            assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_adapter_leaves_the_model_as_it_was(model: Path, adapter: Path, tmp_path: Path) -> None:
    base, copy = load(str(model)), shutil.copytree(adapter, tmp_path / "A")
    before = [name for name, _ in base.model.named_modules()]
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "r": 2 * config["r"]}))
    with pytest.raises(AdapterError, match="PEFT cannot load the adapter"), attach(base, copy):
        pass
    assert [name for name, _ in base.model.named_modules()] == before
    assert not hasattr(base.model, "peft_config")


class Tags(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def page_of(model: Path, facts: Path, out: Path, *, show_text: bool = False) -> Path:
    text = ("--show-text",) if show_text else ()
    assert exit_code("recall", facts, "--model", model, "--decode", "--out", out / "recall.json", *text) == 0
    assert exit_code("report", out, "--out", out / "report.html", *text) == 0
    return out / "report.html"


def test_a_report_holds_facts_as_text_and_loads_nothing(model: Path, tmp_path: Path) -> None:
    """Ids and texts that are markup are shown as text and add no element to the page."""
    pages = {}
    for name, text in (("plain", "harmless"), ("hostile", "</script><img src=x onerror=alert(1)>")):
        facts = tmp_path / f"{name}.jsonl"
        facts.write_text(json.dumps({"prompt": f"Q {text}:", "completion": f"A {text}", "id": text}))
        pages[name] = page_of(model, facts, tmp_path / name, show_text=True).read_text()
    counts = {name: Counter(tag for tag, _ in Tags(page).elements) for name, page in pages.items()}
    assert counts["hostile"].keys() == counts["plain"].keys()
    assert counts["hostile"]["script"] == counts["plain"]["script"]
    assert "<img" not in pages["hostile"]
    assert "\\u003c/script\\u003e\\u003cimg" in pages["hostile"]  # inside scripts, JSON by tojson
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', pages["hostile"])
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for tag, attributes in Tags(pages["hostile"]).elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            if attributes.get(name) and tag != "a":
                assert str(attributes[name]).startswith(("#", "data:")), (tag, attributes)


def test_no_log_file_report_error_or_file_name_holds_a_target(
    model: Path, facts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """With all libraries logging at debug level, and with commands that fail."""
    caplog.set_level(logging.DEBUG)
    transformers.utils.logging.set_verbosity_debug()
    out, broken = tmp_path / "out", tmp_path / "broken.jsonl"
    broken.write_text(FACTS + json.dumps({"prompt": "Key 0:", "completion": "another"}) + "\n")
    on = ("--model", model)
    grid = ("--ranks", "1", "--lengths", "16", "--steps", 2)
    codes = [
        exit_code("train", facts, *on, "--rank", 2, "--steps", 3, "--out", out / "A"),
        exit_code("recall", facts, *on, "--adapter", out / "A", "--decode", "--out", out / "recall.json"),
        exit_code("probe", facts, *on, *grid, "--out", out / "probe"),
        exit_code("report", out, "--out", out / "report.html"),
        exit_code("train", broken, *on, "--rank", 2, "--out", out / "B"),
        exit_code("fit", facts),
        exit_code("probe", facts, *on, *grid, "--config", facts, "--out", out / "other"),
        exit_code("recall", facts, *on, "--adapter", model),
    ]
    assert codes == [0, 0, 0, 0, 2, 2, 2, 2]
    output = caplog.text + "".join(capfd.readouterr())
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(output) > 500
    assert len(written) >= 9
    for secret in SECRETS:
        assert secret not in output
        for path in written:
            assert secret not in path.name
            assert secret.encode() not in path.read_bytes(), path.name


def test_requested_texts_are_readable_by_their_owner_only(model: Path, facts: Path, tmp_path: Path) -> None:
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    page_of(model, facts, shown, show_text=True)
    page_of(model, facts, hidden)
    assert {stat.S_IMODE((shown / name).stat().st_mode) for name in ("recall.json", "report.html")} == {0o600}
    texts = json.loads((shown / "recall.json").read_text())["texts"]
    assert ["".join(pieces).removesuffix("<eos>") for pieces in texts.values()] == SECRETS
    assert json.loads((hidden / "recall.json").read_text())["texts"] is None


def test_the_card_of_an_adapter_says_that_it_contains_its_training_data(adapter: Path) -> None:
    assert "**This adapter contains its training data.**" in (adapter / "README.md").read_text()
