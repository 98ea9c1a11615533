"""Discovery: samples of a training split -> the head-statistics table -> the ranking of heads.

    samples --image by image, decoded ahead in threads--> several images a forward --> maps
    maps --> two numbers a head --> a shard of the table --> the run's folder, if one is asked for

A run that is stopped goes on where it was (`runs.py`): shards that are there are not done again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import DecompressionBombError

from fastground import models, ops, packing, runs
from fastground.attention import attention_of_images
from fastground.metrics import map_iou
from fastground.models import LVLM
from fastground.models.geometry import read_image
from fastground.ranking import rank_table
from fastground.shards import Key, Skipped, key
from fastground.stats import head_statistics, head_table, on_table
from fastground.table import HeadTable, installed_versions
from fastground.types import HeadRanking, Recipe, Sample

RANKING_FILE = "ranking.json"
MAX_BAD = 0.01
GRACE = 1000
"""Samples after which the share of unreadable ones is judged; before, as if there were so many."""
AHEAD, DECODERS = 8, 2
"""Images decoded ahead of the model, and the threads that do it."""


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
    max_bad: float = MAX_BAD,
    max_tokens: int = packing.MAX_TOKENS,
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
        out: a folder for the ranking and the table it is made from, which grows shard by shard;
            stopped at any instant, the next run with the same folder goes on. Needs pyarrow.
        resume: whether the folder may hold shards of an earlier run.
        max_bad: the largest share of samples whose image may be unreadable; they are skipped.
        max_tokens: most tokens of one forward, over all of its images.

    Returns:
        The ranking; `top()` are the localization heads.

    Raises:
        ValueError: no samples, fewer than trials, an unsupported model, bad input in a sample, too
            many unreadable images, or a folder with a run of something else.
        OSError: the folder cannot be written, as when the disk is full.
    """
    lvlm = models.wrap(model, processor, checkpoint=checkpoint)
    table = collect(
        lvlm, samples, recipe=recipe, dataset=dataset, split=split, progress=progress, out=out,
        resume=resume, max_bad=max_bad, max_tokens=max_tokens,
    )  # fmt: skip
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
    out: str | Path | None = None,
    resume: bool = True,
    max_bad: float = MAX_BAD,
    max_tokens: int = packing.MAX_TOKENS,
    shard_samples: int = runs.SHARD_SAMPLES,
) -> HeadTable:
    """The head-statistics table of these samples: several images a forward, the maps not kept.

    Args:
        lvlm: the model, from `fastground.models`.
        samples: as in `discover`; where one has a mask, each head's IoU with it is kept too.
        recipe: the statistics' switches and which token asks.
        dataset, split: labels.
        progress, out, resume, max_bad, max_tokens: as in `discover`.
        shard_samples: samples of a shard, at least; an earlier run's own where it goes on.

    Raises:
        ValueError, OSError: as `discover`, but for the trials.
    """
    about = {
        "checkpoint": lvlm.checkpoint,
        "architecture": dict(lvlm.architecture),
        "weights": runs.fingerprint(lvlm.model.named_parameters()),
        "dataset": dataset,
        "split": split,
        "recipe": recipe.to_dict(),
        "versions": installed_versions(),
    }
    watch = _Watch(max_bad, progress)
    place: Any = nullcontext(runs.InMemory(about, shard_samples))
    if out is not None:
        place = runs.begin(out, about, resume=resume, shard_samples=shard_samples)
    with place as run:
        runs.fill(
            run, samples, lambda groups: _measure(lvlm, groups, recipe, max_tokens, watch),
            watch.kept,
        )  # fmt: skip
        watch.end()
        return run.table(recipe)


