"""fastground discover: a model's localization heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

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
    Seed,
    Trials,
    Workers,
    leave,
    options_of,
    recipe_of,
)
from fastground.types import RANKING_FILE, Recipe, Sample


def discover(
    model: Model,
    dataset: Dataset = "shapes",
    data: Data = None,
    split: Annotated[str, typer.Option(help="Never the one evaluated on.")] = "train",
    num_samples: NumSamples = 1000,
    trials: Trials = 5,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for ranking.json and its table; run again, it goes on."),
    ] = None,
    retry_skipped: Annotated[
        bool, typer.Option("--retry-skipped", help="Try images again that a run before skipped.")
    ] = False,
    max_bad: MaxBad = 0.01,
    workers: Workers = None,
    engine: Annotated[
        str, typer.Option(metavar="plain|ray", help="ray: on many GPUs or machines, by Ray Data.")
    ] = "plain",
    num_actors: Annotated[
        int | None, typer.Option(min=1, help="Of Ray, a model each; one a GPU if not given.")
    ] = None,
    option: Options = None,
    profile: Profile = None,
    recipe: Changes = None,
    as_json: Json = False,
) -> None:
    """Find a model's localization heads on training expressions; no box is read."""
    if trials > num_samples:
        raise ValueError(
            f"--trials must be at most --num-samples, {num_samples:,}, since each has samples of "
            f"its own, but got {trials:,}"
        )
    chosen = recipe_of(Recipe(), profile, recipe)
    from fastground import datasets, discovery

    read = partial(
        datasets.load, dataset, data=data, split=split, num_samples=num_samples, seed=seed,
        **options_of(dataset, option),
    )  # fmt: skip
    samples: Iterable[Sample]
    if engine == "ray":  # actors load the model, and meanwhile the samples are read
        samples = _later(read)
        named, processor, share = model, None, None
    else:
        from fastground import models

        samples = read()
        lvlm = models.load(model)
        named, processor = lvlm.model, lvlm.processor
        share = terminal.gpu_share(lvlm.device)
    progress = terminal.progress("discovering heads", num_samples, share)
    with progress as advance, terminal.interruptible() as stop:
        ranking = discovery.discover(
            named, processor, stop.until(samples), recipe=chosen, trials=trials, seed=seed,
            checkpoint=model, dataset=dataset, split=split, progress=advance, out=out,
            retry_skipped=retry_skipped, max_bad=max_bad, workers=workers, engine=engine,
            num_actors=num_actors,
        )  # fmt: skip
    if as_json:
        terminal.print_json(**ranking.to_dict())
    else:
        terminal.show(tables.of_ranking(ranking))
        if out is not None:
            print(f"wrote {out / RANKING_FILE}")
    leave(stop, ranking.num_samples)


def _later(read: Callable[[], Iterable[Sample]]) -> Iterator[Sample]:
    """What it reads, when first asked for."""
    yield from read()
