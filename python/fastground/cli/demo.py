"""fastground demo: the whole way with the model that ships along."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastground import terminal
from fastground.cli.options import (
    Changes,
    Json,
    NumSamples,
    Profile,
    Seed,
    Trials,
    recipe_of,
    writable,
)
from fastground.types import Recipe


def demo(
    out: Annotated[Path, typer.Option(help="A folder for index.html and its pictures.")] = (
        Path("demo")
    ),
    num_samples: NumSamples = 1000,
    trials: Trials = 5,
    seed: Seed = 0,
    profile: Profile = None,
    recipe: Changes = None,
    as_json: Json = False,
) -> None:
    """Discover the heads of the model that ships along, compare, and tell it on a page."""
    unread = dict.fromkeys(("prompt", "masks", "blocks"), "the demo does not read; leave it out")
    chosen = recipe_of(Recipe(), profile, recipe, unread)
    writable(out)
    from contextlib import redirect_stdout

    from fastground import demo as demonstration

    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        told = demonstration.run(
            out, num_samples=num_samples, trials=trials, seed=seed, recipe=chosen
        )
    if as_json:
        terminal.print_json(**told)
