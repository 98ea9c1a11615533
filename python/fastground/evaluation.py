"""Evaluation: the groundings of a data set against the truth.

    samples --image by image--> grounder --groundings--> a row a sample (`scoring.py`) --> Scores
                                                             |
                                                         RUN/shards/00000.parquet, RUN/scores.json

How rows are gathered, kept and gone on with, `gathering.py` tells. With a folder each has boxes and
masks, too, so that other scores can be made of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from fastground import gathering, runs
from fastground.attention import right_answers
from fastground.counts import check_whole
from fastground.election import kept_of
from fastground.gathering import SCORES_FILE, SHARD_SAMPLES, Way
from fastground.manifest import fingerprint
from fastground.result import Grounding
from fastground.scoring import Columns, Scores, counted, encoded, measured, scored, united
from fastground.textboxes import written_boxes
from fastground.types import Recipe, Sample
from fastground.watch import MAX_BAD

__all__ = ["SCORES_FILE", "evaluate", "load", "references"]

COMMAND = "evaluate"
BASELINES = ("text-box",)
PLURALS = ("region", "union")


def evaluate(
    grounder: Callable[[Any, list[str]], list[Grounding]],
    samples: Iterable[Sample],
    *,
    dataset: str = "",
    split: str = "",
    baseline: str | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    progress: Callable[[int], None] | None = None,
    seed: int = 0,
    shard_samples: int = SHARD_SAMPLES,
    options: Mapping[str, Any] | None = None,
    max_bad: float = MAX_BAD,
    workers: int | None = None,
    plurals: str = "region",
) -> Scores:
    """The scores of a grounder on samples with true boxes or masks.

    Args:
        grounder: a `Grounder`, or anything that takes an image and a list of expressions.
        samples: those of an image one after another; masks and answers are scored where given.
        dataset: what a run is labelled with.
        split: likewise.
        baseline: "text-box" asks the model for coordinates, too.
        out: a folder for the scores and, sample by sample, for what they are made of; stopped at
            any instant, the next evaluation with the same folder goes on. Needs a `Grounder`,
            pyarrow and pycocotools. The scores are of all that it holds, with a warning where
            fewer samples are given.
        resume: whether the folder may hold shards of an earlier run.
        progress: called with the number of samples done.
        seed: of the intervals' resampling.
        shard_samples: samples of a shard, at least; an earlier run's own where it goes on.
        options: what else the data set was loaded with, as JSON has it; a run of others is refused.
        max_bad: the largest share of samples whose image may be unreadable; they are skipped and
            counted in `Scores.skipped`, with a warning at the end.
        workers: processes that read images ahead of a `Grounder`, to the same scores. By default
            as many as there are cores for beside a GPU, and 0 where the model runs on the CPU.
        plurals: what is scored of samples of the kind plural, as PNG has them: the kept region
            ("region"), or all objects of `Grounding.objects` together ("union"), for which
            `Recipe.objects` must say how small an object may be; where `Recipe.region` keeps all
            regions as one, those of them that are not too small.

    Returns:
        Every score with its interval; nan where the samples lack that truth.

    Raises:
        ValueError: no samples, one without a true box, an unknown baseline or way to score
            plurals, too many unreadable images, a folder with a run of something else, or a
            grounder without a model where one is needed.
        OSError: the folder cannot be written.
        RuntimeError: a worker was killed, or failed; says at which samples.
    """
    if not callable(grounder):
        raise ValueError(
            f"grounder must be a fastground.Grounder, but got {type(grounder).__name__}; samples "
            "come after it"
        )
    if baseline is not None and baseline not in BASELINES:
        raise ValueError(f"baseline must be {' or '.join(BASELINES)}, but got {baseline!r}")
    if plurals not in PLURALS:
        raise ValueError(f"plurals must be one of {', '.join(PLURALS)}, but got {plurals!r}")
    lvlm = getattr(grounder, "lvlm", None)
    if lvlm is None and (out is not None or baseline is not None or workers):
        raise ValueError(
            f"grounder must be a fastground.Grounder where out, baseline or workers are given, but "
            f"got {type(grounder).__name__}; leave them out"
        )
    check_whole("seed", seed, 0)
    recipe = getattr(grounder, "recipe", Recipe())
    if plurals == "union" and lvlm is not None and recipe.objects is None:
        raise ValueError(
            "recipe.objects must be a share where plurals is 'union', but is None, so that one "
            "expression has one object; give objects=0.2 (--recipe objects=0.2), or another share"
        )
    way = Way(dataset, split, options, out, resume, shard_samples, max_bad, workers, progress)

    def measure(group: list[Sample], image: Any) -> Columns:
        expressions = [s.expression for s in group]
        found = grounder(image, expressions)
        told = counted(group, found, recipe)
        if plurals == "union":
            found = united(group, found, recipe)
        piece = measured(group, found, recipe) | told
        if out is not None:
            piece |= encoded(group, found)
        if lvlm is not None:
            piece["rights"] = np.full(len(group), -1)
            if all(s.answer for s in group):
                piece["rights"] = np.array(right_answers(lvlm, group, recipe=recipe), dtype=int)
        if baseline is not None and lvlm is not None:
            piece |= written_boxes(lvlm, image.image, expressions)
        return piece

    read: Any = gathering.alone
    if lvlm is not None:
        pixels = baseline is not None or getattr(grounder, "segmenter", None) is not None
        read = gathering.of_model(lvlm, recipe, workers, keep_images=pixels)
    about = partial(_about, grounder, baseline, plurals, way)
    columns, skipped = gathering.gathered(samples, read, measure, way, about, COMMAND)
    scores = scored(columns, seed, skipped=skipped)
    way.save(scores.to_dict())
    return scores


def load(folder: str | Path, *, seed: int = 0) -> Scores:
    """The scores of a run's folder, made anew from its rows; no model is asked.

    Args:
        folder: what `evaluate` wrote into.
        seed: of the intervals' resampling.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a shard is missing or damaged.
    """
    columns, about = runs.load_columns(folder, COMMAND)
    return scored(columns, seed, skipped=len(about["skipped"]))


def references(checkpoint: str, dataset: str, split: str) -> str:
    """What others have published of the same model on the same data, or nothing.

    Source: Kang et al., CVPR 2025; GroundVLP, AAAI 2024; two reports from outside.
    """
    if "llava-1.5-7b" not in checkpoint.lower() or (dataset, split) != ("refcoco", "val"):
        return ""
    return (
        "published, Acc@0.5: 86.5 (the paper), 46 and 26 (attempts from outside), 56.2 (the same "
        "model's own text boxes, on a mixed val), 65.0 (GroundVLP)"
    )


def _about(grounder: Any, baseline: str | None, plurals: str, way: Way) -> dict[str, Any]:
    """What decides the numbers of a run."""
    recipe = grounder.recipe
    about = way.about(
        grounder.lvlm,
        recipe,
        heads=[list(head) for head in grounder.heads],
        segmenter=_named(grounder.segmenter),
        baseline=baseline,
        plurals=None if plurals == "region" else plurals,  # as in folders of before it was asked
    )
    if recipe.selection == "greedy" and (kept := kept_of(grounder.ranking, recipe)) is not None:
        digest = blake2b(kept.tobytes(), digest_size=8).hexdigest()
        about["kept_heads"] = f"{kept.sum()} of {kept.size}, {digest}"
    return about


def _named(segmenter: Any) -> str:
    """A segmenter by what it says of itself, and by its weights where it has any.

    Not by its address, which no later process has again.
    """
    name = re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(segmenter))
    weights = getattr(getattr(getattr(segmenter, "model", None), "model", None), "state_dict", None)
    if weights is None:
        return name
    return f"{name} {fingerprint(weights().items())}"
