"""MemFT in Axolotl, as a plugin. In its YAML:

    plugins: [memlaw.integrations.axolotl.MemlawPlugin]
    memlaw: {method: ot}

Axolotl pins other versions of torch and transformers than memlaw is tested with. So this uses nothing but its published
plugin interface (`axolotl.integrations.base.BasePlugin`) and the names in its schema, and is tested with a stand-in.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from memlaw.core.errors import ConfigError

_KEY = "memlaw"
_FORMER_KEY = "memft"


class MemlawArgs(BaseModel):
    """The key that the plugin adds to Axolotl's configuration."""

    memlaw: dict[str, Any] | None = None
    """Settings of `memlaw.losses.settings.MemFT`: method, threshold, margin, rule, position, focus; and those of
    `use_optimizer`: optimizer, adamw_learning_rate."""


class MemFTArgs(MemlawArgs):
    """The same, with the key of earlier versions of memlaw, for an Axolotl that has no such key of its own."""

    memft: dict[str, Any] | None = None
    """The same as `memlaw`."""


class MemlawPlugin(BasePlugin):  # type: ignore[misc]
    """Makes MemFT the loss of the trainer that Axolotl builds."""

    def get_input_args(self) -> str:
        """The class with the keys that Axolotl should accept."""
        accepted = MemlawArgs if _former_key_is_taken() else MemFTArgs
        return f"{accepted.__module__}.{accepted.__name__}"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Axolotl calls this once its trainer is built. Raises ConfigError."""
        from memlaw.integrations.transformers import memft

        settings = _settings(cfg)
        if cfg.get("rl"):
            raise ConfigError(f"MemFT is a loss of target tokens, but rl is {cfg.get('rl')!r}: leave rl unset.")
        memft(trainer, **settings)


def _settings(cfg: Any) -> Any:
    """The plugin's part of the configuration. Raises ConfigError where there is none, or two."""
    settings, former = cfg.get(_KEY), cfg.get(_FORMER_KEY)
    if former and _former_key_is_taken():
        if not settings:
            raise ConfigError(
                f"The key `{_FORMER_KEY}` is a setting of this version of Axolotl itself, so the memlaw plugin does "
                f"not read it: write `{_KEY}: {{method: ot}}`, or remove the plugin and let Axolotl do it."
            )
        raise ConfigError(
            f"Both Axolotl (`{_FORMER_KEY}`) and the memlaw plugin (`{_KEY}`) are asked to weigh the loss: remove one."
        )
    if settings and former:
        raise ConfigError(f"The keys `{_KEY}` and `{_FORMER_KEY}` mean the same: remove `{_FORMER_KEY}`.")
    if not settings and not former:
        raise ConfigError(
            f"The memlaw plugin is loaded but not configured, so it would do nothing: add `{_KEY}: {{method: ot}}`, or "
            "remove the plugin."
        )
    return settings or former


def _former_key_is_taken() -> bool:
    """Whether Axolotl's own schema has the key, or cannot be read."""
    try:
        from axolotl.utils.schemas.config import AxolotlInputConfig
    except ImportError:
        return True
    return _FORMER_KEY in AxolotlInputConfig.model_fields
