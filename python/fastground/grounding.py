"""The maps of k heads -> boxes and pseudo-masks in pixels: one call a batch of expressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fastground import ops
from fastground.objects import FoundRegion, found_regions
from fastground.regions import Boxes
from fastground.result import Grounding
from fastground.types import AttentionMaps, ImageLayout, Recipe


def ground(
    attention: AttentionMaps,
    expressions: Sequence[str],
    *,
    recipe: Recipe = Recipe(),
    chosen: torch.Tensor | None = None,
) -> list[Grounding]:
    """Where each expression's heads look, as a box and a pseudo-mask.

    Args:
        attention: (expressions, heads, grid_h, grid_w) maps of one image.
        expressions: the texts, one a map group.
        recipe: smoothing, border, region, padding and objects are read here.
        chosen: (expressions, k) positions in `attention.heads`, each expression's own heads; None
            uses all of them for every expression.

    Returns:
        One `Grounding` an expression, on the maps' device.

    Raises:
        ValueError: as many expressions as maps are needed, maps with NaN, a layout without image.
    """
    if len(expressions) != len(attention.maps):
        raise ValueError(
            f"expressions must be one a map group, {len(attention.maps)}, but got "
            f"{len(expressions)}"
        )
    maps, layout = attention.maps, attention.layout
    heads = [attention.heads] * len(expressions)
    if chosen is not None:
        maps = torch.take_along_dim(maps, chosen.to(maps.device)[..., None, None], dim=1)
        heads = [tuple(attention.heads[i] for i in row) for row in chosen.tolist()]
    boxes = boxes_on_grid(maps, layout, recipe)
    combined = ops.combine(maps, recipe=recipe)
    masks = pseudo_masks(combined, boxes, layout, recipe)
    pixels = boxes_in_pixels(boxes, layout)
    score, mass, found = boxes.score.tolist(), boxes.mass.tolist(), boxes.found.tolist()
    groundings = [
        Grounding(
            expression=expression,
            box=pixels[i],
            map_box=pixels[i],
            mask=masks[i],
            score=score[i],
            mass=mass[i],
            found=found[i],
            map=combined[i],
            maps=maps[i],
            heads=heads[i],
            layout=layout,
        )
        for i, expression in enumerate(expressions)
    ]
    if recipe.objects is None:
        return groundings
    return [
        replace(grounding, others=_others(grounding, box, recipe))
        for grounding, box in zip(groundings, boxes.xyxy.tolist(), strict=True)
    ]


def _others(grounding: Grounding, kept: list[float], recipe: Recipe) -> tuple[Grounding, ...]:
    """The regions besides the kept one that are objects, each with its box and pseudo-mask."""
    layout, combined = grounding.layout, grounding.map
    others = []
    regions = found_regions(combined, recipe, valid_cells(layout, recipe))
    for region in further_objects(regions, kept, recipe):
        cells = region.cells.to(combined.device)[None]
        box = layout.to_pixels(torch.tensor(region.box, dtype=torch.float32)).to(combined.device)
        mask = _painted(combined[None], cells, layout, recipe)[0]
        others.append(
            replace(
                grounding, box=box, map_box=box, mask=mask, score=region.score, mass=region.mass
            )
        )
    return tuple(others)


def further_objects(
    regions: Sequence[FoundRegion], kept: list[float], recipe: Recipe
) -> list[FoundRegion]:
    """Those of a map's regions that are objects besides what is kept.

    Args:
        regions: all of the map's.
        kept: the box of what is kept, in grid units.
        recipe: objects and region; where all are kept as one, each of several is another.
    """
    if recipe.objects is None:
        return []
    one_is_kept = recipe.region != "all" or len(regions) == 1
    return [
        region
        for region in regions
        if region.share >= recipe.objects and not (one_is_kept and list(region.box) == kept)
    ]


def boxes_on_grid(maps: torch.Tensor, layout: ImageLayout, recipe: Recipe) -> Boxes:
    """The kept region of every group of maps, padding left out where the recipe says so.

    Args:
        maps: (..., k, grid_h, grid_w).
        layout: which cells are padding.
        recipe: smoothing, border, region and padding.

    Returns:
        Boxes in grid units.
    """
    return ops.boxes(maps, recipe=recipe, valid=valid_cells(layout, recipe, maps.device))


def boxes_in_pixels(boxes: Boxes, layout: ImageLayout) -> torch.Tensor:
    """(..., 4) float32 x1, y1, x2, y2 in original pixels; zeros where nothing was found."""
    return torch.where(boxes.found[..., None], layout.to_pixels(boxes.xyxy), 0.0)


def peaks(combined: torch.Tensor, layout: ImageLayout, recipe: Recipe) -> torch.Tensor:
    """The centre of each combined map's highest cell, in pixels: the pointing game's point.

    Args:
        combined: (..., grid_h, grid_w).
        layout: where the cells lie.
        recipe: with padding "exclude" a padding cell is no peak.

    Returns:
        (..., 2) float64 x, y; of equal cells the first in raster order.
    """
    valid = valid_cells(layout, recipe, combined.device)
    if valid is not None:
        combined = combined.masked_fill(~valid, -torch.inf)
    best = combined.flatten(-2).argmax(dim=-1)
    cell = torch.stack([best % layout.grid[1], best // layout.grid[1]], dim=-1)
    cell_size = layout.cell_size or (1.0, 1.0)
    size, origin = (
        cell.new_tensor(pair, dtype=torch.float64) for pair in (cell_size, layout.origin)
    )
    return (cell + 0.5) * size + origin


def pseudo_masks(
    combined: torch.Tensor, boxes: Boxes, layout: ImageLayout, recipe: Recipe
) -> torch.Tensor:
    """A mask without a segmenter: the combined map on the image, cut at its mean.

    The map is resized bilinearly (cell centres at their pixels, edge values continued outward);
    a pixel is in the mask where it exceeds the map's mean and its cell belongs to the kept region,
    so the mask never leaves the box.

    Args:
        combined: (expressions, grid_h, grid_w), the smoothed maps summed.
        boxes: their kept regions on the grid.
        layout: where the cells lie.
        recipe: region and padding.

    Returns:
        (expressions, height, width) bool.

    Raises:
        ValueError: the layout does not know its image.
    """
    valid = valid_cells(layout, recipe, combined.device)
    cells = combined.double()
    foreground = cells > _mean(cells, valid)
    if valid is not None:
        foreground &= valid
    return _painted(combined, _kept_region(foreground, boxes, recipe), layout, recipe)


def _mean(cells: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    inside = cells.flatten(-2) if valid is None else cells[..., valid]
    return inside.mean(dim=-1)[..., None, None]


def _painted(
    combined: torch.Tensor, region: torch.Tensor, layout: ImageLayout, recipe: Recipe
) -> torch.Tensor:
    """(expressions, height, width) bool: where the resized map exceeds its mean in the region."""
    y, x = (c.to(combined.device) for c in layout.pixel_centers())
    grid_h, grid_w = layout.grid
    cells = combined.double()
    mean = _mean(cells, valid_cells(layout, recipe, combined.device))
    down, across = bilinear(y, grid_h), bilinear(x, grid_w).T
    row, column = y.floor().long(), x.floor().long()
    in_grid = ((row >= 0) & (row < grid_h))[:, None] & ((column >= 0) & (column < grid_w))
    row, column = row.clamp(0, grid_h - 1), column.clamp(0, grid_w - 1)
    masks = torch.empty((len(cells), *in_grid.shape), dtype=torch.bool, device=cells.device)
    for i, mask in enumerate(masks):  # one at a time: an image's float64 pixels are many bytes
        torch.gt(down @ cells[i] @ across, mean[i], out=mask)
        mask &= region[i][row][:, column] & in_grid
    return masks


def _kept_region(foreground: torch.Tensor, boxes: Boxes, recipe: Recipe) -> torch.Tensor:
    """(expressions, grid_h, grid_w) bool: the cells of the region whose tight box was returned.

    Two regions of a map never have the same tight box: each would join two opposite sides of it,
    so they would cross, and crossing 8-connected regions are one. So the box names the region.
    """
    found = boxes.found[..., None, None]
    if recipe.region == "all":
        return foreground & found
    labels = ops.label(foreground).cpu().numpy()
    wanted = boxes.xyxy.cpu().numpy()
    kept = np.zeros(labels.shape, dtype=bool)
    for i, numbered in enumerate(labels):
        count = int(numbered.max())
        if not count:
            continue
        row, column = np.nonzero(numbered)
        of = numbered[row, column] - 1
        tight = np.empty((count, 4))
        tight[:, :2], tight[:, 2:] = np.inf, -np.inf
        for side, place in ((0, column), (1, row)):
            np.minimum.at(tight[:, side], of, place)
            np.maximum.at(tight[:, side + 2], of, place + 1)
        kept[i] = numbered == 1 + np.abs(tight - wanted[i]).sum(axis=1).argmin()
    return torch.from_numpy(kept).to(foreground.device) & found


def cell_coverage(masks: torch.Tensor, layout: ImageLayout) -> torch.Tensor:
    """How much of every cell a mask covers: the mask averaged by area onto the grid.

    Args:
        masks: (..., height, width) bool on the original image.
        layout: where the cells lie; what a cell has outside the image is uncovered.

    Returns:
        (..., grid_h, grid_w) float32 in [0, 1].

    Raises:
        ValueError: masks of another size than the layout's image.
    """
    if tuple(masks.shape[-2:]) != layout.image_size:
        raise ValueError(
            f"masks must be (..., height, width) of the image {layout.image_size}, but got shape "
            f"{tuple(masks.shape)}"
        )
    cell_x, cell_y = layout.cell_size or (1.0, 1.0)
    y, x = layout.pixel_centers()
    share_y, share_x = (
        _overlap(centers, 1 / cell, n).to(masks.device)
        for centers, cell, n in zip((y, x), (cell_y, cell_x), layout.grid, strict=True)
    )
    return (share_y @ masks.double() @ share_x.T).float()


def mask_box(mask: torch.Tensor) -> torch.Tensor:
    """(4,) float32: the tight half-open box of a (height, width) mask; zeros where it is empty."""
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    if not len(rows):
        return torch.zeros(4, device=mask.device)
    ends = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return torch.cat(ends).float()


def _overlap(centers: torch.Tensor, size: float, n: int) -> torch.Tensor:
    """(n, pixels): the part of each unit cell that intervals of `size` around `centers` cover."""
    cell = torch.arange(n, dtype=torch.float64, device=centers.device)[:, None]
    low, high = centers - size / 2, centers + size / 2
    return (high.minimum(cell + 1) - low.maximum(cell)).clamp(min=0)


def bilinear(centers: torch.Tensor, n: int) -> torch.Tensor:
    """(pixels, n): weights of n cell values, given at i + 0.5, for positions on the grid."""
    place = (centers - 0.5).clamp(0, n - 1)
    cell = torch.arange(n, dtype=torch.float64, device=centers.device)
    return (1 - (place[:, None] - cell).abs()).clamp(min=0)


def valid_cells(
    layout: ImageLayout, recipe: Recipe, device: torch.device | str = "cpu"
) -> torch.Tensor | None:
    """(grid_h, grid_w) bool: the cells that count, or None for all, as the recipe has padding."""
    return layout.valid().to(device) if recipe.padding == "exclude" else None
