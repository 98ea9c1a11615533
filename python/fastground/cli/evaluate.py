"""fastground evaluate: scores on held-out expressions."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fastground import terminal
from fastground.cli.options import (
    Changes,
    Data,
    Dataset,
    Json,
    Model,
    NumSamples,
    Options,
    Profile,
    Ranking,
    Seed,
    Segmenter,
    leave,
    make_grounder,
    options_of,
)


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
        bool,
        typer.Option(
            "--table", help="Beside ablations and chance; --ranking is discover's folder."
        ),
    ] = False,
    option: Options = None,
    profile: Profile = None,
    recipe: Changes = None,
    as_json: Json = False,
) -> None:
    """Score a model's groundings on held-out expressions."""
    if table and (ranking is None or not ranking.is_dir()):
        raise ValueError(
            "--table needs --ranking FOLDER, what discover wrote with --out; make it with: "
            f"fastground discover {model} --out FOLDER"
        )
    if table and segmenter is not None:
        raise ValueError(
            "--table compares boxes of maps, which no --segmenter changes; leave one of them out"
        )
    from fastground import comparison, datasets, evaluation, runs
    from fastground.ranking import rank_table

    samples = datasets.load(
        dataset, data=data, split=split, num_samples=num_samples, seed=seed,
        **options_of(dataset, option),
    )  # fmt: skip
    grounder = make_grounder(model, ranking, profile, recipe, segmenter)
    with (
        terminal.progress("evaluating", num_samples) as advance,
        terminal.interruptible() as stop,
    ):
        if table:
            heads = runs.load(ranking)  # type: ignore[arg-type]
            found = rank_table(heads, grounder.recipe, seed=seed)
            scores: Any = comparison.compare(
                grounder.lvlm, heads, found, stop.until(samples), seed=seed, progress=advance
            )
        else:
            scores = evaluation.evaluate(grounder, stop.until(samples), progress=advance)
    if as_json:
        terminal.print_json(
            model=model, dataset=dataset, split=split, recipe=grounder.recipe.to_dict(),
            scores=scores.to_dict(),
        )  # fmt: skip
    elif table:
        terminal.show(terminal.comparison_table(scores))
        for name, value in terminal.comparison_facts(scores):
            print(f"{name}: {value}")
    else:
        heads_used = ", ".join(map(str, grounder.heads))
        terminal.show(terminal.scores_table(scores, f"{model} on {dataset} {split}: {heads_used}"))
    leave(stop, scores.num_samples)
