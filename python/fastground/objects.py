"""Every region of one combined map: what may become an object where an expression means several.

    . 5 5 . . . .      cut at its mean, a map falls into 8-connected regions; `ops.boxes` keeps one
    . 5 5 . . 2 .      share    1: 20 / 26 = 77 % of the foreground's attention
    . . . . . 2 2               2:  6 / 26 = 23 %

A share is of the foreground, so that those of all regions add up to one and a threshold means the
same under a bright background as under a dark one; at most 1 / threshold regions reach it. A
`mass` is of the whole map, as everywhere else.

The few regions of a map are taken one by one by the reference; the fast kernels keep only one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastground import ops, reference
from fastground.types import Recipe


class FoundRegion(NamedTuple):
    """One region of a combined map."""

    cells: torch.Tensor
    """(grid_h, grid_w) bool, its own."""
    box: tuple[int, int, int, int]
    """x1, y1, x2, y2 in grid units."""
    area: float
    """In cells: of its convex hull, or how many cells it has."""
    share: float
    """Of the foreground's attention, in (0, 1]."""
    mass: float
    """Of the whole map's attention, as `Boxes.mass`."""
    score: float
    """As `Boxes.score`."""


def found_regions(
    combined: torch.Tensor, recipe: Recipe, valid: torch.Tensor | None = None
) -> list[FoundRegion]:
    """The regions of a combined map, the largest share first.

    Args:
        combined: (grid_h, grid_w), the smoothed maps summed.
        recipe: region is read: with "hull" area, mass and score are of the convex hull, else of
            the cells.
        valid: (grid_h, grid_w) bool, the cells that may belong to a region; None is all.

    Returns:
        On the CPU; empty where no cell exceeds the mean.
    """
    cells = combined.detach().cpu().double()
    valid = torch.ones_like(cells, dtype=torch.bool) if valid is None else valid.cpu()
    foreground = valid & (cells > reference.mean(cells, valid))
    labels = ops.label(foreground)
    total = float(cells[foreground].sum())
    found = []
    for number in range(1, int(labels.max()) + 1):
        own = labels == number
        region = reference.region_of(own, cells, recipe.region)
        mass, score = reference.support(region.cells & valid, cells, valid)
        share = float(cells[own].sum()) / total
        found.append(FoundRegion(own, region.box, region.area, share, mass, score))
    return sorted(found, key=lambda region: -region.share)
