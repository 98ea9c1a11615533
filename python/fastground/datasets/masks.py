"""Masks as data sets write them down, to pixels.

    COCO        [[x, y, x, y, ...], ...]   polygons, one object in several parts
                {"size": [h, w], "counts": [...] or "..."}   runs, down the columns
    ReasonSeg   labelled polygons, of which "ignore" counts neither way
    PNG         a picture whose colours number the segments

Each function draws one of these at a size (height, width), and takes it last, so that a `partial`
of the rest waits, small and picklable, until an image's turn has come.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fastground.datasets.photos import open_image


class Drawn(NamedTuple):
    """A true mask at an image's size."""

    mask: np.ndarray
    """(height, width) bool."""
    ignore: np.ndarray | None = None
    """(height, width) bool: pixels that count neither way."""


def coco(segmentation: Any, size: tuple[int, int]) -> Drawn:
    """The mask of a COCO annotation, by pycocotools.

    Args:
        segmentation: polygons, each x, y, x, y, ... in pixels, or runs as size and counts.
        size: (height, width) of the image.

    Raises:
        ValueError: neither polygons nor runs, or of another size, or pycocotools is missing.
    """
    try:
        from pycocotools import mask as runs
    except ImportError as error:
        raise ValueError(
            "masks must be drawn by pycocotools, but it is not installed; "
            "pip install pycocotools, or go without: masks=False (--option masks=false)"
        ) from error
    height, width = size
    try:
        if isinstance(segmentation, dict):
            if tuple(segmentation["size"]) != size:
                raise ValueError(f"its size is {tuple(segmentation['size'])}, the image's {size}")
            whole = isinstance(segmentation["counts"], (str, bytes))
            one = segmentation if whole else runs.frPyObjects(segmentation, height, width)
        else:
            # Two points are no polygon, and pycocotools would take four numbers for a box.
            parts = [list(map(float, part)) for part in segmentation if len(part) >= 6]
            if not parts or any(len(part) % 2 for part in parts):
                raise ValueError("it has no polygon of three points or more")
            if max(map(max, parts)) <= 1 < min(size):
                raise ValueError("its points are no pixels; multiply shares by width and height")
            one = runs.merge(runs.frPyObjects(parts, height, width))
        mask = runs.decode(one).astype(bool)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"segmentation must be COCO polygons or runs, but {error}") from error
    if mask.shape != size:
        raise ValueError(f"segmentation must be drawn at {size}, but is {mask.shape}")
    return Drawn(mask)


def labelled(polygons: Sequence[tuple[str, Any]], size: tuple[int, int]) -> Drawn:
    """The mask of ReasonSeg: the largest polygon is drawn first, so that smaller ones lie on it.

    Args:
        polygons: (label, points), the points (n, 2) x, y in pixels; "flag" is skipped, "ignore"
            becomes the mask of what counts neither way, and any other label is the target.
        size: (height, width) of the image.

    Raises:
        ValueError: points are no list of x, y.
    """
    layers = []
    for label, points in polygons:
        if label.lower() == "flag":
            continue
        try:
            corners = [(float(x), float(y)) for x, y in points]
        except (TypeError, ValueError) as error:
            raise ValueError(f"points must be pairs x, y, but are not ({error})") from error
        layer = Image.new("1", (size[1], size[0]))
        pen = ImageDraw.Draw(layer)
        if len(corners) >= 2:
            pen.polygon(corners, fill=1, outline=1)
        elif corners:
            pen.point(corners, fill=1)
        layers.append((label.lower() == "ignore", np.asarray(layer, dtype=bool)))
    mask, ignore = np.zeros(size, bool), np.zeros(size, bool)
    for ignored, inside in sorted(layers, key=lambda layer: -int(layer[1].sum())):
        mask[inside], ignore[inside] = not ignored, ignored
    return Drawn(mask, ignore if ignore.any() else None)


def panoptic(path: Path, segment_ids: Collection[int], size: tuple[int, int]) -> Drawn:
    """The union of segments in a COCO panoptic picture, whose colour is r + 256 g + 65536 b.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no picture, of another size, or without a pixel of these segments.
    """
    colours = np.asarray(open_image(path, size).convert("RGB"), dtype=np.int64)
    mask = np.isin(colours @ np.array([1, 256, 65536]), list(segment_ids))
    if not mask.any():
        ids = ", ".join(map(str, segment_ids))
        raise ValueError(f"segments must have pixels, but {ids} has none in {path}; get it anew")
    return Drawn(mask)


def picture(path: Path, size: tuple[int, int]) -> Drawn:
    """A mask kept as a picture: every pixel that is not black.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no picture, of another size, one that only its transparency draws, or a JPEG,
            whose black is not quite black.
    """
    image = open_image(path, size)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise ValueError(
            f"mask must be kept without loss, but {str(path)!r} is a JPEG; save it as PNG, its "
            "pixels from 128 on as 255 and the others as 0"
        )
    pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    if pixels.ndim == 2:
        return Drawn(pixels != 0)
    colours, alpha = np.split(pixels, [1 if pixels.shape[2] == 2 else 3], axis=2)
    mask = (colours != 0).any(axis=2)
    if not mask.any() and np.ptp(alpha, axis=(0, 1)).any():
        raise ValueError(
            f"mask must be what is not black, but {str(path)!r} is all black and transparent in "
            "parts; save its transparency as the picture, or give it white"
        )
    return Drawn(mask)


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The tight box of a mask: x1, y1, x2, y2, half-open.

    Raises:
        ValueError: the mask is empty.
    """
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(ys):
        raise ValueError("mask must have pixels, but is empty")
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)
