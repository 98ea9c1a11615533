"""Evaluation: the groundings of a data set against the truth.

    samples --image by image--> grounder --groundings--> a row a sample (`scoring.py`) --> Scores
                                                             |
                                                         RUN/shards/00000.parquet, RUN/scores.json

With a folder every row is kept, boxes and masks too, and a run that is stopped goes on where it was
(`runs.py`). A row hangs on its own image alone, so the scores are the same as of a run that never
stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from fastground import runs
from fastground.attention import right_answers
from fastground.ranking import kept_of
from fastground.result import Grounding
from fastground.scoring import Columns, Scores, encoded, measured, scored
from fastground.shards import Key, key, write_whole
from fastground.table import installed_versions
from fastground.textboxes import written_boxes
from fastground.types import Recipe, Sample

SCORES_FILE = "scores.json"
COMMAND = "evaluate"
BASELINES = ("text-box",)
SHARD_SAMPLES = 256
"""Samples of a shard, at least."""


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
) -> Scores:
    """The scores of a grounder on samples with true boxes.

    Args:
        grounder: a `Grounder`, or anything that takes an image and a list of expressions.
        samples: those of an image one after another; masks and answers are scored where given.
        dataset: what a run is labelled with.
        split: likewise.
        baseline: "text-box" asks the model for coordinates, too.
        out: a folder for the scores and, sample by sample, for what they are made of; stopped at
            any instant, the next evaluation with the same folder goes on. Needs a `Grounder`,
            pyarrow and pycocotools.
        resume: whether the folder may hold shards of an earlier run.
        progress: called with the number of samples done.
        seed: of the intervals' resampling.
        shard_samples: samples of a shard, at least; an earlier run's own where it goes on.
        options: what else the data set was loaded with, as JSON has it; a run of others is refused.

    Returns:
        Every score with its interval; nan where the samples lack that truth.

    Raises:
        ValueError: no samples, one without a box, an unknown baseline, a folder with a run of
            something else, or a grounder without a model where one is needed.
        OSError: the folder cannot be written.
    """
    if baseline is not None and baseline not in BASELINES:
        raise ValueError(f"baseline must be {' or '.join(BASELINES)}, but got {baseline!r}")
    lvlm = getattr(grounder, "lvlm", None)
    if lvlm is None and (out is not None or baseline is not None):
        raise ValueError(
            f"grounder must be a fastground.Grounder where out or baseline is given, but got "
            f"{type(grounder).__name__}; leave them out"
        )
    recipe = getattr(grounder, "recipe", Recipe())
    done = 0

    def count(samples: int) -> None:
        nonlocal done
        done += samples
        if progress is not None:
            progress(done)

    def measure(groups: Iterable[list[Sample]]) -> tuple[list[Key], Columns]:
        keys: list[Key] = []
        pieces: list[Columns] = []
        for group in groups:
            found = grounder(group[0].image, [s.expression for s in group])
            piece = measured(group, found, recipe)
            if out is not None:
                piece |= encoded(group, found)
            if lvlm is not None:
                piece["rights"] = np.full(len(group), -1)
                if all(s.answer for s in group):
                    piece["rights"] = np.array(right_answers(lvlm, group, recipe=recipe), dtype=int)
            if baseline is not None and lvlm is not None:
                piece |= written_boxes(lvlm, group[0].image, [s.expression for s in group])
            pieces.append(piece)
            keys += map(key, group)
            count(len(group))
        columns = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
        del columns["image_ids"]  # a key has it
        return keys, columns

    place: Any = nullcontext(runs.InMemory({}, shard_samples))
    if out is not None:
        about = _about(grounder, dataset, split, options, baseline)
        place = runs.begin(out, about, resume=resume, shard_samples=shard_samples, command=COMMAND)
    with place as run:
        left = runs.left(run, samples, lambda _, many, __: count(many))
        for index, images in groupby(left, key=lambda one: one[0]):
            keys, columns = measure(group for _, group in images)
            run.write(index, keys, (), **columns)
        scores = scored(run.columns(), seed)
    if out is not None:
        # What JSON lacks, nan, becomes null.
        told = json.loads(json.dumps(scores.to_dict()), parse_constant=lambda _: None)
        write_whole(Path(out) / SCORES_FILE, json.dumps(told, indent=1).encode() + b"\n")
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
    return scored(runs.load_columns(folder, COMMAND)[0], seed)


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


def _about(
    grounder: Any,
    dataset: str,
    split: str,
    options: Mapping[str, Any] | None,
    baseline: str | None,
) -> dict[str, Any]:
    """What decides the numbers of a run."""
    lvlm, recipe = grounder.lvlm, grounder.recipe
    about = {
        "checkpoint": lvlm.checkpoint,
        "architecture": dict(lvlm.architecture),
        "weights": runs.fingerprint(lvlm.model.named_parameters()),
        "dataset": dataset,
        "split": split,
        "options": dict(options or {}),
        "heads": [list(head) for head in grounder.heads],
        "segmenter": _named(grounder.segmenter),
        "baseline": baseline,
        "recipe": recipe.to_dict(),
        "versions": installed_versions(),
    }
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
    return f"{name} {runs.fingerprint(weights().items())}"
