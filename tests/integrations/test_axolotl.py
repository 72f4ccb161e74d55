"""The Axolotl plugin, with a stand-in for the published interface: Axolotl pins other versions of its libraries."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers import trainers
from helpers.trainers import Gradients, assert_same, whole_batch
from memlaw.core.errors import ConfigError

NAME = "memlaw.integrations.axolotl.MemlawPlugin"


class BasePlugin:
    """The methods of `axolotl.integrations.base.BasePlugin` that a plugin for the loss could need."""

    def register(self, cfg: Any) -> None: ...

    def get_input_args(self) -> str | None: ...

    def get_trainer_cls(self, cfg: Any) -> Any: ...

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None: ...


class Configuration(dict[str, Any]):
    """Like Axolotl's DictDefault: a missing key is None."""

    def __missing__(self, key: str) -> None: ...

    __getattr__ = dict.get


def load_by_name(name: str) -> Any:
    """The way Axolotl resolves the names in `plugins` and in `get_input_args`."""
    module, _, found = name.rpartition(".")
    return getattr(importlib.import_module(module), found)


@pytest.fixture(autouse=True)
def _axolotl(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    base = ModuleType("axolotl.integrations.base")
    base.BasePlugin = BasePlugin  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "axolotl", ModuleType("axolotl"))
    monkeypatch.setitem(sys.modules, "axolotl.integrations", ModuleType("axolotl.integrations"))
    monkeypatch.setitem(sys.modules, "axolotl.integrations.base", base)
    yield
    sys.modules.pop("memlaw.integrations.axolotl", None)


def test_the_plugin_makes_memft_the_loss(tmp_path: Path) -> None:
    rows, seen = trainers.rows(), Gradients()
    settings = {"method": "ot", "threshold": trainers.middle_threshold(rows)}
    built = trainers.trainer(tmp_path, 4, callbacks=[seen])
    plugin = load_by_name(NAME)()
    assert isinstance(plugin, BasePlugin)
    cfg = Configuration(memft=Configuration(settings))
    plugin.register(cfg)
    assert plugin.get_trainer_cls(cfg) is None
    plugin.post_trainer_create(cfg, built)
    built.train()
    assert_same(seen.steps[0], whole_batch(rows, **settings)[1])


def test_axolotl_learns_which_keys_the_plugin_reads() -> None:
    arguments = load_by_name(load_by_name(NAME)().get_input_args())
    assert arguments(memft={"method": "sw"}).memft == {"method": "sw"}
    assert arguments().memft is None


@pytest.mark.parametrize(("cfg", "sentence"), [
    (Configuration(), r"so it would do nothing: add `memft: \{method: ot\}`"),
    (Configuration(memft={"method": "ott"}), "Setting method is 'ott': choose sft, ot, sw or curriculum."),
    (Configuration(memft={"method": "ot", "tau": 20}), "Unknown setting tau"),
    (Configuration(memft={"method": "ot"}, rl="dpo"), "rl is 'dpo': leave rl unset"),
])  # fmt: skip
def test_a_configuration_that_would_do_something_else_is_refused(cfg: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_by_name(NAME)().post_trainer_create(cfg, trainers.trainer(tmp_path))
