"""The one door to every operation: arguments are checked here, once, and the device decides.

Every function takes torch tensors and answers with torch tensors on the same device, takes NumPy
arrays and answers with NumPy arrays, and takes anything else with `__dlpack__` and answers with
torch tensors. Maps are (..., grid_h, grid_w), float16, bfloat16, float32 or float64, strided as
they come, with a grid of 1 to 256 cells a side; a batch may be empty. Results carry no gradient.

nan="raise" refuses maps that hold NaN or infinity, or whose sums no longer fit the result's dtype;
on a GPU it waits for the answer. nan="propagate" does not: such a map's numbers are NaN, it has no
foreground, and no box is found in it.

On the CPU the native core runs, elsewhere the plain PyTorch of `fastground.reference`, on the
tensor's own device; `implementations` says so. FASTGROUND_IMPLEMENTATION=reference | native forces
one of them, for debugging.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from fastground import _core, reference
from fastground.types import CHOICES, Boxes, HeadStats, Recipe

MAX_GRID = 256
"""Cells a side, at most."""

DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
"""The dtypes of maps, by the native core's names."""


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
    maps, give = _take(maps)
    _choose(nan=nan)
    if _native(maps):
        sums = maps.new_empty(maps.shape[:-2], dtype=torch.float32)
        _core.head_stats(_view(maps), "area", "mean", "inf", sums.data_ptr(), 0)
    else:
        sums = reference.attention_sum(maps)
    _refuse(~sums.isfinite(), nan)
    return give(sums)


def binarize(maps: Any, *, cut: str = "mean", nan: str = "raise") -> Any:
    """Where a map strictly exceeds its mean, or another cut; nowhere in a constant map.

    Args:
        maps: (..., grid_h, grid_w) floating.
        cut: "mean" | "mean+eps" | "2mean+eps", eps 1e-3.
        nan: "raise" | "propagate", as the module says.

    Returns:
        (..., grid_h, grid_w) bool.

    Raises:
        TypeError: maps is no array, or not floating.
        ValueError: a shape, a choice or, under nan="raise", a value that is refused.
    """
    maps, give = _take(maps)
    _choose(cut=cut, nan=nan)
    _refuse_maps(maps, nan)
    if not _native(maps):
        return give(reference.binarize(maps, cut=cut))
    mask = maps.new_empty(maps.shape, dtype=torch.bool)
    _core.binarize(_view(maps), cut, mask.data_ptr())
    return give(mask)


def label(maps: Any, *, cut: str = "mean", nan: str = "raise") -> Any:
    """The 8-connected regions of each map's foreground.

    Args:
        maps: (..., grid_h, grid_w) floating, binarized first, or bool, taken as it is.
        cut: "mean" | "mean+eps" | "2mean+eps", eps 1e-3; without effect on bool.
        nan: "raise" | "propagate", as the module says.

    Returns:
        (..., grid_h, grid_w) int32: 1, 2, ... in raster order of a region's first cell, else 0.

    Raises:
        TypeError: maps is no array, or neither floating nor bool.
        ValueError: a shape, a choice or, under nan="raise", a value that is refused.
    """
    maps, give = _take(maps, masks=True)
    _choose(cut=cut, nan=nan)
    _refuse_maps(maps, nan)
    if not _native(maps):
        return give(reference.label(maps, cut=cut))
    labels = maps.new_empty(maps.shape, dtype=torch.int32)
    _core.label(_view(maps), cut, labels.data_ptr())
    return give(labels)


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
    maps, give = _take(maps)
    _choose(weight=weight, cut=cut, empty=empty, nan=nan)
    if _native(maps):
        entropies = maps.new_empty(maps.shape[:-2], dtype=torch.float32)
        _core.head_stats(_view(maps), weight, cut, empty, 0, entropies.data_ptr())
    else:
        entropies = reference.entropy(maps, weight=weight, cut=cut, empty=empty)
    _refuse(entropies.isnan(), nan)
    return give(entropies)


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
    maps, give = _take(maps)
    _choose(weight=weight, cut=cut, empty=empty, nan=nan)
    if _native(maps):
        sums, entropies = maps.new_empty((2, *maps.shape[:-2]), dtype=torch.float32)
        _core.head_stats(_view(maps), weight, cut, empty, sums.data_ptr(), entropies.data_ptr())
    else:
        sums, entropies = reference.head_stats(maps, weight=weight, cut=cut, empty=empty)
    _refuse(~sums.isfinite(), nan)
    return HeadStats(give(sums), give(entropies))


