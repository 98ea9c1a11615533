"""Discovery: samples of a training split -> the head-statistics table -> the ranking of heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastground import models, ops
from fastground.attention import attention_maps
from fastground.datasets.images import by_image
from fastground.metrics import map_iou
from fastground.models import LVLM
from fastground.ranking import rank
from fastground.stats import head_statistics, head_table, on_table
from fastground.table import HeadTable, installed_versions
from fastground.types import HeadRanking, Recipe, Sample

TABLE_FILE = "head_statistics.safetensors"
RANKING_FILE = "ranking.json"


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
) -> HeadRanking:
    """The model's attention heads, ranked by how well they localize what an expression means.

    Args:
        model: a supported transformers LVLM; it is only run, never changed.
        processor: its processor.
        samples: images and expressions of a training split, those of an image one after another;
            boxes and masks are not needed.
        recipe: every choice of the method.
        trials: disjoint random parts of the samples on which the ranking is repeated.
        seed: of the parts.
        checkpoint: what the ranking is labelled with; the model's own name unless given.
        dataset: likewise, the data set.
        split: likewise, its split.
        progress: called with the number of samples done.
        out: a folder for the ranking and the table it was made from; each is written at the end,
            whole or not at all, the table even where the ranking is then refused.

    Returns:
        The ranking; `top()` are the localization heads.

    Raises:
        ValueError: no samples, fewer than trials, an unsupported model, or bad input in a sample.
    """
    lvlm = models.wrap(model, processor, checkpoint=checkpoint)
    table = collect(lvlm, samples, recipe=recipe, dataset=dataset, split=split, progress=progress)
    if out is not None:  # before the ranking, whose refusal must not cost the forwards
        table.save(Path(out) / TABLE_FILE)
    ranking = rank_table(table, recipe, trials=trials, seed=seed)
    if out is not None:
        ranking.save(Path(out) / RANKING_FILE)
    return ranking


def collect(
    lvlm: LVLM,
    samples: Iterable[Sample],
    *,
    recipe: Recipe = Recipe(),
    dataset: str = "",
    split: str = "",
    progress: Callable[[int], None] | None = None,
) -> HeadTable:
    """The head-statistics table of these samples: one forward an image, the maps not kept.

    Args:
        lvlm: the model, from `fastground.models`.
        samples: as in `discover`; where one has a mask, each head's IoU with it is kept too.
        recipe: the statistics' switches and which token asks.
        dataset, split: labels.
        progress: called with the number of samples done.

    Raises:
        ValueError: no samples, or bad input in one of them.
    """
    shape = (lvlm.architecture["num_layers"], lvlm.architecture["num_heads"])
    sums, entropies, ious = [], [], []
    sample_ids: list[int] = []
    image_ids: list[int] = []
    for group in by_image(samples):
        attention = attention_maps(
            lvlm, group[0].image, [s.expression for s in group], recipe=recipe
        )
        both = head_table(head_statistics(attention, recipe), attention.heads, shape)
        sums.append(both[0])
        entropies.append(both[1])
        ious.append(np.full(sums[-1].shape, np.nan, dtype=np.float32))
        if any(s.mask is not None for s in group):
            foreground = ops.binarize(attention.maps, cut=recipe.cut).cpu().numpy()
            for i, sample in enumerate(group):
                if sample.mask is not None:
                    iou = map_iou(foreground[i], sample.mask, attention.layout, sample.ignore)
                    ious[-1][i] = on_table(iou, attention.heads, shape, 0)
        sample_ids += [s.sample_id for s in group]
        image_ids += [s.image_id for s in group]
        if progress is not None:
            progress(len(sample_ids))
    if not sample_ids:
        raise ValueError("samples must hold at least one sample, but are empty")

    overlap = np.concatenate(ious)
    return HeadTable(
        sums=np.concatenate(sums),
        entropies=np.concatenate(entropies),
        sample_ids=np.array(sample_ids, dtype=np.int64),
        image_ids=np.array(image_ids, dtype=np.int64),
        recipe=recipe,
        checkpoint=lvlm.checkpoint,
        architecture=dict(lvlm.architecture),
        dataset=dataset,
        split=split,
        versions=installed_versions(),
        ious=None if np.isnan(overlap).all() else overlap,
    )


def rank_table(
    table: HeadTable, recipe: Recipe | None = None, *, trials: int = 5, seed: int = 0
) -> HeadRanking:
    """The ranking that a table gives under a recipe, without the model: milliseconds.

    Args:
        table: from `collect`.
        recipe: the table's own unless given; its statistics' switches must be the table's.
        trials: disjoint random parts of the samples on which the ranking is repeated.
        seed: of the parts.

    Raises:
        ValueError: the recipe asks for other statistics than the table holds, or too many trials.
    """
    recipe = table.recipe if recipe is None else recipe
    table.check(recipe)
    return rank(
        table.sums,
        table.entropies,
        recipe=recipe,
        trials=trials,
        seed=seed,
        checkpoint=table.checkpoint,
        architecture=table.architecture,
        dataset=table.dataset,
        split=table.split,
        versions=table.versions,
    )
