"""The one door to every operation on maps: checked arguments, then what `dispatch` says.

Every function takes torch tensors and answers with torch tensors on the same device, takes NumPy
arrays and answers with NumPy arrays, and takes anything else with `__dlpack__` and answers with
torch tensors. Maps are (..., grid_h, grid_w), float16, bfloat16, float32 or float64, strided as
they come, with a grid of 1 to 256 cells a side; a batch may be empty. Results carry no gradient.

nan="raise" refuses maps that hold NaN or infinity, or whose sum does not fit float64, or numbers of
which the results do not fit float32; on a GPU it waits for the answer. nan="propagate" does not:
the numbers of a map that is not finite, or whose sum does not fit float64, are NaN, it has no
foreground, and no box is found in it. A map whose sum fits float64 but not float32 has the
attention sum inf, and else what any map has; in a combined or smoothed map a cell that does not fit
float32 is inf, and no box is found there, mass and score being NaN.

Where a result is as large as the maps, `out` may hold it: a contiguous array of the result's shape
and dtype, of the kind and on the device of maps, apart from them in memory: between its first and
last byte lies none of theirs. It is returned; when maps are refused it is as it was.

Traced by torch.compile, or by torch.export with strict=True, a call on a tensor without `out` is
one node of the graph (nodes.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy import empty as new_array
from numpy import float32
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from fastground import gpu, reference
from fastground.arguments import (
    ANY,
    BORDER,
    CUT,
    EMPTY,
    REGION,
    WEIGHT,
    Array,
    Shape,
    check_out,
    give,
    give_stats,
    refuse,
    refuse_maps,
    room,
    source,
    take_maps,
    take_valid,
    tensor,
    unhashable,
)
from fastground.core import _core
from fastground.dispatch import implementations, native, native_on_gpu
from fastground.nodes import node
from fastground.regions import Boxes
from fastground.rows import attention_rows
from fastground.types import HeadStats, Recipe

STATS = "str weight, str cut, str empty, str nan"
FILTER = "int kernel_size, float sigma, str border, str nan"
"""What nodes are told."""

__all__ = [
    "attention_rows",
    "attention_sum",
    "binarize",
    "boxes",
    "combine",
    "entropy",
    "head_stats",
    "implementations",
    "label",
    "smooth",
]


@node("str nan", torch.float32)
def attention_sum(maps: Any, *, nan: str = "raise") -> Any:
    """The sum of each map, in [0, 1] for attention.

    Args:
        maps: (..., grid_h, grid_w) floating.
        nan: "raise" | "propagate", as the module says.

    Returns:
        (...) float32.

    Raises:
        TypeError: maps is no array, or not floating.
        ValueError: a shape, a choice or, under nan="raise", a value that is refused.
    """
    if is_dynamo_compiling() and isinstance(maps, Tensor):
        return torch.ops.fastground.attention_sum(maps.detach(), nan=nan)
    maps, shape, strict = take_maps(maps, nan)
    if native(maps):
        sums: Any = new_array(shape[:-2], float32)
        suspect = _core.head_stats(source(maps, shape), *ANY, sums, None)
    else:
        by, given = _elsewhere(maps)
        sums, suspect = by.attention_sum(given), True
    if strict and suspect:
        refuse(sums, infinite=True)
    return give(sums, maps)


@node("str cut, str nan", torch.bool, cells=None)
def binarize(maps: Any, *, cut: str = "mean", nan: str = "raise", out: Any = None) -> Any:
    """Where a map strictly exceeds its mean, or another cut; nowhere in a constant map.

    Args:
        maps: (..., grid_h, grid_w) floating.
        cut: "mean" | "mean+eps" | "2mean+eps", eps 1e-3.
        nan: "raise" | "propagate", as the module says.
        out: None, or an array that is to hold the result.

    Returns:
        (..., grid_h, grid_w) bool.

    Raises:
        TypeError: maps is no array, or not floating.
        ValueError: a shape, a choice or, under nan="raise", a value that is refused.
    """
    if is_dynamo_compiling() and isinstance(maps, Tensor) and out is None:
        return torch.ops.fastground.binarize(maps.detach(), cut=cut, nan=nan)
    return _foreground(take_maps(maps, nan), cut, out, "bool", "binarize")


@node("str cut, str nan", torch.int32, cells=None)
def label(maps: Any, *, cut: str = "mean", nan: str = "raise", out: Any = None) -> Any:
    """The 8-connected regions of each map's foreground.

    Args:
        maps: (..., grid_h, grid_w) floating, binarized first, or bool, taken as it is.
        cut: "mean" | "mean+eps" | "2mean+eps", eps 1e-3; without effect on bool.
        nan: "raise" | "propagate", as the module says.
        out: None, or an array that is to hold the result.

    Returns:
        (..., grid_h, grid_w) int32: 1, 2, ... in raster order of a region's first cell, else 0.

    Raises:
        TypeError: maps is no array, or neither floating nor bool.
        ValueError: a shape, a choice or, under nan="raise", a value that is refused.
    """
    if is_dynamo_compiling() and isinstance(maps, Tensor) and out is None:
        return torch.ops.fastground.label(maps.detach(), cut=cut, nan=nan)
    return _foreground(take_maps(maps, nan, masks=True), cut, out, "int32", "label")


@node(STATS, torch.float32)
def entropy(
    maps: Any,
    *,
    weight: str = "area",
    cut: str = "mean",
    empty: str = "inf",
    nan: str = "raise",
) -> Any:
    """The spatial entropy of each map, in nats: -sum p ln p over the regions of its foreground.

    Args:
        maps: (..., grid_h, grid_w) floating.
        weight: p is a region's share of the foreground's cells ("area") or of its attention above
            the map's mean ("mass").
        cut: "mean" | "mean+eps" | "2mean+eps", eps 1e-3.
        empty: a map without foreground has entropy +inf ("inf") or 0 ("zero").
        nan: "raise" | "propagate", as the module says.

    Returns:
        (...) float32, 0 for one region, at most ln of the number of regions.

    Raises:
        TypeError: maps is no array, or not floating.
        ValueError: a shape, a choice or, under nan="raise", a value that is refused.

    Source: Kang et al., CVPR 2025 (arXiv 2503.06287), equations 3 and 7.
    """
    if is_dynamo_compiling() and isinstance(maps, Tensor):
        told = {"weight": weight, "cut": cut, "empty": empty, "nan": nan}
        return torch.ops.fastground.entropy(maps.detach(), **told)
    maps, shape, strict = take_maps(maps, nan)
    try:
        choices = WEIGHT[weight], CUT[cut], EMPTY[empty]
    except TypeError:
        raise unhashable(weight=weight, cut=cut, empty=empty) from None
    if native(maps):
        entropies: Any = new_array(shape[:-2], float32)
        suspect = _core.head_stats(source(maps, shape), *choices, None, entropies)
    else:
        by, given = _elsewhere(maps)
        entropies = by.entropy(given, weight=weight, cut=cut, empty=empty)
        suspect = True
    if strict and suspect:
        refuse(entropies)
    return give(entropies, maps)


@node(STATS, torch.float32, torch.float32)
def head_stats(
    maps: Any,
    *,
    weight: str = "area",
    cut: str = "mean",
    empty: str = "inf",
    nan: str = "raise",
) -> HeadStats:
    """The attention sum and the spatial entropy of each map, in one pass over the data.

    Args:
        maps: (..., grid_h, grid_w) floating.
        weight, cut, empty: as in `entropy`.
        nan: "raise" | "propagate", as the module says.

    Returns:
        attention_sum and entropy, each (...) float32.

    Raises:
        TypeError: maps is no array, or not floating.
        ValueError: a shape, a choice or, under nan="raise", a value that is refused.
    """
    if is_dynamo_compiling() and isinstance(maps, Tensor):
        told = {"weight": weight, "cut": cut, "empty": empty, "nan": nan}
        return HeadStats(*torch.ops.fastground.head_stats(maps.detach(), **told))
    maps, shape, strict = take_maps(maps, nan)
    try:
        choices = WEIGHT[weight], CUT[cut], EMPTY[empty]
    except TypeError:
        raise unhashable(weight=weight, cut=cut, empty=empty) from None
    if native(maps):
        batch = shape[:-2]
        sums: Any = new_array(batch, float32)
        entropies: Any = new_array(batch, float32)
        suspect = _core.head_stats(source(maps, shape), *choices, sums, entropies)
    else:
        by, given = _elsewhere(maps)
        sums, entropies = by.head_stats(given, weight=weight, cut=cut, empty=empty)
        suspect = True
    if strict and suspect:
        refuse(sums, infinite=True)
    return give_stats(sums, entropies, maps)


@node(FILTER, torch.float32, cells=None)
def smooth(
    maps: Any,
    *,
    kernel_size: int = 7,
    sigma: float = 1.0,
    border: str = "reflect101",
    nan: str = "raise",
    out: Any = None,
) -> Any:
    """Each map after a Gaussian; the default is torchvision's and OpenCV's of this size.

    Args:
        maps: (..., grid_h, grid_w) floating.
        kernel_size: taps along each axis, odd; 1 does not smooth.
        sigma: standard deviation in grid cells; 0 does not smooth.
        border: "reflect101" (dcb|abcd|cba) or "reflect" (dcba|abcd|dcba), repeated where the grid
            is smaller than the kernel's half.
        nan: "raise" | "propagate", as the module says.
        out: None, or an array that is to hold the result.

    Returns:
        (..., grid_h, grid_w) float32.

    Raises:
        TypeError: maps is no array, or not floating.
        ValueError: a shape, a choice or, under nan="raise", a value that is refused.
    """
    if is_dynamo_compiling() and isinstance(maps, Tensor) and out is None:
        told = {"kernel_size": kernel_size, "sigma": sigma, "border": border, "nan": nan}
        return torch.ops.fastground.smooth(maps.detach(), **told)
    maps, shape, strict = take_maps(maps, nan)
    try:
        recipe = _filter(kernel_size, sigma, border)
    except TypeError:  # unhashable
        recipe = _filter.__wrapped__(kernel_size, sigma, border)
    return _combine(maps, shape, shape, 1, recipe, strict, out)


@node(
    FILTER, torch.float32, heads=True, cells=None,
    run=lambda maps, nan, **told: combine(maps, recipe=Recipe(**told), nan=nan),
)  # fmt: skip
def combine(maps: Any, *, recipe: Recipe | None = None, nan: str = "raise", out: Any = None) -> Any:
    """The combined map of k heads: each map smoothed, then summed.

    Args:
        maps: (..., k, grid_h, grid_w) floating, the k heads of one expression.
        recipe: kernel_size, sigma and border are read; the default is the paper's.
        nan: "raise" | "propagate", as the module says.
        out: None, or an array that is to hold the result.

    Returns:
        (..., grid_h, grid_w) float32.

    Raises:
        TypeError: maps is no array, or not floating.
        ValueError: a shape or, under nan="raise", a value that is refused.
    """
    if is_dynamo_compiling() and isinstance(maps, Tensor) and out is None:
        return torch.ops.fastground.combine(maps.detach(), **_told_nodes(recipe), nan=nan)
    maps, shape, strict = take_maps(maps, nan, heads=True)
    result_shape = (*shape[:-3], *shape[-2:])
    return _combine(maps, shape, result_shape, shape[-3], recipe, strict, out)


@node(
    f"{FILTER}, str region, str padding, Tensor? valid", torch.float32, heads=True, cells=7,
    run=lambda maps, **told: _box_rows(maps, **told),
)  # fmt: skip
def boxes(
    maps: Any, *, recipe: Recipe | None = None, valid: Any = None, nan: str = "raise"
) -> Boxes:
    """The box of the region on which k heads agree: smooth, sum, cut at the mean, keep a region.

    Which region is kept, and what area, mass and score then mean, `reference.boxes` defines.

    Args:
        maps: (..., k, grid_h, grid_w) floating, the k heads of one expression.
        recipe: kernel_size, sigma, border, region and padding are read; the default is the paper's.
        valid: (grid_h, grid_w) or (..., grid_h, grid_w) bool, the cells that may belong to a region
            and that the mean, mass and score see; None is all. Not looked at where recipe.padding
            is "include".
        nan: "raise" | "propagate", as the module says.

    Returns:
        Boxes: xyxy (..., 4) float32 in grid units, area, mass, score (...) float32, found (...).

    Raises:
        TypeError: maps is no array, or not floating; valid is not bool.
        ValueError: a shape or, under nan="raise", a value that is refused.
    """
    if is_dynamo_compiling() and isinstance(maps, Tensor):
        kept = recipe or _PAPER
        told = {"region": kept.region, "padding": kept.padding, "valid": valid, "nan": nan}
        return Boxes.of(torch.ops.fastground.boxes(maps.detach(), **_told_nodes(recipe), **told))
    maps, shape, strict = take_maps(maps, nan, heads=True)
    recipe, taps, border, region = _told(recipe)
    if valid is not None:
        valid = take_valid(valid, maps, (*shape[:-3], *shape[-2:]))
        if recipe.padding == "include":
            valid = None
    if native(maps):
        among = valid if valid is None else source(valid, valid.shape)
        groups, heads, batch = source(maps, shape), shape[-3], shape[:-3]
        if isinstance(maps, Tensor):
            suspect, found = _core.box_tensors(
                groups, heads, taps, border, among, region, batch, Boxes
            )
        else:
            rows = new_array((*batch, 7), float32)
            suspect = _core.boxes(groups, heads, taps, border, among, region, rows)
            found = Boxes.of(rows)
        if strict and suspect:
            area, mass = np.asarray(found.area), np.asarray(found.mass)
            refuse(np.where(area > 0, 0, mass))  # where one is found, a share of a sum of 0
        return found
    by, given = _elsewhere(maps)
    if by is gpu:
        found = gpu.boxes(given, recipe=recipe, valid=valid)
        if strict:
            refuse(torch.where(found.area > 0, 0, found.mass))
        return found
    combined = reference.combine(given, recipe=recipe)
    if strict:
        refuse_maps(combined)
    found = reference.regions(combined, region=recipe.region, valid=valid)
    return found if isinstance(maps, Tensor) else Boxes._make(part.numpy() for part in found)


def _told_nodes(recipe: Recipe | None) -> dict[str, Any]:
    """What of a recipe smooths."""
    recipe = recipe or _PAPER
    return {"kernel_size": recipe.kernel_size, "sigma": recipe.sigma, "border": recipe.border}


def _box_rows(maps: Tensor, *, valid: Tensor | None, nan: str, **told: Any) -> Tensor:
    """What `boxes` finds, as `Boxes.of` takes it."""
    xyxy, *numbers, _ = boxes(maps, recipe=Recipe(**told), valid=valid, nan=nan)
    return torch.cat([xyxy, torch.stack(numbers, dim=-1)], dim=-1)


def _elsewhere(maps: Array) -> tuple[Any, Tensor]:
    """What computes where the native core for the CPU does not, the kernels or the reference, and
    the maps as it takes them."""
    if isinstance(maps, Tensor) and native_on_gpu(maps):
        return gpu, maps
    return reference, tensor(maps)


def _foreground(
    taken: tuple[Array, Shape, bool],
    cut: str,
    out: Any,
    dtype: str,
    operation: str,
) -> Any:
    """What is made of each map's foreground, a number a cell."""
    maps, shape, strict = taken
    try:
        level = CUT[cut]
    except TypeError:
        raise unhashable(cut=cut) from None
    check_out(out, maps, shape, dtype)
    if native(maps):
        made = room(shape, np.dtype(dtype), out, maps, 1, strict)
        suspect = getattr(_core, operation)(source(maps, shape), level, made)
    else:
        by, given = _elsewhere(maps)
        made, suspect = getattr(by, operation)(given, cut=cut), True
    if strict and suspect:
        refuse_maps(maps)
    return give(made, maps, out)


