"""memlaw export: files of an adapter and its base for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memlaw.cli.options import AsJson, load_base
from memlaw.cli.output import emit
from memlaw.core.errors import ConfigError


def export(
    *,
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Directory of a LoRA adapter, by memlaw or PEFT.")],
    gguf: Annotated[Path, typer.Option(metavar="FILE", help="File for the adapter: `llama-server --lora FILE`.")],
    base_gguf: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File for its base as well: `llama-server --model FILE`.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--type", metavar="TYPE", help="Weights of the base: f32, f16, bf16, q8_0, q5_0 or q4_0.  [default: f16]"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The base: Hub id, directory, or memlaw/base.  [default: as the adapter records]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write ADAPTER, and with --base-gguf its base, as GGUF files for llama.cpp and what is built on it."""
    from memlaw.adapter.faults import of_another_base
    from memlaw.adapter.gguf import base_of, write_adapter
    from memlaw.adapter.info import load_info
    from memlaw.core.files import make_folders
    from memlaw.model.gguf_layout import config_of_files
    from memlaw.model.gguf_write import check_type, write_base

    if base_gguf is None and kind is not None:
        raise ConfigError("--type is for the weights of the base: give a file for it with --base-gguf.")
    chosen = kind or "f16"
    check_type(chosen)
    name = model or base_of(adapter)
    for file in filter(None, (gguf, base_gguf)):
        make_folders(file.parent)
    document: dict[str, str | None] = {"adapter": str(gguf), "model": name, "base": None, "type": None}
    if base_gguf is None:
        write_adapter(adapter, config_of_files(name), gguf)
    else:
        base = load_base(name, "auto", "cpu")
        info = load_info(adapter)
        if info is not None and (other := of_another_base(base, adapter, info, {})) is not None:
            raise other
        write_adapter(adapter, base.model.config, gguf)
        write_base(base, base_gguf, chosen)
        document |= {"base": str(base_gguf), "type": chosen}
    lines = [f"{gguf}: the adapter, for {name}."]
    if base_gguf is not None:
        lines.append(f"{base_gguf}: its base, weights in {chosen}.")
    emit(as_json, document, lines)