def smooth(
    maps: Any,
    *,
    kernel_size: int = 7,
    sigma: float = 1.0,
    border: str = "reflect101",
    nan: str = "raise",
) -> Any:
    """Each map after a Gaussian; the default is torchvision's and OpenCV's of this size.

    Args:
        maps: (..., grid_h, grid_w) floating.
        kernel_size: taps along each axis, odd; 1 does not smooth.
        sigma: standard deviation in grid cells; 0 does not smooth.
        border: "reflect101" (dcb|abcd|cba) or "reflect" (dcba|abcd|dcba), repeated where the grid
            is smaller than the kernel's half.
        nan: "raise" | "propagate", as the module says.

    Returns:
        (..., grid_h, grid_w) float32.

    Raises:
        TypeError: maps is no array, or not floating.
        ValueError: a shape, a choice or, under nan="raise", a value that is refused.
    """
    maps, give = _take(maps)
    _choose(nan=nan)
    recipe = Recipe(kernel_size=kernel_size, sigma=sigma, border=border)
    smoothed = _combine(maps[..., None, :, :], recipe)
    _refuse_maps(smoothed, nan)
    return give(smoothed)


def combine(maps: Any, *, recipe: Recipe | None = None, nan: str = "raise") -> Any:
    """The combined map of k heads: each map smoothed, then summed.

    Args:
        maps: (..., k, grid_h, grid_w) floating, the k heads of one expression.
        recipe: kernel_size, sigma and border are read; the default is the paper's.
        nan: "raise" | "propagate", as the module says.

    Returns:
        (..., grid_h, grid_w) float32.

    Raises:
        TypeError: maps is no array, or not floating.
        ValueError: a shape or, under nan="raise", a value that is refused.
    """
    maps, give = _take(maps, heads=True)
    _choose(nan=nan)
    combined = _combine(maps, recipe or Recipe())
    _refuse_maps(combined, nan)
    return give(combined)


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
    maps, give = _take(maps, heads=True)
    _choose(nan=nan)
    recipe = recipe or Recipe()
    if valid is not None:
        valid = _take_valid(valid, maps)
    if recipe.padding == "include":
        valid = None
    if not _native(maps):
        combined = _combine(maps, recipe)
        _refuse_maps(combined, nan)
        return Boxes(*map(give, reference.regions(combined, region=recipe.region, valid=valid)))
    batch, grid = maps.shape[:-3], maps.shape[-2:]
    xyxy = maps.new_empty((*batch, 4), dtype=torch.float32)
    area, mass, score = maps.new_empty((3, *batch), dtype=torch.float32)
    found = maps.new_empty(batch, dtype=torch.bool)
    if valid is None:
        valid = torch.ones((), dtype=torch.bool)
    _core.boxes(
        _view(maps),
        maps.shape[-3],
        reference.gaussian(recipe.kernel_size, recipe.sigma),
        recipe.border,
        _view(valid.expand((*batch, *grid))),
        recipe.region,
        *(out.data_ptr() for out in (xyxy, area, mass, score, found)),
    )
    _refuse(mass.isnan(), nan)
    return Boxes(*map(give, (xyxy, area, mass, score, found)))


# Cached keys -> attention of the asking tokens.


def attention_rows(
    query: Any,
    key: Any,
    *,
    heads: Sequence[int] | None = None,
    visible: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Any:
    """The attention of a few asking tokens over all cached keys: softmax(scale * q K^T).

    Head h reads key head h // (num_heads / num_key_value_heads). Products are accumulated in
    float32, and nothing of size tokens x tokens is made. Triton on a GPU, else PyTorch.

    Args:
        query: (batch, rows, num_heads, head_dim), after rotary, floating.
        key: (batch, num_key_value_heads, tokens, head_dim), after rotary, not repeated.
        heads: the chosen heads, in this order; all unless given.
        visible: None (all keys), or (batch, tokens) or (batch, rows, tokens): bool, or floating and
            added to the logits, -inf where hidden.
        scale: factor on the logits; head_dim**-0.5 unless given.
        softcap: None, or the logits become softcap * tanh(logits / softcap) before visible.

    Returns:
        (batch, rows, len(heads), tokens) float32: each row sums to 1, or is all zeros where it sees
        no key. NaN in a query or a visible key makes its rows NaN.

    Raises:
        TypeError: an argument is no array, or not floating (visible: nor bool).
        ValueError: shapes, devices or heads that do not belong together.
    """
    give: Callable[[torch.Tensor], Any] = lambda result: result  # noqa: E731
    if isinstance(query, np.ndarray):
        give = torch.Tensor.numpy
    query, key = _to_torch(query, "query"), _to_torch(key, "key")
    for name, tensor in (("query", query), ("key", key)):
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} must be floating, but got {_name(tensor.dtype)}")
    if query.ndim != 4 or key.ndim != 4 or 0 in (*query.shape[2:], *key.shape[1:]):
        raise ValueError(
            "query must be (batch, rows, num_heads, head_dim) and key (batch, "
            f"num_key_value_heads, tokens, head_dim), but got shapes {tuple(query.shape)} and "
            f"{tuple(key.shape)}"
        )
    batch, _, num_heads, head_dim = query.shape
    if (batch, head_dim) != (key.shape[0], key.shape[3]) or num_heads % key.shape[1]:
        raise ValueError(
            "query and key must agree in batch and head_dim, and num_heads be a multiple of "
            f"num_key_value_heads, but got shapes {tuple(query.shape)} and {tuple(key.shape)}"
        )
    heads = _take_heads(heads, num_heads)
    visible = _take_visible(visible, query, key)
    if key.device != query.device:
        raise ValueError(f"query and key must share a device: {query.device}, {key.device}")
    if softcap is not None and not 0 < softcap < float("inf"):
        raise ValueError(f"softcap must be positive and finite, or None, but got {softcap!r}")
    scale = head_dim**-0.5 if scale is None else float(scale)
    keywords = {"heads": heads, "visible": visible, "scale": scale, "softcap": softcap}
    if query.device.type != "cuda" or os.environ.get("FASTGROUND_IMPLEMENTATION") == "reference":
        return give(reference.attention_rows(query, key, **keywords))
    from fastground.kernels import attention_rows as kernel

    dtype = torch.promote_types(query.dtype, key.dtype)
    dtype = torch.float32 if dtype == torch.float64 else dtype
    keywords["heads"] = tuple(range(num_heads)) if heads is None else heads
    return kernel.attention_rows(query.to(dtype), key.to(dtype), **keywords)


