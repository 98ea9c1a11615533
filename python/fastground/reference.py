"""Every operation in plain PyTorch: the readable definition that all implementations are held to.

Arguments are not checked here; `fastground.ops` does that. Maps are (..., grid_h, grid_w) of any
floating dtype on any device. A map that holds NaN or infinity, or whose sum overflows float64, has
NaN for every number, no foreground and no box.

Source: Kang et al., CVPR 2025 (arXiv 2503.06287), sections 3 and 4; deviations are named below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from fastground.regions import Boxes
from fastground.types import HeadStats, Recipe

EPS = 1e-3
"""The eps of the cuts "mean+eps" and "2mean+eps"."""


# One attention map -> its numbers.


def attention_sum(maps: torch.Tensor) -> torch.Tensor:
    """The sum of each map: (...) float32, summed in float64."""
    total = maps.double().sum((-2, -1))
    return torch.where(total.isfinite(), total, math.nan).float()


def mean(maps: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """The mean of each map over its valid cells: (..., 1, 1) float64; NaN without any.

    At least the map's least cell, so that rounding cannot turn a constant map to foreground.
    """
    cells = maps.double()
    keep = torch.ones_like(cells, dtype=torch.bool) if valid is None else valid
    total = torch.where(keep, cells, 0).sum((-2, -1), keepdim=True)
    average = total / keep.sum((-2, -1), keepdim=True)
    low = torch.where(keep, cells, math.inf).amin((-2, -1), keepdim=True)
    return torch.where(average.isfinite(), average.maximum(low), math.nan)


def binarize(maps: torch.Tensor, *, cut: str = "mean") -> torch.Tensor:
    """Where a map strictly exceeds its cut: (..., grid_h, grid_w) bool, compared in float64."""
    average = mean(maps)
    level = {"mean": average, "mean+eps": average + EPS, "2mean+eps": 2 * average + EPS}[cut]
    return maps.double() > level  # false against NaN


def label(maps: torch.Tensor, *, cut: str = "mean") -> torch.Tensor:
    """The 8-connected regions, numbered from 1 in raster order of their first cell; 0 is none.

    Every cell takes the earliest cell that it can reach, one step at a time, until nothing changes.

    Args:
        maps: (..., grid_h, grid_w) floating, cut first, or bool as it is.

    Returns:
        (..., grid_h, grid_w) int32.
    """
    mask = maps if maps.dtype == torch.bool else binarize(maps, cut=cut)
    grid_h, grid_w = mask.shape[-2:]
    cells = grid_h * grid_w
    mask = mask.reshape(-1, 1, grid_h, grid_w)
    rank = torch.arange(cells, 0, -1, device=mask.device).reshape(grid_h, grid_w).float()
    reached = torch.where(mask, rank, 0)  # the earlier the cell, the larger its rank
    while True:
        grown = torch.where(mask, F.max_pool2d(reached, 3, stride=1, padding=1), 0)
        if torch.equal(grown, reached):
            break
        reached = grown
    number = (mask & (reached == rank)).flatten(1).cumsum(1)
    first = (cells - reached).long().flatten(1).clamp(max=cells - 1)
    labels = torch.where(mask.flatten(1), number.gather(1, first), 0)
    return labels.reshape(maps.shape).int()


def head_stats(
    maps: torch.Tensor, *, weight: str = "area", cut: str = "mean", empty: str = "inf"
) -> HeadStats:
    """The attention sum and the spatial entropy of each map."""
    return HeadStats(attention_sum(maps), entropy(maps, weight=weight, cut=cut, empty=empty))


def entropy(
    maps: torch.Tensor, *, weight: str = "area", cut: str = "mean", empty: str = "inf"
) -> torch.Tensor:
    """The spatial entropy of each map: (...) float32, nats.

    -sum p ln p over the map's regions, p a region's share of the foreground: of its cells, or with
    weight="mass" of its attention above the map's mean (where that is negative, 0). Without any
    foreground +inf, so that a flat map never ranks first; with empty="zero", 0.

    Source: equations 3 and 7; weight "mass" and empty "zero" as in the authors' released code.
    """
    grid_h, grid_w = maps.shape[-2:]
    labels = label(maps, cut=cut).flatten(-2).long()
    share = torch.ones_like(labels, dtype=torch.float64)
    if weight == "mass":
        share = (maps.double() - mean(maps)).clamp(min=0).flatten(-2)
    most = ((grid_h + 1) // 2) * ((grid_w + 1) // 2)  # isolated cells that fit the grid
    sizes = share.new_zeros(*labels.shape[:-1], most + 1).scatter_add(-1, labels, share)[..., 1:]
    total = sizes.sum(-1, keepdim=True)
    result = torch.special.entr(sizes / total).sum(-1).clamp(min=0)
    result = torch.where(total[..., 0] > 0, result, math.inf if empty == "inf" else 0.0)
    return torch.where(mean(maps)[..., 0, 0].isfinite(), result, math.nan).float()


# k maps -> box.


def gaussian(kernel_size: int, sigma: float) -> list[float]:
    """The taps of the smoothing, normalised after truncation; sigma 0 is a single 1."""
    if kernel_size == 1 or sigma == 0:
        return [1.0]
    offsets = [i - kernel_size // 2 for i in range(kernel_size)]
    taps = [math.exp(-0.5 * (x / sigma) * (x / sigma)) for x in offsets]
    total = sum(taps)
    return [tap / total for tap in taps]


def border_cells(size: int, radius: int, border: str) -> list[int]:
    """The cell that each place of a line stands for when it is extended by radius on both sides.

    "reflect101" is dcb|abcd|cba, "reflect" is dcba|abcd|dcba. Where the line is shorter than the
    radius the reflection repeats; under "reflect101" a line of one cell repeats that cell.
    """
    places = range(-radius, size + radius)
    if border == "reflect101":
        period = max(2 * size - 2, 1)
        return [min(i % period, period - i % period) % size for i in places]
    return [min(i % (2 * size), 2 * size - 1 - i % (2 * size)) for i in places]


def smooth(
    maps: torch.Tensor, *, kernel_size: int = 7, sigma: float = 1.0, border: str = "reflect101"
) -> torch.Tensor:
    """Each map after a separable Gaussian: (..., grid_h, grid_w) float32, computed in float64."""
    return _smooth(maps, gaussian(kernel_size, sigma), border).float()


def combine(maps: torch.Tensor, *, recipe: Recipe) -> torch.Tensor:
    """The combined map, the smoothed maps summed: (..., grid_h, grid_w) float32.

    Args:
        maps: (..., k, grid_h, grid_w), the k heads of one expression.
        recipe: kernel_size, sigma and border are read.
    """
    smoothed = _smooth(maps, gaussian(recipe.kernel_size, recipe.sigma), recipe.border)
    total = smoothed[..., 0, :, :]
    for i in range(1, maps.shape[-3]):
        total = total + smoothed[..., i, :, :]
    return total.float()


def _smooth(maps: torch.Tensor, taps: list[float], border: str) -> torch.Tensor:
    """Rows first, then columns; the taps are added from the first to the last."""
    cells = maps.double()
    finite = cells.sum((-2, -1), keepdim=True).isfinite()
    for dim in (-2, -1):
        size = cells.shape[dim]
        index = torch.tensor(border_cells(size, len(taps) // 2, border), device=maps.device)
        extended = cells.index_select(dim, index)
        cells = extended.narrow(dim, 0, size) * taps[0]
        for t, tap in enumerate(taps[1:], start=1):
            cells = cells + extended.narrow(dim, t, size) * tap
    return torch.where(finite, cells, math.nan)


class Region(NamedTuple):
    """What may become the box of one combined map."""

    size: float
    """What the recipe compares: hull area, cells or mass."""
    area: float
    """In cells: of the hull, or the number of cells."""
    box: tuple[int, int, int, int]
    """x1, y1, x2, y2 in grid units."""
    cells: torch.Tensor
    """(grid_h, grid_w) bool."""


def boxes(
    maps: torch.Tensor, *, recipe: Recipe | None = None, valid: torch.Tensor | None = None
) -> Boxes:
    """The box of the region that k heads' maps agree on, with what supports it.

    The combined map is cut at its mean over the valid cells; of the 8-connected regions of what
    exceeds it, one is kept: by recipe.region the one with the largest convex hull of its cells'
    corners ("hull"), the most cells ("component"), the largest sum ("mass"), or all foreground as
    one ("all"). Ties: the larger sum, then raster order. The box is the tight box of the kept
    region, cell (i, j) covering [j, j+1) x [i, i+1). The kept region's cells are those whose centre
    lies in the hull for "hull", else its own; mass and score see valid cells only.

    Args:
        maps: (..., k, grid_h, grid_w), the k heads of one expression.
        recipe: kernel_size, sigma, border, region and padding are read; the default is the paper's.
        valid: (..., grid_h, grid_w) bool, the cells that may belong to a region; not looked at
            where recipe.padding is "include".
    """
    recipe = recipe or Recipe()
    valid = None if recipe.padding == "include" else valid
    return regions(combine(maps, recipe=recipe), region=recipe.region, valid=valid)


def regions(
    combined: torch.Tensor, *, region: str = "hull", valid: torch.Tensor | None = None
) -> Boxes:
    """What `boxes` keeps of combined maps, (..., grid_h, grid_w)."""
    if valid is None:
        valid = torch.ones_like(combined, dtype=torch.bool)
    valid = valid.expand(combined.shape)
    foreground = valid & (combined.double() > mean(combined, valid))
    batch, grid = combined.shape[:-2], combined.shape[-2:]
    found = [
        _box(c, v, n, region)
        for c, v, n in zip(
            combined.double().cpu().reshape(-1, *grid),
            valid.cpu().reshape(-1, *grid),
            label(foreground).cpu().reshape(-1, *grid),
            strict=True,
        )
    ]
    table = torch.tensor(found, dtype=torch.float64).float()
    return Boxes.of(table.reshape(*batch, 7).to(combined.device))


def _box(
    combined: torch.Tensor, valid: torch.Tensor, labels: torch.Tensor, region: str
) -> list[float]:
    """x1, y1, x2, y2, area, mass, score of one combined map."""
    if not combined.sum().isfinite():
        return [0, 0, 0, 0, 0, math.nan, math.nan]
    parts = [labels == i for i in range(1, int(labels.max()) + 1)]
    if not parts:
        return [0] * 7
    if region == "all":
        parts = [labels > 0]
    kept = [region_of(part, combined, region) for part in parts]
    sums = [float(combined[part].sum()) for part in parts]
    best = max(range(len(kept)), key=lambda i: (kept[i].size, sums[i], -i))
    return [*kept[best].box, kept[best].area, *support(kept[best].cells & valid, combined, valid)]


def support(
    inside: torch.Tensor, combined: torch.Tensor, valid: torch.Tensor
) -> tuple[float, float]:
    """Mass and score of some cells: the share of the sum inside, mean inside over mean outside."""
    outside = valid & ~inside
    mass = combined[inside].sum() / combined[valid].sum()
    score = combined[inside].mean() / combined[outside].mean() if outside.any() else math.inf
    return float(mass), float(score)


def region_of(part: torch.Tensor, combined: torch.Tensor, region: str) -> Region:
    """What one region would give a box.

    Args:
        part: (grid_h, grid_w) bool, its own cells, at least one.
        combined: (grid_h, grid_w), the combined map.
        region: as in `boxes`.
    """
    rows, columns = (index.tolist() for index in part.nonzero(as_tuple=True))
    box = (min(columns), min(rows), max(columns) + 1, max(rows) + 1)
    count = float(len(rows))
    if region != "hull":
        size = float(combined[part].sum()) if region == "mass" else count
        return Region(size, count, box, part)
    corners = {
        (x + a, y + b) for x, y in zip(columns, rows, strict=True) for a in (0, 1) for b in (0, 1)
    }
    hull = convex_hull(corners)
    area = polygon_area(hull)
    return Region(area, area, box, centres_inside(hull, part.shape))


Point = tuple[int, int]


def convex_hull(points: set[Point]) -> list[Point]:
    """The corners (x, y) of the convex hull, no three on a line, by Andrew's monotone chain."""
    ordered = sorted(points)

    def half(points: list[Point]) -> list[Point]:
        chain: list[Point] = []
        for p in points:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], p) <= 0:
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return half(ordered) + half(ordered[::-1])


