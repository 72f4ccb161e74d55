"""MemFT in Axolotl, as a plugin. In its YAML:

    plugins: [memlaw.integrations.axolotl.MemlawPlugin]
    memft: {method: ot}

Axolotl pins other versions of torch and transformers than memlaw is tested with. So this uses nothing but its published
plugin interface (`axolotl.integrations.base.BasePlugin`), and is tested with a stand-in for it.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from memlaw.core.errors import ConfigError


class MemFTArgs(BaseModel):
    """The keys that the plugin adds to Axolotl's configuration."""

    memft: dict[str, Any] | None = None
    """Settings of `memlaw.losses.settings.MemFT`: method, threshold, margin, rule, position, focus."""


class MemlawPlugin(BasePlugin):  # type: ignore[misc]
    """Makes MemFT the loss of the trainer that Axolotl builds."""

    def get_input_args(self) -> str:
        """The class with the keys that Axolotl should accept."""
        return "memlaw.integrations.axolotl.MemFTArgs"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Axolotl calls this once its trainer is built. Raises ConfigError."""
        from memlaw.integrations.transformers import memft

        settings = cfg.get("memft")
        if not settings:
            raise ConfigError(
                "The memlaw plugin is loaded but not configured, so it would do nothing: add `memft: {method: ot}`, or "
                "remove the plugin."
            )
        if cfg.get("rl"):
            raise ConfigError(f"MemFT is a loss of target tokens, but rl is {cfg.get('rl')!r}: leave rl unset.")
        memft(trainer, **settings)
