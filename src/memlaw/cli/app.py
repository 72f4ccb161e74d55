"""The command line's entry: registers the commands, and turns errors into sentences and exit codes."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from memlaw import __version__
from memlaw.cli.check import check
from memlaw.cli.demo import demo
from memlaw.cli.fit import fit
from memlaw.cli.journal import export, rebuild, status, verify
from memlaw.cli.options import on_inputs
from memlaw.cli.output import note
from memlaw.cli.plan import laws, plan
from memlaw.cli.probe import probe
from memlaw.cli.recall import recall
from memlaw.cli.report import report
from memlaw.cli.train import train
from memlaw.core.errors import MemlawError

KEPT = {
    "probe": "Every finished cell is kept: the same command goes on from there.",
    "demo": "Every finished cell is kept: the same command goes on from there.",
}
"""What an interrupted command leaves behind; the others nothing."""


class Commands(TyperGroup):
    """A sentence and exit code 2 for bad input, 130 for Ctrl-C, a traceback for neither."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """`memlaw probe --status DIR` asks for nothing that a probe needs: it is `memlaw journal status DIR`."""
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


journal = typer.Typer(help="The files of a probe: inspect, verify, rebuild and export them.", no_args_is_help=True)


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


app.command(short_help="All of it once, on the bundled base")(demo)
app.command(short_help="What would keep the facts from being recalled")(on_inputs(check))
app.command(short_help="Will it fit? The rank the facts need")(on_inputs(plan))
app.command(short_help="The laws there are to plan with")(laws)
app.command(short_help="Make it stick: an adapter that recalls the facts verbatim")(on_inputs(train))
app.command(short_help="Did it stick? Every token, and a certificate for each fact")(on_inputs(recall))
app.command(short_help="Measure what ranks hold at several lengths: the points of a law")(on_inputs(probe))
app.command(short_help="Fit the law to a probe, or to a table of points")(fit)
app.command(short_help="One HTML page of everything measured")(report)
app.command(hidden=True, short_help="Where a probe stands")(status)
app.add_typer(journal, name="journal")
journal.command(short_help="Where a probe stands")(status)
journal.command(short_help="Read every file and check its SHA-256; change nothing")(verify)
journal.command(short_help="Put damaged files aside and write results.parquet again")(rebuild)
journal.command(short_help="All results as one table: .csv, .jsonl or .parquet")(export)
