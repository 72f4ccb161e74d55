"""The Axolotl plugin, with a stand-in for the published interface: Axolotl pins other versions of its libraries."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

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


class Schema(BaseModel):
    """Of Axolotl, without a key called memft."""

    base_model: str = "a/base"


class SchemaWithMemFT(Schema):
    """Of an Axolotl that weighs the loss itself."""

    memft: bool | None = None


def install(monkeypatch: pytest.MonkeyPatch, schema: type[Schema] | None) -> None:
    """A stand-in for the modules of Axolotl that the plugin imports; without a schema, one that has moved."""
    base, config = ModuleType("axolotl.integrations.base"), ModuleType("axolotl.utils.schemas.config")
    base.BasePlugin = BasePlugin  # type: ignore[attr-defined]
    if schema is not None:
        config.AxolotlInputConfig = schema  # type: ignore[attr-defined]
    for module in (base, config):
        parts = module.__name__.split(".")
        for length in range(1, len(parts)):
            name = ".".join(parts[:length])
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture(autouse=True)
def _axolotl(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(monkeypatch, Schema)
    yield
    sys.modules.pop("memlaw.integrations.axolotl", None)


@pytest.mark.parametrize("key", ["memlaw", "memft"])
def test_the_plugin_makes_memft_the_loss(key: str, tmp_path: Path) -> None:
    rows, seen = trainers.rows(), Gradients()
    settings = {"method": "ot", "threshold": trainers.middle_threshold(rows)}
    built = trainers.trainer(tmp_path, 4, callbacks=[seen])
    plugin = load_by_name(NAME)()
    assert isinstance(plugin, BasePlugin)
    cfg = Configuration({key: Configuration(settings)})
    plugin.register(cfg)
    assert plugin.get_trainer_cls(cfg) is None
    plugin.post_trainer_create(cfg, built)
    built.train()
    assert_same(seen.steps[0], whole_batch(rows, **settings)[1])


def test_the_plugin_passes_the_optimizer_on(tmp_path: Path) -> None:
    built = trainers.trainer(tmp_path)
    cfg = Configuration(memlaw=Configuration(method="ot", optimizer="muon"))
    load_by_name(NAME)().post_trainer_create(cfg, built)
    assert {group["optimizer"] for group in built.create_optimizer().param_groups} == {"muon"}


def read_by_axolotl(schema: type[Schema], values: dict[str, Any]) -> dict[str, Any]:
    """`values` as Axolotl reads them: by a class that inherits from its own schema first, then from the plugin's."""
    merged = type("AxolotlInputConfig", (schema, load_by_name(load_by_name(NAME)().get_input_args())), {})
    return merged(**values).model_dump(exclude_none=True)  # type: ignore[no-any-return]


def test_axolotl_learns_which_keys_the_plugin_reads() -> None:
    for key in ("memlaw", "memft"):
        assert read_by_axolotl(Schema, {key: {"method": "sw"}}) == {"base_model": "a/base", key: {"method": "sw"}}
    assert read_by_axolotl(Schema, {}) == {"base_model": "a/base"}


def test_a_key_that_axolotl_has_itself_stays_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, SchemaWithMemFT)
    both = {"memft": True, "memlaw": {"method": "sw"}}
    assert read_by_axolotl(SchemaWithMemFT, both) == {"base_model": "a/base", **both}
    plugin, trainer = load_by_name(NAME)(), trainers.trainer(tmp_path)
    with pytest.raises(ConfigError, match="is a setting of this version of Axolotl itself"):
        plugin.post_trainer_create(Configuration(memft=True), trainer)
    with pytest.raises(ConfigError, match="are asked to weigh the loss: remove one"):
        plugin.post_trainer_create(Configuration(both), trainer)
    plugin.post_trainer_create(Configuration(memlaw={"method": "ot"}), trainer)


def test_a_schema_that_cannot_be_read_leaves_the_former_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    assert set(load_by_name(load_by_name(NAME)().get_input_args()).model_fields) == {"memlaw"}


@pytest.mark.parametrize(("cfg", "sentence"), [
    (Configuration(), r"so it would do nothing: add `memlaw: \{method: ot\}`"),
    (Configuration(memlaw={"method": "ott"}), "Setting method is 'ott': choose sft, ot, sw or curriculum."),
    (Configuration(memlaw={"method": "ot", "tau": 20}), "Unknown setting tau"),
    (Configuration(memft={"method": "ott"}), "Setting method is 'ott'"),
    (Configuration(memlaw={"method": "ot"}, memft={"method": "sw"}), "mean the same: remove `memft`"),
    (Configuration(memlaw={"method": "ot"}, rl="dpo"), "rl is 'dpo': leave rl unset"),
])  # fmt: skip
def test_a_configuration_that_would_do_something_else_is_refused(cfg: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_by_name(NAME)().post_trainer_create(cfg, trainers.trainer(tmp_path))
