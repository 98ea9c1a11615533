"""The command line: one module a command, in the order of the help.

Results go to stdout, as text for people or with --json as JSON alone; progress and errors go to
stderr. Exit codes: 0 done, 2 bad input (one line says what and the way out), 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from fastground import terminal
from fastground.cli import bench, demo, discover, evaluate, explain, ground, info, rank, report
from fastground.cli.options import INTERRUPTED

UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a wrong command line; it has no public name of its own."""

app = typer.Typer(
    name="fastground",
    help="Where a frozen vision-language model looks: boxes from its localization heads.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave the process with its exit code."""
    with terminal.one_line_warnings(), terminal.noticed() as stop:
        code = _run(arguments, stop)
    if code == INTERRUPTED:
        terminal.say("interrupted")
    sys.exit(code if isinstance(code, int) else 0)


def _run(arguments: list[str] | None, stop: terminal.Noticed) -> Any:
    try:
        return app(arguments, standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except UsageError as error:
        message = error.format_message().rstrip(".")
        if message:  # without any arguments the help has been shown, and says it all
            terminal.say(f"{message}; see fastground --help")
    except Exception as error:
        if stop.asked:  # of an import that was interrupted another error remains
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
