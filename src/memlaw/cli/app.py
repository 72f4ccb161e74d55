"""The command line's entry: registers the commands, and turns errors into sentences and exit codes."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from memlaw import __version__
from memlaw.cli.output import note
from memlaw.core.errors import MemlawError

KEPT = {
    "probe": "Every finished cell is kept: the same command goes on from there.",
    "demo": "Every finished cell is kept: the same command goes on from there.",
}
"""What an interrupted command leaves behind; the others nothing."""


class Commands(TyperGroup):
    """A sentence and exit code 2 for bad input, 130 for Ctrl-C, a traceback for neither."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """`memlaw probe --status DIR` asks for nothing that a probe needs: it is a command of its own."""
        if args[0] == "probe" and "--status" in args:
            args = ["status", *(arg for arg in args[1:] if arg != "--status")]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MemlawError as error:
            note(f"Error: {error}")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            note(f"Interrupted. {KEPT.get(ctx.invoked_subcommand, 'Nothing was written.')}")
            raise typer.Exit(130) from error
        except BrokenPipeError:  # whoever read the output has seen enough: typer ends in silence
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            note(f"Error: {where}{error.strerror or error}. Mend that and run the command again; nothing kept is lost.")
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=Commands,
    help="What can a LoRA adapter hold, does it hold it, and how to make it hold more.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line and exit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what a library will rename is no news to who uses memlaw
        warnings.showwarning = lambda message, *_args, **_kwargs: note(f"Warning: {message}")
        app(prog_name="memlaw")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"memlaw {__version__}")
        raise typer.Exit


@app.callback()
def memlaw(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """The options of no command."""
