"""Measuring: images -> several a forward -> maps -> two numbers a head, shard by shard.

A GPU is never waited for but where a shard is whole: the numbers go to the host beside its work;
where samples have masks, each head's IoU with them, too. This is where discovery needs a model; it
runs where the model is, in the process that asked or in an actor of Ray's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch

from fastground.ahead import Unreadable, default_workers, read_ahead
from fastground.attention import attention_of_encoded, check_finite
from fastground.metrics import iou_in_cells, mask_in_cells
from fastground.models import LVLM
from fastground.shards import Key, Measured, Skipped, key
from fastground.stats import foreground, head_statistics, head_table, on_table
from fastground.types import AttentionMaps, Encoded, HeadStats, Recipe, Sample
from fastground.watch import Watch

Read = tuple[int, list[Sample], Encoded | Unreadable]
"""An image that was read: its shard's number, its samples, and what the model takes."""


def shards(
    lvlm: LVLM,
    left: Iterable[tuple[int, list[Sample]]],
    watch: Watch,
    *,
    recipe: Recipe,
    max_tokens: int,
    workers: int | None,
) -> Generator[tuple[int, Measured]]:
    """Shards made by this process, one after another, each by forwards of its own.

    Args:
        lvlm: the model, from `fastground.models`.
        left: images, each with the number of its shard; from `runs.left`.
        watch: told of each sample.
        recipe, max_tokens, workers: as in `discovery.discover`.
    """
    workers = default_workers(lvlm.device) if workers is None else workers
    with closing(read_ahead(lvlm, left, recipe, workers)) as read:
        for index, images in groupby(read, key=itemgetter(0)):
            watch.begin(index)
            yield index, _measure(lvlm, images, recipe, max_tokens, watch)


def _measure(
    lvlm: LVLM, images: Iterable[Read], recipe: Recipe, max_tokens: int, watch: Watch
) -> Measured:
    """One shard."""
    shape = (lvlm.architecture["num_layers"], lvlm.architecture["num_heads"])
    waiting: deque[list[Sample]] = deque()
    keys: list[Key] = []
    skipped: list[Skipped] = []
    coming: list[HeadStats] = []
    ious: list[torch.Tensor] = []
    masked: list[bool] = []

    def encoded() -> Iterator[Encoded]:
        for _, group, image in images:
            if isinstance(image, Unreadable):
                skipped.extend(watch.skip(group, image.reason))
                continue
            waiting.append(group)
            yield image

    for attention in attention_of_encoded(lvlm, encoded(), recipe=recipe, max_tokens=max_tokens):
        group = waiting.popleft()
        if not coming:
            check_finite(lvlm, attention.sums)  # at once, not after a thousand samples
        stats = head_statistics(attention, recipe, nan="propagate")
        coming.append(HeadStats(*(part.to("cpu", non_blocking=True) for part in stats)))
        ious.append(_ious(attention, group, recipe).to("cpu", non_blocking=True))
        masked += [sample.mask is not None for sample in group]
        keys += map(key, group)
        watch.count(len(group))
    if not coming:
        nothing = np.zeros((0, *shape), dtype=np.float32)
        return Measured(keys, skipped, {"sums": nothing, "entropies": nothing})
    if attention.maps.is_cuda:
        torch.cuda.synchronize(attention.maps.device)
    sums, entropies = (torch.cat(parts) for parts in zip(*coming, strict=True))
    check_finite(lvlm, sums)
    table = head_table(HeadStats(sums, entropies), attention.heads, shape)
    matrices = {"sums": table[0], "entropies": table[1]}
    if any(masked):
        matrices["ious"] = on_table(torch.cat(ious), attention.heads, shape, 0)
        matrices["ious"][~np.array(masked)] = np.nan
    return Measured(keys, skipped, matrices)


def _ious(attention: AttentionMaps, group: list[Sample], recipe: Recipe) -> torch.Tensor:
    """(samples, heads) float32: each head's IoU with the mask; 0 where there is none."""
    maps = attention.maps
    ious = torch.zeros(maps.shape[:2], device=maps.device)
    if all(sample.mask is None for sample in group):
        return ious
    cells = foreground(attention, recipe).view(torch.uint8)
    for i, sample in enumerate(group):
        if sample.mask is not None:
            counts, area = mask_in_cells(sample.mask, attention.layout, sample.ignore)
            pixels = torch.from_numpy(counts)
            if maps.is_cuda:  # a copy out of other memory waits
                pixels = pixels.pin_memory()
            pixels = pixels.to(maps.device, non_blocking=True)
            # On a CPU slow straight from bool.
            ious[i] = iou_in_cells(cells[i].double(), pixels, area)
    return ious
