"""Spatial entropy of a batch of attention maps: fastground and what one would write instead.

    python benches/bench_entropy.py

All on one thread, from float32 maps to one entropy each, the cut at the float64 mean. "per map
loop" has the shape of the published way, one map and one region at a time; it weights by mass, so
only its cost is comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import fastground as fg
import harness
import map_families
import numba
import numpy as np
import scipy.ndimage
import torch

EIGHT = np.ones((3, 3), dtype=np.int8)
FLAT = np.stack([np.zeros_like(EIGHT), EIGHT, np.zeros_like(EIGHT)])
"""8-connected inside a map, no link between maps."""


def foreground(maps: np.ndarray) -> np.ndarray:
    """Each map above its float64 mean."""
    means = maps.mean((1, 2), dtype=np.float64)
    return maps > means[:, None, None]


def entropies_of(areas: np.ndarray, owners: np.ndarray, count: int) -> np.ndarray:
    """The entropy of each map from the areas of all regions and the maps that they lie in."""
    total = np.bincount(owners, areas, minlength=count)
    sums = np.bincount(owners, areas * np.log(areas), minlength=count)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, np.log(total) - sums / total, np.inf)


def scipy_per_map(maps: np.ndarray) -> np.ndarray:
    """scipy.ndimage.label on each map."""
    result = np.empty(len(maps))
    for i, mask in enumerate(foreground(maps)):
        labels, _ = scipy.ndimage.label(mask, EIGHT)
        areas = np.bincount(labels.ravel())[1:]
        p = areas / areas.sum() if len(areas) else areas
        result[i] = -(p * np.log(p)).sum() if len(areas) else np.inf
    return result


def scipy_stacked(maps: np.ndarray) -> np.ndarray:
    """scipy.ndimage.label on the whole batch as one volume."""
    labels, count = scipy.ndimage.label(foreground(maps), FLAT)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    last = np.maximum.accumulate(labels.reshape(len(maps), -1).max(1))  # numbered map by map
    return entropies_of(areas, np.searchsorted(last, np.arange(1, count + 1)), len(maps))


def opencv_tiled(maps: np.ndarray) -> np.ndarray:
    """cv2's fastest labelling (BBDT) on one image of all maps, one empty cell between them."""
    count, h, w = maps.shape
    across = int(np.ceil(np.sqrt(count)))
    down = -(-count // across)
    tiles = np.zeros((down * across, h + 1, w + 1), dtype=np.uint8)
    tiles[:count, :h, :w] = foreground(maps)
    image = tiles.reshape(down, across, h + 1, w + 1).swapaxes(1, 2)
    image = np.ascontiguousarray(image).reshape(down * (h + 1), across * (w + 1))
    _, _, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(
        image, 8, cv2.CV_32S, cv2.CCL_BBDT
    )
    left, top = stats[1:, cv2.CC_STAT_LEFT], stats[1:, cv2.CC_STAT_TOP]
    owners = top // (h + 1) * across + left // (w + 1)
    return entropies_of(stats[1:, cv2.CC_STAT_AREA], owners, count)


def numba_union_find(maps: np.ndarray) -> np.ndarray:
    """A union-find over the labels of each map's cells, compiled, in one call."""
    return _numba_union_find(maps, maps.mean((1, 2), dtype=np.float64))


@numba.njit(cache=False)
def _unite(parent, a, b):  # type: ignore[no-untyped-def]
    while parent[a] != a:
        a = parent[a]
    while parent[b] != b:
        b = parent[b]
    parent[max(a, b)] = min(a, b)
    return min(a, b)


@numba.njit(cache=False)
def _numba_union_find(maps, means):  # type: ignore[no-untyped-def]
    """Provisional labels by the usual decisions: above decides alone, else above right and left."""
    count, h, w = maps.shape
    result = np.empty(count)
    labels = np.zeros((h + 1, w + 2), dtype=np.int32)  # 0 is background, and the border
    parent = np.empty(h * w // 2 + 2, dtype=np.int32)
    areas = np.empty(h * w // 2 + 2, dtype=np.int32)
    for m in range(count):
        last = 0
        for i in range(1, h + 1):
            for j in range(1, w + 1):
                if not maps[m, i - 1, j - 1] > means[m]:
                    labels[i, j] = 0
                    continue
                above, right = labels[i - 1, j], labels[i - 1, j + 1]
                before = labels[i - 1, j - 1] or labels[i, j - 1]
                if above:
                    here = above
                elif right:
                    here = _unite(parent, right, before) if before else right
                elif before:
                    here = before
                else:
                    last += 1
                    parent[last] = here = last
                    areas[last] = 0
                areas[here] += 1
                labels[i, j] = here
        total, sums = 0, 0.0
        for label in range(last, 0, -1):  # a parent is smaller than its children
            area = areas[label]
            if parent[label] != label:
                areas[parent[label]] += area
            else:
                total += area
                sums += area * np.log(area)
        result[m] = np.log(total) - sums / total if total > 0 else np.inf
    return result


def per_map_loop(maps: np.ndarray) -> np.ndarray:
    """One map at a time, one region at a time."""
    result = np.empty(len(maps))
    for i, cells in enumerate(maps):
        excess = cells - cells.mean()
        excess = np.where(excess > 0.001 * cells.mean(), excess, 0)
        labels, count = scipy.ndimage.label(excess > 0, EIGHT)
        masses = [excess[labels == region].sum() for region in range(1, count + 1)]
        shares = [mass / sum(masses) for mass in masses]
        result[i] = -sum(p * np.log(p) for p in shares)
    return result


def fastground_reference(maps: np.ndarray) -> np.ndarray:
    """The readable definition in PyTorch."""
    from fastground import reference

    return reference.entropy(torch.from_numpy(maps)).numpy()


CONTENDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fastground": fg.entropy,
    "numba, union-find of cells": numba_union_find,
    "OpenCV BBDT, tiled": opencv_tiled,
    "SciPy, one stack": scipy_stacked,
    "SciPy, per map": scipy_per_map,
    "PyTorch (reference)": fastground_reference,
    "per map loop": per_map_loop,
}


def error_of(result: np.ndarray, truth: np.ndarray) -> str:
    """The largest difference, or in how many maps one is infinite and the other is not."""
    finite = np.isfinite(truth)
    wrong = int((np.isfinite(result) != finite).sum())
    largest = np.abs(result[finite] - truth[finite]).max(initial=0)
    return f"{wrong} wrong" if wrong else f"{largest:.0e}"


def main() -> None:
    options = harness.parser("Spatial entropy against its peers.")
    options.add_argument("--count", type=int, default=1024, help="maps a batch")
    options.add_argument("--size", type=int, default=24, help="cells a side")
    given = options.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    for family in map_families.FAMILIES:
        maps = map_families.batch(family, given.count, given.size)
        truth = scipy_per_map(maps)
        errors = {name: error_of(call(maps), truth) for name, call in CONTENDERS.items()}
        errors["per map loop"] = "other weight"
        rows += harness.compare(
            family,
            {name: partial(call, maps) for name, call in CONTENDERS.items()},
            items=given.count,
            errors=errors,
            repeats=given.repeats,
            min_time_ms=given.min_time_ms,
        )
    described = f"{given.count} maps of {given.size} x {given.size} float32, one thread, CPU time"
    harness.report("entropy", described, rows, save=not given.no_save)


if __name__ == "__main__":
    main()
