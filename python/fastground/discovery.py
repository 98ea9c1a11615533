"""Discovery: samples of a training split -> the head-statistics table -> the ranking of heads.

    samples --image by image, read ahead by workers--> several images a forward --> maps
    maps --> two numbers a head --> a shard of the table --> the run's folder, if one is asked for

A run that is stopped goes on where it was (`runs.py`): shards that are there are not done again,
and their images not opened. Shards are made here, one after another (`measuring.py`), or by actors
of Ray Data on many GPUs (`cluster.py`): then neither the model is needed here, but its name alone,
nor torch, which takes as long to be imported as Ray.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastground import cluster, packing, runs
from fastground.counts import check_whole
from fastground.manifest import identity
from fastground.ranking import MOST_TRIALS, rank_table
from fastground.shards import Measured
from fastground.table import HeadTable, installed_versions
from fastground.types import RANKING_FILE, HeadRanking, Recipe, Sample
from fastground.watch import MAX_BAD, Watch

if TYPE_CHECKING:
    from fastground.models import LVLM

ENGINES = ("plain", "ray")
"""Who makes the shards: this process, or actors of Ray Data."""


def discover(
    model: Any,
    processor: Any,
    samples: Iterable[Sample],
    *,
    recipe: Recipe = Recipe(),
    trials: int = 5,
    seed: int = 0,
    checkpoint: str | None = None,
    dataset: str = "",
    split: str = "",
    progress: Callable[[int], None] | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    retry_skipped: bool = False,
    max_bad: float = MAX_BAD,
    max_tokens: int = packing.MAX_TOKENS,
    workers: int | None = None,
    engine: str = "plain",
    num_actors: int | None = None,
) -> HeadRanking:
    """The model's attention heads, ranked by how well they localize what an expression means.

    Args:
        model: a supported transformers LVLM; it is only run, never changed. For engine "ray" its
            checkpoint's name does, and no weights are loaded here.
        processor: its processor; not read where `model` is a name.
        samples: images and expressions of a training split, those of an image one after another;
            boxes and masks are not needed.
        recipe: every choice of the method.
        trials: disjoint random parts of the samples on which the ranking is repeated.
        seed: of the parts.
        checkpoint: what the ranking is labelled with; the model's own name unless given.
        dataset: likewise, the data set.
        split: likewise, its split.
        progress: called with the number of samples done.
        out: a folder for the ranking and the table it is made from, which grows shard by shard;
            stopped at any instant, the next run with the same folder goes on. Needs pyarrow. The
            ranking is of all that it holds, with a warning where fewer samples are given.
        resume: whether the folder may hold shards of an earlier run.
        retry_skipped: whether images that an earlier run could not read are tried again; their
            shards are done anew. Otherwise they stay skipped.
        max_bad: the largest share of samples whose image may be unreadable; they are skipped,
            with a warning at the end.
        max_tokens: most tokens of one forward, over all of its images.
        workers: processes that read images ahead of the model. By default as many as there are
            cores for beside a GPU, and 0 where the model runs on the CPU itself.
        engine: "plain", or "ray": many GPUs or machines, by Ray Data, to the same table; each
            actor loads the model by its name, which `checkpoint` must be, and has workers of its
            own.
        num_actors: of Ray; as many as GPUs, or as CPUs but one, unless given.

    Returns:
        The ranking; `top()` are the localization heads.

    Raises:
        ValueError: no samples, fewer than trials, an unsupported model, bad input in a sample, too
            many unreadable images, or a folder with a run of something else.
        OSError: the folder cannot be written, as when the disk is full.
            Of engine "ray" also ChildProcessError or TimeoutError: too many actors were killed, or
            the cluster has no room for one.
        RuntimeError: a worker was killed, or failed; says at which samples.
    """
    check_whole("seed", seed, 0)
    check_whole("trials", trials, 1, MOST_TRIALS)
    lvlm: LVLM | str = model
    if not (engine == "ray" and isinstance(model, str)):
        from fastground import models

        lvlm = models.wrap(model, processor, checkpoint=checkpoint)
    table = collect(
        lvlm, samples, recipe=recipe, dataset=dataset, split=split, progress=progress, out=out,
        resume=resume, retry_skipped=retry_skipped, max_bad=max_bad, max_tokens=max_tokens,
        workers=workers, engine=engine, num_actors=num_actors,
    )  # fmt: skip
    ranking = rank_table(table, recipe, trials=trials, seed=seed)
    if out is not None:
        ranking.save(Path(out) / RANKING_FILE)
    return ranking


def collect(
    lvlm: LVLM | str,
    samples: Iterable[Sample],
    *,
    recipe: Recipe = Recipe(),
    dataset: str = "",
    split: str = "",
    progress: Callable[[int], None] | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    retry_skipped: bool = False,
    max_bad: float = MAX_BAD,
    max_tokens: int = packing.MAX_TOKENS,
    workers: int | None = None,
    engine: str = "plain",
    num_actors: int | None = None,
    shard_samples: int = runs.SHARD_SAMPLES,
) -> HeadTable:
    """The head-statistics table of these samples: several images a forward, the maps not kept.

    Args:
        lvlm: the model, from `fastground.models`; for engine "ray" its checkpoint's name does.
        samples: as in `discover`; where one has a mask, each head's IoU with it is kept too.
        recipe: the statistics' switches and which token asks.
        dataset, split: labels.
        progress, out, resume, retry_skipped, max_bad, max_tokens, workers, engine, num_actors: as
            in `discover`.
        shard_samples: samples of a shard, at least; an earlier run's own where it goes on.

    Raises:
        ValueError, OSError, RuntimeError: as `discover`, but for the trials.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, but got {engine!r}")
    if engine != "ray" and num_actors is not None:
        raise ValueError(f"num_actors must be None unless engine is 'ray', but got {num_actors}")
    check_whole("max_tokens", max_tokens, 1)
    check_whole("shard_samples", shard_samples, 1)
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"recipe must be a Recipe, but got {type(recipe).__name__}; give Recipe(top_n=5), say"
        )
    runs.needs_folder(out, resume=not resume, retry_skipped=retry_skipped)
    watch = Watch(max_bad, progress)
    how = {"recipe": recipe, "max_tokens": max_tokens, "workers": workers}
    make: Callable[..., Generator[tuple[int, Measured]]]
    with ExitStack() as stack:
        if engine == "ray":
            actors = stack.enter_context(cluster.actors(_loader(lvlm), num_actors))
            asked = actors.ask(identity)
            samples = _opened(samples, shard_samples)
            model = _theirs(asked(), lvlm)
            make = partial(_by_actors, actors, model)
        elif isinstance(lvlm, str):
            raise ValueError(
                f"lvlm must be a model unless engine is 'ray', but got {lvlm!r}; load it with "
                "fastground.models.load"
            )
        else:
            from fastground import measuring

            model = identity(lvlm)
            make = partial(measuring.shards, lvlm)
        about = {
            **model,
            "dataset": dataset,
            "split": split,
            "recipe": recipe.to_dict(),
            "versions": installed_versions(),
        }
        run = runs.Run(about, shard_samples)
        if out is not None:
            run = stack.enter_context(
                runs.begin(
                    out, about, resume=resume, retry_skipped=retry_skipped,
                    shard_samples=shard_samples,
                )
            )  # fmt: skip
        left = runs.left(run, samples, watch.kept)
        with closing(make(left, watch, **how)) as made:
            for index, shard in made:
                run.write(index, shard.keys, shard.skipped, **shard.matrices)
        watch.end()
        run.keep_rest(watch.done)
        return run.table(recipe)