def _combine(
    maps: Array,
    shape: Shape,
    result_shape: Shape,
    heads: int,
    recipe: Recipe | None,
    strict: bool,
    out: Any,
) -> Any:
    recipe, taps, border, _ = _told(recipe)
    check_out(out, maps, result_shape, "float32")
    if native(maps):
        combined = room(result_shape, float32, out, maps, heads, strict)
        suspect = _core.combine(source(maps, shape), heads, taps, border, combined)
    else:
        by, given = _elsewhere(maps)
        if by is gpu:
            operation = gpu.smooth if shape == result_shape else gpu.combine
            combined, suspect = operation(given, recipe=recipe), True
        else:
            groups = given.reshape(*result_shape[:-2], heads, *shape[-2:])
            combined, suspect = reference.combine(groups, recipe=recipe), True
    if strict and suspect:
        refuse_maps(combined)
    return give(combined, maps, out)


@lru_cache(typed=True)
def _filter(kernel_size: int, sigma: float, border: str) -> Recipe:
    try:
        return Recipe(kernel_size=kernel_size, sigma=sigma, border=border)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("recipe.")) from None


def _told(recipe: Recipe | None) -> tuple[Recipe, np.ndarray, int, int]:
    """A recipe, and its taps, border and region as the native core is told them; of None the
    paper's. Kept, since the next call's is most often the same."""
    global _last
    given, told = _last
    if given is recipe:
        return told
    if recipe is None:
        told = _tell(Recipe())
    elif isinstance(recipe, Recipe):
        told = _tell(recipe)
    else:
        raise TypeError(
            f"recipe must be a Recipe or None, but got {recipe!r}; give Recipe(...) or "
            "Recipe.profile(name)"
        )
    _last = recipe, told
    return told


def _tell(recipe: Recipe) -> tuple[Recipe, np.ndarray, int, int]:
    taps = _taps(recipe.kernel_size, recipe.sigma)
    return recipe, taps, BORDER[recipe.border], REGION[recipe.region]


@lru_cache
def _taps(kernel_size: int, sigma: float) -> np.ndarray:
    return np.array(reference.gaussian(kernel_size, sigma))


_PAPER = Recipe()

_last: tuple[Recipe | None, tuple[Recipe, np.ndarray, int, int]] = None, _tell(_PAPER)
