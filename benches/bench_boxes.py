"""The kept region's box of a batch of maps: fastground and what one would write instead.

    python benches/bench_boxes.py

All on one thread, from float32 maps, unsmoothed, to the box of the region with the largest hull, or
with the most cells. fastground also gives mass and score; the peers of the second also the hull.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import cv2
import fastground as fg
import harness
import map_families
import numpy as np
import scipy.ndimage
import scipy.spatial
import torch

RECIPE = fg.Recipe(kernel_size=1)
MOST_CELLS = fg.Recipe(kernel_size=1, region="component")
EIGHT = np.ones((3, 3), dtype=np.int8)
CORNERS = np.array([(0, 0), (1, 0), (0, 1), (1, 1)], dtype=np.int32)


def fastground_boxes(maps: np.ndarray) -> np.ndarray:
    """One call."""
    return fg.boxes(maps[:, None], recipe=RECIPE).xyxy


def opencv_per_map(maps: np.ndarray) -> np.ndarray:
    """cv2's regions, the hull of each one's cells, and of that hull's cells' corners its area."""
    result = np.zeros((len(maps), 4))
    for i, cells in enumerate(maps):
        mask = (cells > cells.mean(dtype=np.float64)).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        best = 0.0
        for region, (x, y, w, h, _) in enumerate(stats[1:].tolist(), start=1):
            if w * h <= best:
                continue
            part = cv2.inRange(labels[y : y + h, x : x + w], region, region)
            outer = cv2.convexHull(cv2.findNonZero(part)).reshape(-1, 1, 2)
            area = cv2.contourArea(cv2.convexHull((outer + CORNERS).reshape(-1, 2)))
            if area > best:
                best, result[i] = area, (x, y, x + w, y + h)
    return result


def scipy_per_map(maps: np.ndarray) -> np.ndarray:
    """scipy.ndimage.label, find_objects and scipy.spatial.ConvexHull."""
    result = np.zeros((len(maps), 4))
    for i, cells in enumerate(maps):
        labels, _ = scipy.ndimage.label(cells > cells.mean(dtype=np.float64), EIGHT)
        best = 0.0
        for region, (rows, columns) in enumerate(scipy.ndimage.find_objects(labels), start=1):
            h, w = rows.stop - rows.start, columns.stop - columns.start
            if h * w < best:
                continue
            part = np.argwhere(labels[rows, columns] == region)
            corners = np.concatenate([part + corner for corner in np.ndindex(2, 2)])
            area = scipy.spatial.ConvexHull(corners).volume
            if area > best:
                best, result[i] = area, (columns.start, rows.start, columns.stop, rows.stop)
    return result


def fastground_most_cells(maps: np.ndarray) -> np.ndarray:
    """One call."""
    return fg.boxes(maps[:, None], recipe=MOST_CELLS).xyxy


def opencv_most_cells(maps: np.ndarray) -> np.ndarray:
    """cv2's region of the most cells, their hull and its bounding rectangle."""
    result = np.zeros((len(maps), 4))
    for i, cells in enumerate(maps):
        mask = (cells > cells.mean(dtype=np.float64)).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        if count == 1:
            continue
        largest = 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
        part = cv2.findNonZero((labels == largest).astype(np.uint8))
        x, y, w, h = cv2.boundingRect(cv2.convexHull(part))
        result[i] = x, y, x + w, y + h
    return result


def scipy_most_cells(maps: np.ndarray) -> np.ndarray:
    """scipy.ndimage.label, the most cells by bincount, and scipy.spatial.ConvexHull."""
    result = np.zeros((len(maps), 4))
    for i, cells in enumerate(maps):
        labels, count = scipy.ndimage.label(cells > cells.mean(dtype=np.float64), EIGHT)
        if count == 0:
            continue
        part = np.argwhere(labels == 1 + np.bincount(labels.ravel())[1:].argmax())
        corners = np.concatenate([part + corner for corner in np.ndindex(2, 2)])
        hull = corners[scipy.spatial.ConvexHull(corners).vertices]
        result[i] = *hull.min(0)[::-1], *hull.max(0)[::-1]
    return result


Contenders = dict[str, Callable[[np.ndarray], np.ndarray]]

CONTENDERS: Contenders = {
    "fastground": fastground_boxes,
    "OpenCV, per map": opencv_per_map,
    "SciPy, per map": scipy_per_map,
}
BY_CELLS: Contenders = {
    "fastground": fastground_most_cells,
    "OpenCV, per map": opencv_most_cells,
    "SciPy, per map": scipy_most_cells,
}
WORKLOADS = {"": CONTENDERS, ", most cells": BY_CELLS}


def main() -> None:
    options = harness.parser("Boxes against their peers.")
    options.add_argument("--count", type=int, default=1024, help="maps a batch")
    options.add_argument("--size", type=int, default=24, help="cells a side")
    given = options.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    for family, (named, contenders) in itertools.product(map_families.FAMILIES, WORKLOADS.items()):
        maps = map_families.batch(family, given.count, given.size)
        truth = contenders["OpenCV, per map"](maps)
        errors = {
            name: f"{int((call(maps) != truth).any(1).sum())} differ"
            for name, call in contenders.items()
        }
        rows += harness.compare(
            family + named,
            {name: partial(call, maps) for name, call in contenders.items()},
            items=given.count,
            errors=errors,
            repeats=given.repeats,
            min_time_ms=given.min_time_ms,
        )
    described = (
        f"{given.count} maps of {given.size} x {given.size} float32, one thread, CPU time; "
        "differences from OpenCV are ties in size"
    )
    harness.report("boxes", described, rows, save=not given.no_save)


if __name__ == "__main__":
    main()
