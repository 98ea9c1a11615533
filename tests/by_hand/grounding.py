"""k maps -> boxes and masks."""

import math
from typing import NamedTuple

import cv2
import numpy as np
import scipy.ndimage
import scipy.signal

from by_hand.heads import regions
from by_hand.look import inside, on_grid


class Found(NamedTuple):
    """An object in an image."""

    box: np.ndarray  # x1, y1, x2, y2 in pixels
    mask: np.ndarray
    score: float
    mass: float
    share: float  # of the attention of all foreground


def cleared(view, heads, generic, recipe):
    """The heads' maps without what they see whatever is asked."""
    out = []
    for layer, head in heads:
        cells, mean = view.maps[layer, head], view.maps[layer].mean(0)
        if recipe.sinks == "relative":
            ratio = cells / (generic.maps[layer, head] + 1e-3 * generic.maps[layer, head].mean())
            cells = ratio * cells.sum() / ratio.sum()
        elif recipe.sinks == "centre":
            cells = np.maximum(cells - mean, 0)
        elif recipe.sinks == "drop":
            cells = np.where(mean > recipe.sink_share * mean.sum(), 0, cells)
        out.append(cells)
    return out


def smooth(cells, recipe):
    if recipe.sigma == 0:
        return cells
    reach = recipe.kernel_size // 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / recipe.sigma) ** 2)
    taps /= taps.sum()
    border = {"reflect101": "reflect", "reflect": "symmetric"}[recipe.border]
    return scipy.signal.convolve2d(np.pad(cells, reach, border), np.outer(taps, taps), "valid")


def hull(part):
    cells = np.argwhere(part)[:, ::-1]
    corners = np.concatenate([cells + corner for corner in np.ndindex(2, 2)]).astype(np.int32)
    return cv2.convexHull(corners)


def in_hull(part):
    """The cells whose centre lies in the convex hull of a region."""
    corners = hull(part)[:, 0]
    y, x = np.indices(part.shape) + 0.5
    sides = [
        (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])
        for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)
    ]
    return np.all(np.array(sides) >= 0, 0) | np.all(np.array(sides) <= 0, 0)


def pixel_box(part, place):
    """x1, y1, x2, y2 of a region's cells, cut to the image."""
    rows, columns = part.any(1).nonzero()[0], part.any(0).nonzero()[0]
    corners = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    (height, width), cell, origin = place
    box = corners * np.tile(cell, 2) + np.tile(origin, 2)
    return np.clip(box, 0, [width, height, width, height])


def found(maps, place, recipe):
    """The combined map; what is kept, or None; further objects, the largest share first."""
    combined = sum(smooth(cells, recipe) for cells in maps)
    counts = np.ones(combined.shape, bool)
    if recipe.padding == "exclude":
        counts = inside(place, combined.shape)
    mean = combined[counts].mean()
    foreground = counts & (combined > mean)
    parts = regions(foreground)
    if not parts:
        return combined, None, []
    size = {
        "hull": lambda part: cv2.contourArea(hull(part)),
        "component": np.sum,
        "mass": lambda part: combined[part].sum(),
        "all": np.sum,
    }[recipe.region]
    best = max(parts, key=lambda part: (size(part), combined[part].sum(), -part.argmax()))
    if recipe.region == "all":
        best = foreground

    def one(part):
        within = counts & (in_hull(part) if recipe.region == "hull" else part)
        outside = combined[counts & ~within]
        inner = combined[within]
        score = inner.mean() / outside.mean() if outside.any() else math.inf
        mass, share = inner.sum() / combined[counts].sum(), combined[part].sum()
        share /= combined[foreground].sum()
        return Found(pixel_box(part, place), pixels(part), score, mass, share)

    def pixels(part):
        y, x = on_grid(place)
        at = np.meshgrid(y - 0.5, x - 0.5, indexing="ij")
        large = scipy.ndimage.map_coordinates(combined, at, order=1, mode="nearest")
        i, j = np.floor(y).astype(int), np.floor(x).astype(int)
        there = np.outer((i >= 0) & (i < part.shape[0]), (j >= 0) & (j < part.shape[1]))
        cells = part[np.ix_(i.clip(0, part.shape[0] - 1), j.clip(0, part.shape[1] - 1))]
        return (large > mean) & cells & there

    others = []
    if recipe.objects is not None:
        others = [one(part) for part in parts if not np.array_equal(part, best)]
        others = [o for o in others if o.share >= recipe.objects]
    return combined, one(best), sorted(others, key=lambda o: -o.share)
