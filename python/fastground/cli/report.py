"""fastground report: a page on a ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastground import terminal
from fastground.cli.options import Json, ranking_file
from fastground.types import HeadRanking


def report(
    ranking: Annotated[Path, typer.Argument(help="What discover wrote, file or folder.")],
    out: Annotated[Path, typer.Option(help="A folder for index.html.")] = Path("report"),
    as_json: Json = False,
) -> None:
    """Write a page on a ranking: the elbow, the election, the heads."""
    from fastground import report as reports

    path = reports.write(out, HeadRanking.load(ranking_file(ranking)))
    if as_json:
        terminal.print_json(page=str(path))
    else:
        print(f"wrote {path}")
