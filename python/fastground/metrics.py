"""Boxes, masks and rankings against the truth. Plain float64 NumPy; no model, no maps kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastground.types import ImageLayout

SMALL, LARGE = 32**2, 96**2
"""Pixels below which COCO calls an object small, and above which large."""
MOST_DRAWN = 2**20
"""Groups drawn at once by a bootstrap: 8 MB each of three arrays."""


def box_iou(boxes: Any, truth: Any) -> np.ndarray:
    """Intersection over union of boxes, pair by pair.

    Args:
        boxes: (..., 4) x1, y1, x2, y2, half-open, so without a +1.
        truth: (..., 4), broadcast against `boxes`.

    Returns:
        (...) float64 in [0, 1]; 0 where both are empty.
    """
    a, b = np.asarray(boxes, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = sides.clip(0).prod(axis=-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).clip(0).prod(axis=-1) for x in (a, b))
    union = area_a + area_b - intersection
    return np.divide(intersection, union, out=np.zeros(union.shape), where=union > 0)


def accuracy(ious: Any, threshold: float = 0.5) -> float:
    """Share of expressions whose box reaches the threshold: Acc@0.5; nan without expressions."""
    ious = np.asarray(ious, dtype=np.float64)
    return float((ious >= threshold).mean()) if ious.size else float("nan")


def matched(boxes: Any, truths: Any, threshold: float = 0.5) -> int:
    """How many boxes are right where several objects are meant: each object is found once.

    Args:
        boxes: (n, 4) x1, y1, x2, y2, the surest first: each in turn takes, of the objects still
            left that it reaches the threshold with, that of the highest IoU, the last of equals.
        truths: (m, 4).
        threshold: of the IoU.

    Returns:
        At most min(n, m); over m it is the recall, over n the precision.

    Source: COCO's evaluation, pycocotools' COCOeval.evaluateImg.
    """
    count, ious = 0, box_iou(np.reshape(boxes, (-1, 1, 4)), np.reshape(truths, (1, -1, 4)))
    for row in range(len(ious)):
        best = ious.shape[1] - 1 - int(ious[row, ::-1].argmax()) if ious.shape[1] else 0
        if ious.shape[1] and ious[row, best] >= threshold:
            ious[:, best] = -1
            count += 1
    return count


def mask_overlap(mask: Any, truth: Any, ignore: Any = None) -> tuple[int, int]:
    """Pixels in both masks and pixels in either, of one sample.

    Args:
        mask: (height, width) bool.
        truth: (height, width) bool.
        ignore: (height, width) bool, pixels that count neither way; None: all count.

    Raises:
        ValueError: masks of different shapes.
    """
    mask, truth = np.asarray(mask, dtype=bool), np.asarray(truth, dtype=bool)
    if ignore is not None and np.shape(ignore) != truth.shape:
        raise ValueError(
            f"ignore must have the truth's shape {truth.shape}, but got {np.shape(ignore)}"
        )
    if mask.shape != truth.shape:
        raise ValueError(
            f"mask must have the truth's shape {truth.shape}, but got {mask.shape}; both are "
            "(height, width) of the original image"
        )
    counts = True if ignore is None else ~np.asarray(ignore, dtype=bool)
    return int((mask & truth & counts).sum()), int(((mask | truth) & counts).sum())


def mask_scores(intersections: Any, unions: Any) -> tuple[float, float]:
    """cIoU and gIoU of a split.

    Args:
        intersections: (samples,) pixels, as `mask_overlap` counts them.
        unions: (samples,) pixels.

    Returns:
        cIoU, the sum of intersections over the sum of unions, and gIoU, the mean IoU of the
        samples. An empty union counts 1. nan without samples.
    """
    inter, union = (np.asarray(x, dtype=np.float64) for x in (intersections, unions))
    if not union.size:
        return float("nan"), float("nan")
    each = np.divide(inter, union, out=np.ones(union.shape), where=union > 0)
    return (float(inter.sum() / union.sum()) if union.sum() > 0 else 1.0), float(each.mean())


def average_recall(ious: Any) -> float:
    """Share of samples that reach an IoU threshold, averaged over all thresholds in [0, 1].

    Args:
        ious: (samples,) of masks.

    Returns:
        The area under the curve of recall over thresholds; nan without samples. Each sample counts
        up to its own IoU, so that the area is the mean IoU.

    Source: Gonzalez et al., Panoptic Narrative Grounding, ICCV 2021.
    """
    return mean(np.asarray(ious, dtype=np.float64))


def size_class(areas: Any) -> np.ndarray:
    """COCO's class of objects by their area.

    Args:
        areas: (...) pixels of the original image.

    Returns:
        (...) text: "small" below 32 x 32, "large" above 96 x 96, "medium" between.
    """
    areas = np.asarray(areas, dtype=np.float64)
    return np.select([areas < SMALL, areas > LARGE], ["small", "large"], "medium")


def points_inside(points: Any, mask: Any) -> np.ndarray:
    """Whether points lie in a mask: the pointing game.

    Args:
        points: (..., 2) x, y in pixels, not rounded.
        mask: (height, width) bool.

    Returns:
        (...) bool; a point outside the image is a miss.
    """
    mask = np.asarray(mask, dtype=bool)
    x, y = np.moveaxis(np.floor(np.asarray(points, dtype=np.float64)).astype(np.int64), -1, 0)
    height, width = mask.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return inside & mask[y.clip(0, height - 1), x.clip(0, width - 1)]


def map_iou(foreground: Any, mask: Any, layout: ImageLayout, ignore: Any = None) -> np.ndarray:
    """IoU of binarized maps, resized to the mask, with that mask.

    A pixel has the value of the cell its centre lies in (nearest neighbour), and a pixel in no
    cell is background. Nothing is resized for it: the intersection is the sum over foreground
    cells of their mask pixels.

    Args:
        foreground: (..., grid_h, grid_w) bool, the binarized maps.
        mask: (height, width) bool, the truth on the original image.
        layout: where the cells lie.
        ignore: (height, width) bool, pixels that count neither way; None: all count.

    Returns:
        (...) float64 in [0, 1]; 0 where both are empty.

    Raises:
        ValueError: the mask's shape is not the layout's image size.
    """
    cells = np.asarray(foreground, dtype=np.float64)
    return iou_in_cells(cells, *mask_in_cells(mask, layout, ignore))


def mask_in_cells(mask: Any, layout: ImageLayout, ignore: Any = None) -> tuple[np.ndarray, float]:
    """All that `iou_in_cells` asks of a mask.

    Args:
        mask, layout, ignore: as in `map_iou`, like what is raised.

    Returns:
        (2, grid_h * grid_w) float64: of each cell the pixels in the mask, and all that count. And
        how many the mask has in all.
    """
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != layout.image_size:
        raise ValueError(
            f"mask must have the image's (height, width) {layout.image_size}, but got {mask.shape}"
        )
    rows, columns = (
        np.floor(centers.numpy())[None] == np.arange(n)[:, None]
        for centers, n in zip(layout.pixel_centers(), layout.grid, strict=True)
    )
    rows, columns = rows.astype(np.float64), columns.astype(np.float64)
    pixels = rows.sum(axis=1)[:, None] * columns.sum(axis=1)
    if ignore is not None:
        mask = mask & ~np.asarray(ignore, dtype=bool)
        pixels = pixels - rows @ np.asarray(ignore, dtype=bool) @ columns.T
    inside = rows @ mask @ columns.T
    return np.stack([inside.reshape(-1), pixels.reshape(-1)]), float(mask.sum())


def iou_in_cells(foreground: Any, pixels: Any, area: Any) -> Any:
    """As `map_iou`: whole numbers until the division, and so the same ones wherever it is done.

    Args:
        foreground: (..., grid_h, grid_w) float64 of 0 and 1, a NumPy array or a torch tensor.
        pixels, area: from `mask_in_cells`, the pixels likewise.

    Returns:
        (...) float64 of the same kind.
    """
    cells = foreground.reshape(*foreground.shape[:-2], -1)
    intersection = cells @ pixels[0]
    return intersection / (cells @ pixels[1] + area - intersection).clip(1)


def spearman(a: Any, b: Any) -> float:
    """Spearman's rank correlation in [-1, 1]; ties share their mean rank.

    Args:
        a: (n,) numbers.
        b: (n,) numbers.

    Returns:
        rho; nan for fewer than two pairs or where one side is constant.
    """
    ranks = []
    for values in (a, b):
        _, group, size = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(size) - (size - 1) / 2)[group])
    x, y = (r - r.mean() if r.size else r for r in ranks)
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def bootstrap_interval(
    values: Any,
    groups: Any = None,
    *,
    weights: Any = None,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a mean, or of a ratio of sums, under resampling.

    Args:
        values: (n,) numbers or bools.
        groups: (n,) labels drawn together, such as image ids, since the expressions of one image
            are no independent samples; None draws single values.
        weights: (n,) what each value is a share of, so that the mean is sum of values over sum of
            weights, as cIoU; None: of 1.
        draws: resamplings.
        confidence: of the interval, in (0, 1).
        seed: of the draws.

    Returns:
        The lower and the upper end; nan for fewer than two groups, of which nothing can be drawn
        but themselves. A draw without weight counts 1, as an empty union does.
    """
    values = np.asarray(values, dtype=np.float64)
    labels = np.arange(len(values)) if groups is None else np.asarray(groups)
    names, group = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        return float("nan"), float("nan")
    total, size = np.bincount(group, values), np.bincount(group, weights)
    random = np.random.default_rng(seed)
    means, step = np.ones(draws), max(1, MOST_DRAWN // len(size))
    for start in range(0, draws, step):
        some = means[start : start + step]
        drawn = random.integers(len(size), size=(len(some), len(size)))
        whole = size[drawn].sum(axis=1)
        np.divide(total[drawn].sum(axis=1), whole, out=some, where=whole > 0)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean(values: Any) -> float:
    """The mean; nan without values."""
    return float(np.mean(values)) if len(values) else float("nan")
