"""Evaluation: the groundings of a data set against the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastground.attention import right_answers
from fastground.datasets.images import by_image
from fastground.grounding import peaks
from fastground.metrics import BoxTally, mask_overlap, mask_scores, mean
from fastground.types import Grounding, Recipe, Sample


@dataclass(frozen=True)
class Scores:
    """How well boxes and masks match the truth; nan where the data set lacks that truth."""

    num_samples: int
    accuracy: float
    """Acc@0.5: share of expressions whose box has IoU >= 0.5; a box not found is a miss."""
    interval: tuple[float, float]
    """95 % of the accuracy, images resampled."""
    mean_iou: float
    """Of the boxes."""
    pointing: float
    """Share whose combined map peaks inside the true mask."""
    ciou: float
    """Of the masks: sum of intersections over sum of unions."""
    giou: float
    """Of the masks: mean of the samples."""
    by_kind: dict[str, float]
    """Acc@0.5 by what the expressions use."""
    answer_accuracy: float
    """Share of questions that greedy decoding answers right, word for word."""

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, as JSON keeps it."""
        return asdict(self)


def evaluate(
    grounder: Callable[[Any, list[str]], list[Grounding]],
    samples: Iterable[Sample],
    *,
    progress: Callable[[int], None] | None = None,
    seed: int = 0,
) -> Scores:
    """The scores of a grounder on samples with true boxes.

    Args:
        grounder: a `Grounder`, or anything that takes an image and a list of expressions.
        samples: those of an image one after another; masks and answers are scored where given.
        progress: called with the number of samples done.
        seed: of the interval's resampling.

    Returns:
        Every score with its interval; nan where the samples lack that truth.

    Raises:
        ValueError: no samples, or one without a box.
    """
    tally = BoxTally()
    overlaps: list[tuple[int, int]] = []
    right: list[bool] = []
    lvlm = getattr(grounder, "lvlm", None)
    for group in by_image(samples):
        found = grounder(group[0].image, [s.expression for s in group])
        recipe = getattr(grounder, "recipe", Recipe())
        points = [peaks(g.map, g.layout, recipe).tolist() for g in found]
        tally.add(group, np.stack([g.box.cpu().numpy() for g in found]), np.array(points))
        for sample, grounding in zip(group, found, strict=True):
            if sample.mask is not None:
                overlaps.append(mask_overlap(grounding.mask.cpu(), sample.mask, sample.ignore))
        if lvlm is not None and all(s.answer for s in group):
            right += right_answers(lvlm, group, recipe=recipe)
        if progress is not None:
            progress(len(tally))
    ciou, giou = mask_scores(*zip(*overlaps, strict=True)) if overlaps else (float("nan"),) * 2
    return Scores(
        num_samples=len(tally),
        **vars(tally.scores(seed)),
        ciou=ciou,
        giou=giou,
        answer_accuracy=mean(right),
    )