def _by_actors(
    actors: cluster.Actors,
    model: dict[str, Any],
    left: Iterable[tuple[int, list[Sample]]],
    watch: Watch,
    **how: Any,
) -> Generator[tuple[int, Measured]]:
    """As `measuring.shards`, made by actors of Ray, in the order in which they end."""
    shards = (list(images) for _, images in groupby(left, key=itemgetter(0)))
    jobs = (partial(_measure_apart, left=shard, model=model, **how) for shard in shards)
    with closing(actors.each(jobs)) as made:
        for index, shard in made:
            watch.begin(index)
            watch.shard(len(shard.keys), shard.skipped)
            yield index, shard


def _measure_apart(
    lvlm: LVLM, *, left: list[tuple[int, list[Sample]]], model: dict[str, Any], **how: Any
) -> tuple[int, Measured]:
    """One shard, in an actor."""
    from fastground import measuring

    if identity(lvlm) != model:
        raise ValueError(
            f"checkpoint must be the same model on all machines, but {lvlm.checkpoint!r} on "
            f"{platform.node()} has other weights than where it was loaded first"
        )
    [made] = measuring.shards(lvlm, left, Watch(max_bad=1, progress=None), **how)
    return made


def _loader(lvlm: LVLM | str) -> Callable[[str], LVLM]:
    """What loads the same model in an actor."""
    if isinstance(lvlm, str):
        return partial(_load, lvlm, None)
    return partial(_load, lvlm.checkpoint, lvlm.model.dtype)


def _load(checkpoint: str, dtype: Any, device: str) -> LVLM:
    from fastground import models

    return models.load(checkpoint, device=device, dtype=dtype)


def _theirs(theirs: dict[str, Any], lvlm: LVLM | str) -> dict[str, Any]:
    """The identity of the model that actors load, which is this one where it is there."""
    if not isinstance(lvlm, str) and theirs["weights"] != identity(lvlm)["weights"]:
        raise ValueError(
            f"checkpoint must name the model itself for engine 'ray', whose actors load it, but "
            f"{lvlm.checkpoint!r} has other weights; save the model and its processor to a folder "
            "with save_pretrained, load that with fastground.models.load, or choose engine 'plain'"
        )
    return theirs


def _opened(samples: Iterable[Sample], count: int) -> Iterator[Sample]:
    """The samples, so many of them asked for: they are read while actors load their models."""
    samples = iter(samples)
    return chain(list(islice(samples, count)), samples)