def _take_heads(heads: Sequence[int] | None, num_heads: int) -> tuple[int, ...] | None:
    if heads is None:
        return None
    heads = tuple(map(operator.index, heads))
    wrong = [head for head in heads if not 0 <= head < num_heads]
    if wrong or not heads:
        raise ValueError(
            f"heads must be None or at least one index 0 to {num_heads - 1}, but got "
            f"{wrong[0] if wrong else 'none'}"
        )
    return heads


def _take_visible(visible: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    if visible is None:
        return None
    visible = _to_torch(visible, "visible")
    if visible.dtype != torch.bool and visible.dtype not in DTYPES:
        raise TypeError(f"visible must be bool or floating, but got {_name(visible.dtype)}")
    batch, rows, tokens = *query.shape[:2], key.shape[2]
    if visible.shape not in ((batch, tokens), (batch, rows, tokens)):
        raise ValueError(
            f"visible must be {(batch, tokens)} or {(batch, rows, tokens)}, but got shape "
            f"{tuple(visible.shape)}"
        )
    if visible.device != query.device:
        raise ValueError(f"query and visible must share a device: {query.device}, {visible.device}")
    return visible


def implementations() -> dict[str, dict[str, str]]:
    """Which implementation of each operation runs on which device here, and why.

    Returns:
        Per operation the keys "cpu" and "cuda" with "native (C++)" or "reference (PyTorch)", and
        "why" where a device has no implementation of its own.
    """
    cuda = "reference (PyTorch)" if torch.cuda.is_available() else "none (no CUDA device here)"
    names = ("attention_sum", "binarize", "label", "entropy", "head_stats", "smooth", "combine")
    forced = os.environ.get("FASTGROUND_IMPLEMENTATION", "")
    on_cpu = "reference (PyTorch)" if forced == "reference" else "native (C++)"
    why = f"CUDA kernels in this build: {_core.build_info()['cuda']}"
    if forced:
        why += f"; FASTGROUND_IMPLEMENTATION={forced}"
    found = {name: {"cpu": on_cpu, "cuda": cuda, "why": why} for name in (*names, "boxes")}
    triton = "none (Triton is not installed)" if find_spec("triton") is None else "Triton"
    found["attention_rows"] = {
        "cpu": "reference (PyTorch)",
        "cuda": (triton if forced != "reference" else cuda) if torch.cuda.is_available() else cuda,
        "why": "on the CPU it is two of PyTorch's own products, which are native",
    }
    return found


# What the operations share.


def _take(
    maps: Any, *, masks: bool = False, heads: bool = False
) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    """The maps as a checked torch tensor, and the way back to the caller's kind of array."""
    give: Callable[[torch.Tensor], Any] = lambda result: result  # noqa: E731
    if isinstance(maps, np.ndarray):
        give = torch.Tensor.numpy
    maps = _to_torch(maps, "maps")
    need = "(..., k, grid_h, grid_w)" if heads else "(..., grid_h, grid_w)"
    if maps.dtype not in DTYPES and not (masks and maps.dtype == torch.bool):
        kinds = [*DTYPES.values(), *(["bool"] if masks else [])]
        raise TypeError(
            f"maps must be {', '.join(kinds[:-1])} or {kinds[-1]}, but got {_name(maps.dtype)}; "
            "convert with maps.float()"
        )
    if maps.ndim < 2 + heads:
        raise ValueError(
            f"maps must be {need}, but got shape {tuple(maps.shape)}; reshape with layout.grid"
        )
    if not all(0 < cells <= MAX_GRID for cells in maps.shape[-2:]):
        raise ValueError(
            f"maps must have a grid of 1 to {MAX_GRID} cells a side, but got shape "
            f"{tuple(maps.shape)}"
        )
    if heads and maps.shape[-3] == 0:
        raise ValueError(f"maps must hold at least one head, but got shape {tuple(maps.shape)}")
    return maps, give


def _take_valid(valid: Any, maps: torch.Tensor) -> torch.Tensor:
    valid = _to_torch(valid, "valid").to(maps.device)
    if valid.dtype != torch.bool:
        raise TypeError(f"valid must be bool, but got {_name(valid.dtype)}")
    shape = (*maps.shape[:-3], *maps.shape[-2:])
    if valid.shape not in (shape, shape[-2:]):
        raise ValueError(
            f"valid must be {shape[-2:]} or {shape} for maps of shape {tuple(maps.shape)}, "
            f"but got shape {tuple(valid.shape)}"
        )
    return valid


def _to_torch(array: Any, name: str) -> torch.Tensor:
    """A torch tensor over the same memory where that can be, without gradient."""
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in "fbiuc":
            raise TypeError(f"{name} must be numbers, but got a NumPy array of {array.dtype}")
        plain = array.dtype.isnative and array.flags.writeable
        if not plain or any(s < 0 or s % array.itemsize for s in array.strides):
            array = array.astype(array.dtype.newbyteorder("="), order="C")
        array = torch.from_numpy(array)
    elif not isinstance(array, torch.Tensor):
        if not hasattr(array, "__dlpack__"):
            raise TypeError(
                f"{name} must be a torch tensor, a NumPy array or have __dlpack__, but got "
                f"{type(array).__name__}"
            )
        array = from_dlpack(array)
    if array.layout != torch.strided or array.is_quantized or array.device.type == "meta":
        raise TypeError(
            f"{name} must be a dense tensor that holds data, but got layout {array.layout} on "
            f"{array.device}; call .to_dense() on a sparse one"
        )
    return array.detach().resolve_neg()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _choose(**values: str) -> None:
    for name, value in values.items():
        choices = ("raise", "propagate") if name == "nan" else CHOICES[name]
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, but got {value!r}")


def _refuse_maps(maps: torch.Tensor, nan: str) -> None:
    if nan == "raise" and maps.is_floating_point():
        _refuse(~maps.sum((-2, -1), dtype=torch.float64).isfinite(), nan)


def _refuse(bad: torch.Tensor, nan: str) -> None:
    if nan == "raise" and bool(bad.any()):
        first = bad.flatten().nonzero()[0, 0].item()
        raise ValueError(
            f"maps must be finite and their sums fit the result, but {int(bad.sum())} of "
            f'{bad.numel()} are not, the first at {first}; pass nan="propagate" to have NaN there'
        )


def _native(maps: torch.Tensor) -> bool:
    """Whether the native core takes these maps."""
    forced = os.environ.get("FASTGROUND_IMPLEMENTATION", "")
    if forced not in ("", "reference", "native"):
        raise ValueError(
            f"FASTGROUND_IMPLEMENTATION must be reference or native, but got {forced!r}"
        )
    if forced == "native" and maps.device.type != "cpu":
        raise ValueError(
            f"FASTGROUND_IMPLEMENTATION=native needs maps on the CPU, but got {maps.device}: "
            f"CUDA kernels in this build: {_core.build_info()['cuda']}"
        )
    return maps.device.type == "cpu" and forced != "reference"


def _view(maps: torch.Tensor) -> _core.MapView:
    """Where the native core finds the maps."""
    flat = maps.reshape(-1, *maps.shape[-2:])
    dtype = DTYPES.get(flat.dtype, "bool")
    return _core.MapView(flat, flat.data_ptr(), dtype, *flat.shape, *flat.stride())


def _combine(maps: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    if not _native(maps):
        return reference.combine(maps, recipe=recipe)
    combined = maps.new_empty((*maps.shape[:-3], *maps.shape[-2:]), dtype=torch.float32)
    taps = reference.gaussian(recipe.kernel_size, recipe.sigma)
    _core.combine(_view(maps), maps.shape[-3], taps, recipe.border, combined.data_ptr())
    return combined
