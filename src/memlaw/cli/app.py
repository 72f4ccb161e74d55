"""The command line's entry point: finds the commands, and turns errors into sentences and exit codes."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from memlaw.cli.output import note
from memlaw.core.errors import MemlawError, UnfinishedError
from memlaw.core.version import installed_version

COMMANDS = {
    "demo": "Run every step once on the bundled model",
    "check": "Find what would keep the facts from being recalled",
    "plan": "Will it fit? Predict the rank that the facts need",
    "laws": "List saved laws",
    "train": "Make it stick: train an adapter that recalls the facts verbatim",
    "recall": "Did it stick? Diagnose every token, certify every fact",
    "verify": "Did it stick where it runs? Ask a live server for every fact",
    "probe": "Train a grid of ranks and lengths to fit a law to",
    "fit": "Fit the law to a probe or a table of points",
    "ledger": "Add, change and retract facts, version by version",
    "export": "Write an adapter and its base as GGUF files for llama.cpp",
    "report": "Write one HTML page of all results",
    "journal": "Inspect, verify, rebuild and export the files of a probe",
}
"""Name -> one line of `memlaw --help`. Command NAME is NAME in memlaw.cli.NAME, imported when it is asked for: the
settings behind the options take longer to load than `memlaw --help` and `--version` should."""

AFTER_INTERRUPT = {
    "probe": "Finished cells are saved: rerun the command to resume.",
    "demo": "Finished cells are saved: rerun the command to resume.",
    "ledger": "The ledger is whole: a version is published completely or not at all.",
    "verify": "What was answered is in the file of --resume, if you named one: rerun the command to go on.",
}
"""What an interrupted command leaves behind, for those that leave anything."""


UNFINISHED = 3
"""Exit code of a command that could not go on: rerun it."""


class Commands(TyperGroup):
    """Bad input ends with a sentence and exit code 2, Ctrl-C with 130, neither with a traceback."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, summary in COMMANDS.items():
            self.add_command(TyperCommand(name, short_help=summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UnfinishedError as error:
            note(f"Unfinished: {error}")
            raise typer.Exit(UNFINISHED) from error
        except MemlawError as error:
            note(f"Error: {error}")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            note(f"Interrupted. {AFTER_INTERRUPT.get(ctx.invoked_subcommand, 'Nothing was written.')}")
            raise typer.Exit(130) from error
        except BrokenPipeError:  # `memlaw ... | head`: typer ends quietly
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            note(f"Error: {where}{error.strerror or error}. Fix this and rerun; saved results are safe.")
            raise typer.Exit(2) from error


def load_command(name: str) -> Any:
    """The command or group of commands `name`, with its options."""
    from memlaw.cli.records import expand_records

    command = getattr(importlib.import_module(f"memlaw.cli.{name}"), name)
    if not isinstance(command, typer.Typer):
        command, run = typer.Typer(add_completion=False, rich_markup_mode=None), command
        command.command(name)(expand_records(run))
    return typer.main.get_command(command)


app = typer.Typer(
    cls=Commands,
    help="What a LoRA adapter can hold, whether it holds it, and how to make it hold more.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def wait_passively() -> None:
    """Let threads of OpenMP sleep while they wait, unless the user chose a policy; read when torch is loaded.

    They spin otherwise, and on a machine that is busy with other work take the time that the work needs.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def main() -> None:
    """Run the command line and exit."""
    wait_passively()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # a library's coming renames are not the user's concern
        warnings.showwarning = lambda message, *_args, **_kwargs: note(f"Warning: {message}")
        app(prog_name="memlaw")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"memlaw {installed_version()}")
        raise typer.Exit


@app.callback()
def memlaw(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """The options that precede a command."""
