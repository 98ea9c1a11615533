"""The commands, in the order of the help, and how a run of one ends."""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer

from fastground import terminal
from fastground.cli import (
    INTERRUPTED,
    Interrupt,
    bench,
    demo,
    discover,
    evaluate,
    explain,
    ground,
    info,
    rank,
    report,
)

UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a wrong command line; it has no public name of its own."""

app = typer.Typer(
    name="fastground",
    help="Where a frozen vision-language model looks: boxes from its localization heads.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        import fastground

        print(fastground.__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and exit.")
    ] = False,
) -> None:
    pass


app.command(epilog='Example: fastground ground photo.png "the small red star" --out found.png')(
    ground.ground
)
app.command(epilog='Example: fastground explain tiny photo.png "left circle" --out why.png')(
    explain.explain
)
app.command(epilog="Example: fastground discover tiny --num-samples 1000 --out runs/tiny")(
    discover.discover
)
app.command(epilog="Example: fastground rank runs/tiny --recipe elbow=0.2 --ablations")(rank.rank)
app.command(epilog="Example: fastground report runs/tiny --out runs/tiny/report")(report.report)
app.command(epilog="Example: fastground evaluate tiny --num-samples 1000")(evaluate.evaluate)
app.command(epilog="Example: fastground demo --out demo --num-samples 1000")(demo.demo)
app.command(epilog="Example: fastground info --models")(info.info)
app.command(epilog="Example: fastground bench --dtype float16 --device cuda")(bench.bench)


def run(arguments: list[str] | None, stop: Interrupt) -> int:
    """Run a command.

    Args:
        arguments: of the command line; None: the process's own.
        stop: what Ctrl-C calls.

    Returns:
        Its exit code.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a result is not lost for want of a letter
    try:
        with terminal.one_line_warnings():
            code = app(arguments, prog_name="fastground", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Abort:
        return INTERRUPTED
    except UsageError as error:
        message = error.format_message().rstrip(".")
        if message:  # without any arguments the help has been shown, and says it all
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "fastground"
            terminal.say(f"{message}; see {command} --help")
    except Exception as error:
        if stop.asked:  # some code makes another error of an interruption
            return INTERRUPTED
        if not isinstance(error, (ValueError, OSError, ModuleNotFoundError)):
            raise
        terminal.say(_line(error))
    return 2


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return (
            f"{str(error.filename)!r} must be a place that can be read and written, but is not "
            f"({error.strerror}); give another"
        )
    return " ".join(str(error).split())