def _turn(a: Point, b: Point, c: Point) -> int:
    """Twice the signed area of the triangle a, b, c."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def polygon_area(polygon: list[Point]) -> float:
    """The area inside, by the shoelace formula."""
    return sum(_turn(polygon[0], b, c) for b, c in pairwise(polygon)) / 2


def centres_inside(polygon: list[Point], grid: torch.Size) -> torch.Tensor:
    """Which cells of the grid have their centre in the convex polygon or on its edge: bool."""
    y = torch.arange(grid[0])[:, None] * 2 + 1  # doubled, so that all stays whole
    x = torch.arange(grid[1])[None, :] * 2 + 1
    inside = torch.ones(grid, dtype=torch.bool)
    for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        inside &= (b[0] - a[0]) * (y - 2 * a[1]) - (b[1] - a[1]) * (x - 2 * a[0]) >= 0
    return inside


# Cached keys -> attention of the asking tokens.


def attention_rows(
    query: torch.Tensor | Sequence[torch.Tensor],
    key: torch.Tensor | Sequence[torch.Tensor],
    *,
    heads: Sequence[Any] | None = None,
    visible: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    tokens: range | torch.Tensor | None = None,
    phrases: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The attention of the asking tokens over all visible keys.

    Head h reads key head h // (H / Hkv), as in grouped-query attention.

    Args:
        query: (B, R, H, D), after rotary; or a sequence of them, one a layer.
        key: (B, Hkv, T, D), after rotary, not repeated; or a sequence of them, one a layer.
        heads: the C chosen heads, in this order, of layers (layer, head); all unless given.
        visible: None (all), or (B, T) or (B, R, T): bool, or added to the logits.
        scale: factor on the logits; D**-0.5 unless given.
        softcap: None, or the logits become softcap * tanh(logits / softcap).
        tokens: None (all), or the N keys to tell of: a range, or (B, N) int64; others are nothing.
        phrases: None, or (B, P, 2) int64: the mean of rows first to last, exclusive, for each row.
        block_table: None, or (B, n) int64: key is (blocks, Hkv, T / n, D), and a sequence's keys
            are those of its n blocks; of what is no block none is visible.

    Returns:
        (B, R, C, T) float32, each row summing to 1; zeros where a row sees no key. Of tokens these
        alone, and their sum. P in place of R, N in place of T.
    """
    if block_table is not None:
        key, there = paged(key, block_table)
        if visible is None:
            visible = there
        else:
            there = there if visible.ndim == 2 else there[:, None]
            hidden = False if visible.dtype == torch.bool else -math.inf
            visible = torch.where(there, visible, hidden)
    if isinstance(query, torch.Tensor) and isinstance(key, torch.Tensor):
        rows = _layer_rows(query, key, heads, visible, scale, softcap)
    else:
        every = [(layer, head) for layer, q in enumerate(query) for head in range(q.shape[2])]
        chosen = every if heads is None else heads
        found = {}
        for layer in dict.fromkeys(layer for layer, _ in chosen):
            own = [head for n, head in chosen if n == layer]
            of_layer = _layer_rows(query[layer], key[layer], own, visible, scale, softcap)
            found[layer] = iter(of_layer.unbind(2))
        rows = torch.stack([next(found[layer]) for layer, _ in chosen], 2)
    if phrases is not None:
        rows = means(rows, phrases)
    return rows if tokens is None else on_tokens(rows, tokens)


