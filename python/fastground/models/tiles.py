"""An image that a model sees in tiles, and once whole; each is stretched over a square.

    image        tiles, in rows       whole       stitched: one raster

    +--+--+        ab   ef                          a b e f
    |  |  |        cd   gh              xy          c d g h
    +--+--+   =                  and    zw          i j m n
    |  |  |        ij   mn                          k l o p
    +--+--+        kl   op

Nothing is cut away and nothing is padded, so that either raster covers the image but for what is
left of a tile that is no whole number of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastground.types import ImageLayout

if TYPE_CHECKING:
    from PIL.Image import Image


def stitched(tokens: Sequence[int], tiles: tuple[int, int], side: tuple[int, int]) -> list[int]:
    """The tiles' tokens in the raster order of the image.

    Args:
        tokens: tile by tile, and in each row by row.
        tiles: (rows, columns) of tiles.
        side: (height, width) of a tile in tokens.
    """
    apart = np.asarray(tokens).reshape(*tiles, *side)
    return apart.transpose(0, 2, 1, 3).ravel().tolist()


def stretched(
    image: Image,
    tokens: Sequence[int],
    grid: tuple[int, int],
    all_tokens: Sequence[int],
    share: tuple[float, float] = (1.0, 1.0),
) -> ImageLayout:
    """The layout of cells that lie evenly over the whole image, but for a rest at two edges.

    Args:
        image: the original.
        tokens: the cells' places in raster order.
        grid: (grid_h, grid_w).
        all_tokens: the places of all of the image's tokens.
        share: (y, x) how much of the image they cover, from its top left corner; the rest is less
            than a patch, which no token sees.
    """
    return ImageLayout(
        grid=grid,
        tokens=tuple(tokens),
        all_tokens=tuple(all_tokens) if len(all_tokens) > len(tokens) else None,
        image_size=(image.height, image.width),
        cell_size=(share[1] * image.width / grid[1], share[0] * image.height / grid[0]),
    )
