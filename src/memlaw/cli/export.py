"""memlaw export: files of an adapter and its base for llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from memlaw.cli.options import AsJson, load_base
from memlaw.cli.output import emit, note
from memlaw.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BaseFile:
    """The file of the base, if one is wanted."""

    base_gguf: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File for its base as well: `llama-server --model FILE`.")
    ] = None
    kind: Annotated[
        str | None,
        typer.Option(
            "--type", metavar="TYPE", help="Weights of the base: f32, f16, bf16, q8_0, q5_0 or q4_0.  [default: f16]"
        ),
    ] = None
    pure: Annotated[
        bool, typer.Option("--pure", help="With q5_0 and q4_0, the head in this type too, and not in q8_0.")
    ] = False

    @property
    def chosen(self) -> str:
        """The type. Raises ConfigError for options that would have no effect, and for an unknown type."""
        from memlaw.model.gguf_write import check_type

        if self.base_gguf is None and (self.kind is not None or self.pure):
            option = "--pure" if self.kind is None else "--type"
            raise ConfigError(f"{option} is for the weights of the base: give a file for it with --base-gguf.")
        check_type(chosen := self.kind or "f16")
        return chosen


def export(
    *,
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Directory of a LoRA adapter, by memlaw or PEFT.")],
    gguf: Annotated[Path, typer.Option(metavar="FILE", help="File for the adapter: `llama-server --lora FILE`.")],
    base_file: BaseFile,
    model: Annotated[
        str | None, typer.Option(help="The base: Hub id, directory, or memlaw/base.  [default: as the adapter records]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write ADAPTER, and with --base-gguf its base, as GGUF files for llama.cpp and what is built on it."""
    from memlaw.adapter.gguf import base_of, write_adapter
    from memlaw.core.files import make_folders
    from memlaw.model.gguf_layout import config_of_files
    from memlaw.model.gguf_write import write_base

    kind, name = base_file.chosen, model or base_of(adapter)
    document: dict[str, Any] = {"adapter": str(gguf), "model": name, "base": None, "type": None, "pure": base_file.pure}
    lines = [f"{gguf}: the adapter, for {name}."]
    make_folders(gguf.parent)
    if (out := base_file.base_gguf) is None:
        write_adapter(adapter, config_of_files(name), gguf)
    else:
        base = load_base(name, "auto", "cpu")
        _refuse_other(base, adapter)
        make_folders(out.parent)
        write_adapter(adapter, base.model.config, gguf)
        write_base(base, out, kind, pure=base_file.pure)
        document |= {"base": str(out), "type": kind}
        lines.append(f"{out}: its base, weights in {kind}.")
    emit(as_json, document, lines)


def _refuse_other(base: Any, adapter: Path) -> None:
    """Raise AdapterFaultError for an adapter that records another base."""
    from memlaw.adapter.faults import NOTHING, of_another_base
    from memlaw.adapter.info import load_info

    info = load_info(adapter)
    if info is not None and (other := of_another_base(base, adapter, info, {})) is not None:
        if other not in NOTHING:
            raise other
        note(f"Warning: {other.message}")