def _layer_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    heads: Sequence[int] | None,
    visible: torch.Tensor | None,
    scale: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """(B, R, C, T): of one layer, whole."""
    num_heads, head_dim = query.shape[2:]
    group = num_heads // key.shape[1]
    if heads is None or list(heads) == list(range(num_heads)):
        asking = query.float().unflatten(2, (-1, group))
        logits = torch.einsum("brkgd,bktd->brkgt", asking, key.float()).flatten(2, 3)
    else:
        keys = key[:, [head // group for head in heads]].float()
        logits = torch.einsum("brhd,bhtd->brht", query[:, :, list(heads)].float(), keys)
    logits = logits * (head_dim**-0.5 if scale is None else scale)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if visible is None:
        return logits.softmax(-1)
    visible = visible[:, None, None] if visible.ndim == 2 else visible[:, :, None]
    if visible.dtype == torch.bool:
        logits, seen = torch.where(visible, logits, -math.inf), visible
    else:
        logits, seen = logits + visible.float(), visible > -math.inf
    return torch.where(seen.any(-1, keepdim=True), logits.softmax(-1), 0)


def paged(key: Any, block_table: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Keys in their sequences' order, (B, Hkv, T, D), and (B, T) bool: in a block that there is."""
    if not isinstance(key, torch.Tensor):
        each = [paged(one, block_table) for one in key]
        return [one for one, _ in each], each[0][1]
    there = (block_table >= 0) & (block_table < len(key))
    keys = key[torch.where(there, block_table, 0)].transpose(1, 2).flatten(2, 3)
    there = there.repeat_interleave(key.shape[2], 1)
    return torch.where(there[:, None, :, None], keys, 0), there


def means(rows: torch.Tensor, phrases: torch.Tensor) -> torch.Tensor:
    """(B, P, C, T): of the rows (B, R, C, T) of each phrase; zeros of none."""
    found = rows.new_zeros(*phrases.shape[:2], *rows.shape[2:])
    for b, of_sequence in enumerate(phrases.tolist()):
        for p, (first, last) in enumerate(of_sequence):
            of_phrase = rows[b, max(first, 0) : max(last, 0)]
            if len(of_phrase):
                found[b, p] = of_phrase.mean(0)
    return found


def on_tokens(
    rows: torch.Tensor, tokens: range | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What rows (B, R, C, T) hold of the tokens, a range or (B, N), and its sum."""
    if isinstance(tokens, range):
        found = rows[..., list(tokens)]
    else:
        there = ((tokens >= 0) & (tokens < rows.shape[-1]))[:, None, None]
        places = torch.where(there, tokens[:, None, None], 0)
        found = torch.where(there, rows.gather(-1, places.expand(*rows.shape[:-1], -1)), 0)
    return found, found.sum(-1)
