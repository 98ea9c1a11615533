"""fastground evaluate: scores on held-out expressions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastground import tables, terminal
from fastground.cli.options import (
    Changes,
    Data,
    Dataset,
    Json,
    MaxBad,
    Model,
    NumSamples,
    Options,
    Profile,
    Ranking,
    Seed,
    Segmenter,
    Workers,
    leave,
    make_grounder,
    options_of,
)
from fastground.cli.unread import CHOICE, STATISTICS, of_evaluation

if TYPE_CHECKING:
    from fastground.grounder import Grounder
    from fastground.types import Sample

PLURALS = ("png", "listed")
"""Data sets in files that may have samples of the kind plural."""


def evaluate(
    model: Model,
    dataset: Dataset = "shapes",
    data: Data = None,
    split: Annotated[str, typer.Option(help="Never the one discovered on.")] = "test",
    num_samples: NumSamples = 1000,
    seed: Seed = 0,
    ranking: Ranking = None,
    segmenter: Segmenter = None,
    table: Annotated[
        str | None,
        typer.Option(
            metavar="heads|4|5|8|switches|objects",
            help="Beside ablations and chance; a table of the paper; choice by choice from this "
            "recipe to a release; or which regions are objects. heads and 5 need discover's folder "
            "as --ranking.",
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="text-box", help="Also ask the model for coordinates.")
    ] = None,
    plurals: Annotated[
        str,
        typer.Option(
            metavar="region|union",
            help="What is scored of plural phrases, as PNG has them: the kept region, or all "
            "objects found together, which needs --recipe objects=SHARE.",
        ),
    ] = "region",
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for scores and every sample's row; run again, it goes on."),
    ] = None,
    max_bad: MaxBad = 0.01,
    workers: Workers = None,
    option: Options = None,
    profile: Profile = None,
    recipe: Changes = None,
    as_json: Json = False,
) -> None:
    """Score a model's groundings on held-out expressions."""
    from fastground import datasets, evaluation
    from fastground.manifest import MANIFEST

    run = ranking if ranking is not None and (ranking / MANIFEST).is_file() else None
    if table is not None:
        _check_table(table, model, run, segmenter, baseline, plurals)
    options = options_of(dataset, option)
    several = options.get("several", False)
    if (plurals == "union" or table == "objects") and not (dataset in PLURALS or several):
        raise ValueError(
            f"{'--table objects' if table else '--plurals union'} scores what means several "
            f"objects, of which {dataset} as given has none; take {' or '.join(PLURALS)}, or "
            "shapes with --option several=true"
        )
    samples = datasets.load(
        dataset, data=data, split=split, num_samples=num_samples, seed=seed, **options
    )
    # A table of a run ranks its heads anew, by the whole recipe; and rows of "switches" choose them
    # for each sample.
    read: tuple[str, ...] = () if table is None or run is None else (*STATISTICS, *CHOICE)
    if table == "switches":
        read = (*STATISTICS, *(name for name in CHOICE if name != "top_n"), *read)
    unread = of_evaluation(table, plurals == "union" or several or dataset == "listed")
    grounder = make_grounder(model, ranking, profile, recipe, segmenter, read=read, unread=unread)
    with (
        terminal.progress("evaluating", num_samples) as advance,
        terminal.interruptible() as stop,
    ):
        left = stop.until(samples)
        how: dict[str, Any] = {
            "dataset": dataset, "split": split, "options": options, "out": out, "max_bad": max_bad,
            "workers": workers, "progress": advance, "seed": seed,
        }  # fmt: skip
        if table is None:
            scores: Any = evaluation.evaluate(
                grounder, left, baseline=baseline, plurals=plurals, **how
            )
        else:
            scores = _compared(table, grounder, run, left, how)
    if as_json:
        terminal.print_json(
            model=model, dataset=dataset, split=split, recipe=grounder.recipe.to_dict(),
            plurals=plurals, scores=scores.to_dict(),
        )  # fmt: skip
    elif table is not None:
        terminal.show(tables.of_comparison(scores))
        if table == "heads":
            for name, value in tables.comparison_facts(scores):
                print(f"{name}: {value}")
    else:
        drawn = scores.num_samples + scores.skipped == num_samples and dataset in datasets.FILES
        part = f", {num_samples:,} drawn at random" if drawn else ""
        title = f"{model} on {dataset} {split}{part}: {_heads(grounder)}"
        if plurals == "union":
            title += ", plurals by all of their objects"
        references = evaluation.references(model, dataset, split)
        terminal.show(tables.of_scores(scores, title, grounder.recipe, references))
    if out is not None and not as_json:
        print(f"wrote {out / evaluation.SCORES_FILE}")
    leave(stop, scores.num_samples)


def _check_table(
    table: str, model: str, run: Path | None, segmenter: str | None, baseline: str | None,
    plurals: str,
) -> None:  # fmt: skip
    """Nothing, where there is such a table and what it needs, and no option that it does not read.

    Raises:
        ValueError: otherwise.
    """
    from fastground import comparison

    if table not in comparison.TABLES:
        raise ValueError(
            f"--table must be one of {', '.join(comparison.TABLES)}, but got {table!r}"
        )
    if table in ("heads", "5") and run is None:
        raise ValueError(
            f"--table {table} needs --ranking FOLDER, what discover wrote with --out; make it "
            f"with: fastground discover {model} --out FOLDER"
        )
    given = {
        "segmenter": segmenter, "baseline": baseline,
        "plurals": None if plurals == "region" else plurals,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"--table scores many choices of heads by their maps alone, without --{name}; "
                "leave one of them out"
            )


def _compared(
    table: str, grounder: Grounder, run: Path | None, samples: Iterable[Sample], how: dict[str, Any]
) -> Any:
    """The table's rows; of a run its heads are ranked anew by the grounder's recipe."""
    from fastground import comparison, runs
    from fastground.ranking import rank_table

    found, heads = grounder.ranking, None
    if run is not None:
        heads = runs.load(run)
        found = rank_table(heads, grounder.recipe, trials=len(found.trials), seed=how["seed"])
    elif found.recipe != grounder.recipe:
        found = replace(found, recipe=grounder.recipe)
    if table != "heads":
        return comparison.paper_table(table, grounder.lvlm, found, samples, table=heads, **how)
    assert heads is not None, "asked for above"
    return comparison.compare(grounder.lvlm, heads, found, samples, **how)


def _heads(grounder: Grounder) -> str:
    """Which heads were used, in words."""
    if grounder.recipe.selection == "greedy":
        return f"{grounder.recipe.k} heads, own for each sample"
    return ", ".join(map(str, grounder.heads))
