"""What one would write instead of `fastground.entropy`: the peers, each from maps to entropies.

All take (count, grid_h, grid_w) NumPy maps and cut at the float64 mean, by NumPy, whose float64
means are the fastest to be had; float16 is widened once, as no peer computes in it. The union-find
is the fastest known peer: compiled, a row at a time, the labels of the row above kept, areas
counted on the way, n ln n read from a table. "per map loop" has the shape of the published way,
one map and one region at a time; it weights by mass, so only its cost is comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import cv2
import numba
import numpy as np
import scipy.ndimage
import torch

EIGHT = np.ones((3, 3), dtype=np.int8)
FLAT = np.stack([np.zeros_like(EIGHT), EIGHT, np.zeros_like(EIGHT)])
"""8-connected inside a map, no link between maps."""


def widened(maps: np.ndarray) -> np.ndarray:
    """The maps in a dtype that peers and compilers know."""
    return maps.astype(np.float32) if maps.dtype == np.float16 else maps


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
    for i, mask in enumerate(foreground(widened(maps))):
        labels, _ = scipy.ndimage.label(mask, EIGHT)
        areas = np.bincount(labels.ravel())[1:]
        p = areas / areas.sum() if len(areas) else areas
        result[i] = -(p * np.log(p)).sum() if len(areas) else np.inf
    return result


def scipy_stacked(maps: np.ndarray) -> np.ndarray:
    """scipy.ndimage.label on the whole batch as one volume."""
    labels, count = scipy.ndimage.label(foreground(widened(maps)), FLAT)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    last = np.maximum.accumulate(labels.reshape(len(maps), -1).max(1))  # numbered map by map
    return entropies_of(areas, np.searchsorted(last, np.arange(1, count + 1)), len(maps))


def opencv_tiled(maps: np.ndarray) -> np.ndarray:
    """cv2's fastest labelling (BBDT) on one image of all maps, one empty cell between them."""
    count, h, w = maps.shape
    across = int(np.ceil(np.sqrt(count)))
    down = -(-count // across)
    tiles = np.zeros((down * across, h + 1, w + 1), dtype=np.uint8)
    tiles[:count, :h, :w] = foreground(widened(maps))
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
    maps = widened(maps)
    return _union_find(maps, maps.mean((1, 2), dtype=np.float64), _terms(maps[0].size))


def numba_threads(pool: ThreadPoolExecutor, shares: int, maps: np.ndarray) -> np.ndarray:
    """The same on threads, widening and means too, a share of the maps each."""
    return np.concatenate(list(pool.map(numba_union_find, np.array_split(maps, shares))))


@cache
def _terms(cells: int) -> np.ndarray:
    """n ln n."""
    n = np.maximum(np.arange(cells + 1), 1)
    return n * np.log(n)


@numba.njit(inline="always")
def _root(parent, label):  # type: ignore[no-untyped-def]
    while parent[label] != label:
        label = parent[label]
    return label


@numba.njit(nogil=True)
def _union_find(maps, means, terms):  # type: ignore[no-untyped-def]
    """Provisional labels by the usual decisions: above decides alone, else above right and left."""
    count, h, w = maps.shape
    result = np.empty(count)
    above, here = np.zeros(w + 2, np.uint32), np.zeros(w + 2, np.uint32)  # 0 is no label
    parent, areas = np.empty((2, h * w // 2 + 2), np.uint32)
    for m in range(count):
        last, mean = np.uint32(0), means[m]
        above[:] = 0
        for i in range(h):
            row, left = maps[m, i], np.uint32(0)
            for j in range(np.uint32(w)):  # unsigned: an index that numba need not wrap
                if not row[j] > mean:
                    here[j + 1] = left = np.uint32(0)
                    continue
                right, before = above[j + 2], above[j] or left
                if above[j + 1]:
                    left = above[j + 1]
                elif right and before:
                    a, b = _root(parent, right), _root(parent, before)
                    left = min(a, b)
                    parent[max(a, b)] = left
                elif right or before:
                    left = right or before
                else:
                    last += np.uint32(1)
                    left = parent[last] = last
                    areas[last] = 0
                areas[left] += np.uint32(1)
                here[j + 1] = left
            above, here = here, above
        total, sums = np.int64(0), 0.0
        for label in range(last, 0, -1):  # a parent is smaller than its children
            if parent[label] != label:
                areas[parent[label]] += areas[label]
            else:
                total += areas[label]
                sums += terms[areas[label]]
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


FAST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "numba, union-find of cells": numba_union_find,
    "OpenCV BBDT, tiled": opencv_tiled,
    "SciPy, per map": scipy_per_map,
}
SLOW: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "SciPy, one stack": scipy_stacked,
    "PyTorch (reference)": fastground_reference,
    "per map loop": per_map_loop,
}
