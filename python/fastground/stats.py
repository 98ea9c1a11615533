"""Attention maps -> the two numbers of every head: attention sum and spatial entropy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fastground import ops
from fastground.types import AttentionMaps, HeadId, HeadStats, ImageLayout, Recipe


def head_statistics(
    attention: AttentionMaps, recipe: Recipe = Recipe(), *, nan: str = "raise"
) -> HeadStats:
    """Criterion 1 and criterion 2 of every map, by the recipe's switches.

    The attention sum is over all of the image's tokens; with `padding_stats="exclude"` over all
    but the map's padding, and the entropy sees only the rectangle of cells that lie in the image.
    With `bottom_row`, a map with a larger value in its last row, of that rectangle too, gets the
    entropy +inf, so that no sample elects that head by it.

    Args:
        attention: maps (expressions, heads, grid_h, grid_w) and their layout.
        recipe: weight, cut, empty, bottom_row and padding_stats are read here.
        nan: "raise" | "propagate", which does not wait for a GPU.

    Returns:
        Both (expressions, heads) float32 on the maps' device; the entropy in nats.

    Raises:
        ValueError: under nan="raise" a map holds NaN or infinity; or no cell lies in the image.

    Source: Kang et al., CVPR 2025, equations 2, 3 and 7.
    """
    layout, sums = attention.layout, attention.sums
    rows, columns = _seen(layout, recipe)
    maps = attention.maps[..., rows, columns]
    stats = ops.head_stats(maps, weight=recipe.weight, cut=recipe.cut, empty=recipe.empty, nan=nan)
    if recipe.padding_stats == "exclude":
        beyond = (
            0 if layout.all_tokens is None else sums - ops.attention_sum(attention.maps, nan=nan)
        )
        sums = stats.attention_sum + beyond
    entropy = stats.entropy
    if recipe.bottom_row is not None:
        low = maps[..., -1, :].amax(dim=-1) > recipe.bottom_row
        entropy = torch.where(low, torch.inf, entropy)
    return HeadStats(sums.float(), entropy)


def foreground(attention: AttentionMaps, recipe: Recipe) -> torch.Tensor:
    """Every map cut as for its entropy: (expressions, heads, grid_h, grid_w) bool."""
    rows, columns = _seen(attention.layout, recipe)
    found = torch.zeros_like(attention.maps, dtype=torch.bool)
    maps = attention.maps[..., rows, columns]
    found[..., rows, columns] = ops.binarize(maps, cut=recipe.cut, nan="propagate")
    return found


def _seen(layout: ImageLayout, recipe: Recipe) -> tuple[slice, slice]:
    """The rows and columns of cells that the statistics see.

    Raises:
        ValueError: none.
    """
    if recipe.padding_stats == "include":
        return slice(None), slice(None)
    valid = layout.valid()
    rows, columns = valid.any(dim=1).nonzero().flatten(), valid.any(dim=0).nonzero().flatten()
    if not len(rows) or not len(columns):
        raise ValueError(
            "layout must place some cell in the image, but every cell is padding; check "
            "image_size, cell_size and origin"
        )
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def head_table(
    stats: HeadStats, heads: Sequence[HeadId], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Both numbers by layer and head, also where the model has no head.

    Args:
        stats: (expressions, heads) each.
        heads: which heads they are of.
        shape: the model's (layers, heads of a layer).

    Returns:
        Attention sums, 0 where there is no head, and entropies, +inf there: (expressions, layers,
        heads) float32.
    """
    return on_table(stats.attention_sum, heads, shape, 0), on_table(
        stats.entropy, heads, shape, np.inf
    )


def on_table(
    values: torch.Tensor | np.ndarray,
    heads: Sequence[HeadId],
    shape: tuple[int, int],
    missing: float,
) -> np.ndarray:
    """(..., layers, heads) of values (..., heads), `missing` where the model has no head."""
    given = values.cpu().numpy() if isinstance(values, torch.Tensor) else values
    table = np.full((*given.shape[:-1], *shape), missing, dtype=given.dtype)
    layers, places = np.array(heads).T
    table[..., layers, places] = given
    return table
