"""fastground rank: the heads of a run under other choices, without its model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fastground import tables, terminal
from fastground.cli.options import Changes, Json, Profile, Seed, Trials, recipe_of, writable
from fastground.cli.unread import GROUNDING

_WITHOUT_OUT = "only grounding reads; add --out FILE, so that the ranking tells it"


def rank(
    run: Annotated[Path, typer.Argument(help="The folder that discover wrote.")],
    trials: Trials = 5,
    seed: Seed = 0,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Beside other N, thresholds and criteria.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="A file for the ranking, which ground and evaluate take.")
    ] = None,
    profile: Profile = None,
    recipe: Changes = None,
    as_json: Json = False,
) -> None:
    """Rank a run's heads anew from its table: any choice of how heads are chosen, in seconds."""
    from fastground import runs
    from fastground.ablations import ablate
    from fastground.ranking import rank_table

    if out is not None:
        writable(out.parent)
        if out.is_dir():
            raise ValueError(f"--out must be a file, but {str(out)!r} is a folder; name one in it")
    table = runs.load(run)
    unread = dict.fromkeys(GROUNDING, _WITHOUT_OUT) if out is None else None
    chosen = recipe_of(table.recipe, profile, recipe, unread)
    ranking = rank_table(table, chosen, trials=trials, seed=seed)
    others = ablate(table, ranking, seed=seed) if ablations else None
    if out is not None:
        ranking.save(out)
    if as_json:
        told: dict[str, Any] = {} if others is None else {"ablations": others.to_dict()}
        terminal.print_json(**ranking.to_dict(), **told)
        return
    terminal.show(tables.of_ranking(ranking))
    if others is not None:
        terminal.show(tables.of_choices(others))
        terminal.show(tables.of_sureness(others))
    if out is not None:
        print(f"wrote {out}")
