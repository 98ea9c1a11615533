"""fastground report: a page on a run."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from fastground import terminal
from fastground.cli.options import (
    Changes,
    Data,
    Json,
    Options,
    Profile,
    Seed,
    options_of,
    recipe_of,
    writable,
)
from fastground.cli.unread import GROUNDING
from fastground.types import RANKING_FILE, HeadRanking

TRIALS = 5
PER_IMAGE = 1000
"""More expressions than an image has."""
_WITHOUT_EXAMPLES = "only the examples are made with; add --examples N"


def report(
    run: Annotated[Path, typer.Argument(help="What discover wrote, its folder or ranking.json.")],
    out: Annotated[Path, typer.Option(help="A folder for index.html.")] = Path("report"),
    format: Annotated[
        str, typer.Option(help="Of the charts' files: png, svg or pdf; the page holds its own.")
    ] = "png",
    examples: Annotated[
        int,
        typer.Option(min=0, max=1000, help="Images shown with the heads' maps; runs the model."),
    ] = 0,
    model: Annotated[str | None, typer.Option(help="Where it lies now; the run's if not.")] = None,
    data: Data = None,
    option: Options = None,
    seed: Seed = 0,
    profile: Profile = None,
    recipe: Changes = None,
    as_json: Json = False,
) -> None:
    """Write a page on a run: the elbow, the election, what the choice of heads hangs on."""
    from fastground import report as reports

    writable(out)
    needless = {"--model": model, "--data": data, "--option": option}
    for name, value in needless.items():
        if value and not examples:
            raise ValueError(
                f"{name} says how examples are made, but there are none; add --examples N"
            )
    unread = None if examples else dict.fromkeys(GROUNDING, _WITHOUT_EXAMPLES)
    ranking, evidence = _read(run, profile, recipe, seed, unread)
    galleries = {}
    if examples:
        title = f"Expressions of {ranking.dataset} {ranking.split}, as they came"
        galleries[title] = _examples(ranking, examples, model, data, option, seed)
    path = reports.write(out, ranking, galleries=galleries, format=format, **evidence)
    if as_json:
        terminal.print_json(page=str(path))
    else:
        print(f"wrote {path}")


def _read(
    path: Path,
    profile: str | None,
    changes: list[str] | None,
    seed: int,
    unread: dict[str, str] | None,
) -> tuple[HeadRanking, dict[str, Any]]:
    """A ranking and, where its table is there, what else the page tells from it.

    The run's own ranking is taken where it is of the whole table and no other choice is asked for.
    """
    from fastground import runs
    from fastground.ablations import ablate
    from fastground.manifest import MANIFEST
    from fastground.ranking import rank_table

    other = profile is not None or bool(changes)
    if not (path / MANIFEST).is_file():
        ranking = HeadRanking.load(path)
        if other:
            raise ValueError(
                f"--profile and --recipe need a run's table, but {path} has none; give the folder "
                "that discover wrote with --out"
            )
        return ranking, {}
    table = runs.load(path)
    own = path / RANKING_FILE
    made = HeadRanking.load(own) if own.is_file() and not other else None
    if made is not None and made.num_samples == table.num_samples:
        ranking = made
    else:
        chosen = recipe_of(table.recipe, profile, changes, unread)
        trials = min(TRIALS, table.num_samples)
        ranking = rank_table(table, chosen, trials=trials, seed=seed)
    return ranking, {"ablations": ablate(table, ranking, seed=seed), "ious": table.mean_ious}


def _examples(
    ranking: HeadRanking,
    count: int,
    model: str | None,
    data: Path | None,
    option: list[str] | None,
    seed: int,
) -> list[Any]:
    """The first expression of so many images of the run's own data, grounded."""
    from fastground import datasets, models
    from fastground.datasets.images import by_image
    from fastground.grounder import Grounder
    from fastground.report.examples import grounded

    samples = datasets.load(
        ranking.dataset, data=data, split=ranking.split, num_samples=PER_IMAGE * count, seed=seed,
        **options_of(ranking.dataset, option),
    )  # fmt: skip
    grounder = Grounder(models.load(model or ranking.checkpoint), ranking)
    return list(grounded(grounder, islice((group[0] for group in by_image(samples)), count)))