@dataclass
class _Watch:
    """How many samples are done, told to whoever asked, and how many could not be."""

    max_bad: float
    progress: Callable[[int], None] | None
    done: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def kept(self, count: int, skipped: list[Skipped]) -> None:
        """An earlier run's; told with the first new ones, as a rate would count them."""
        self.done += count
        self.skipped += skipped

    def count(self, samples: int) -> None:
        self.done += samples
        if self.progress is not None:
            self.progress(self.done)

    def skip(self, group: list[Sample], reason: str) -> list[Skipped]:
        skipped = [(s.sample_id, s.image_id, reason) for s in group]
        self.skipped += skipped
        self.count(len(group))
        self._judge(max(self.done, GRACE))
        return skipped

    def end(self) -> None:
        if not self.done:
            raise ValueError("samples must hold at least one sample, but are empty")
        self._judge(self.done)
        if len(self.skipped) == self.done:
            self._judge(0)
        if self.progress is not None:
            self.progress(self.done)

    def _judge(self, of: int) -> None:
        if len(self.skipped) > self.max_bad * of:
            sample_id, image_id, reason = self.skipped[0]
            raise ValueError(
                f"images must be readable but for max_bad={self.max_bad:g} of the samples, but "
                f"{len(self.skipped)} of {self.done} were not; the first is sample_id {sample_id}, "
                f"image_id {image_id}: {reason}; mend the images or raise max_bad"
            )


def _measure(
    lvlm: LVLM,
    groups: Iterable[list[Sample]],
    recipe: Recipe,
    max_tokens: int,
    watch: _Watch,
) -> tuple[list[Key], list[Skipped], dict[str, np.ndarray]]:
    """One shard: what was read, what was not, and the matrices of numbers."""
    shape = (lvlm.architecture["num_layers"], lvlm.architecture["num_heads"])
    waiting: deque[list[Sample]] = deque()
    keys: list[Key] = []
    skipped: list[Skipped] = []
    pieces: dict[str, list[np.ndarray]] = {"sums": [], "entropies": [], "ious": []}

    def asked() -> Iterator[tuple[Any, list[str]]]:
        for group, image in _decoded(groups):
            if isinstance(image, Exception):
                skipped.extend(watch.skip(group, " ".join(str(image).split())))
                continue
            waiting.append(group)
            yield image, [sample.expression for sample in group]

    for attention in attention_of_images(lvlm, asked(), recipe=recipe, max_tokens=max_tokens):
        group = waiting.popleft()
        both = head_table(head_statistics(attention, recipe), attention.heads, shape)
        ious = np.full(both[0].shape, np.nan, dtype=np.float32)
        if any(sample.mask is not None for sample in group):
            foreground = ops.binarize(attention.maps, cut=recipe.cut).cpu().numpy()
            for i, sample in enumerate(group):
                if sample.mask is not None:
                    iou = map_iou(foreground[i], sample.mask, attention.layout, sample.ignore)
                    ious[i] = on_table(iou, attention.heads, shape, 0)
        for column, values in zip(pieces.values(), (*both, ious), strict=True):
            column.append(values)
        keys += map(key, group)
        watch.count(len(group))
    nothing = np.zeros((0, *shape), dtype=np.float32)
    matrices = {name: np.concatenate([nothing, *column]) for name, column in pieces.items()}
    if np.isnan(matrices["ious"]).all():
        del matrices["ious"]
    return keys, skipped, matrices


def _decoded(groups: Iterable[list[Sample]]) -> Iterator[tuple[list[Sample], Any]]:
    """Each image's samples with the image in RGB, or with the error that tells why there is none.

    Images are decoded a few ahead, in threads: Pillow lets others run meanwhile.
    """
    ahead: deque[tuple[list[Sample], Future[Any]]] = deque()
    pool = ThreadPoolExecutor(DECODERS)
    try:
        for group in groups:
            ahead.append((group, pool.submit(_read, group[0].image)))
            if len(ahead) > AHEAD:
                first, image = ahead.popleft()
                yield first, image.result()
        for first, image in ahead:
            yield first, image.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(image: Any) -> Any:
    try:
        return read_image(image)
    except (ValueError, OSError, SyntaxError, DecompressionBombError) as error:
        return error
