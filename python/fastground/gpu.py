"""The operations on CUDA tensors: the signatures of `reference`, the kernels of csrc/*.cu.

    tensors -> _cuda: where their numbers are -> kernels on the caller's stream

Arguments are not checked here; `fastground.ops` does that. Nothing leaves the device, nothing waits
for it, and all memory is torch's: results and, for grids of more than about 50 cells a side, room
to work in. So calls can be captured in a CUDA graph; but make one before, for a device gets its
table of n ln n, and the weights of each filter, at the first call that needs them.

A batch may lie as it likes, but the cells of a map must lie one after another, else they are copied
together, on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastground.arguments import ANY, BORDER, CUT, EMPTY, REGION, WEIGHT
from fastground.dispatch import cuda_core
from fastground.reference import gaussian
from fastground.regions import Boxes
from fastground.types import HeadStats, Recipe


def attention_sum(maps: Tensor) -> Tensor:
    """The sum of each map: (...) float32."""
    maps, batch = _readable(maps)
    sums = maps.new_empty(batch, dtype=torch.float32)
    cuda_core.head_stats(maps, *ANY, None, None, sums, None)
    return sums


def entropy(maps: Tensor, *, weight: str = "area", cut: str = "mean", empty: str = "inf") -> Tensor:
    """The spatial entropy of each map: (...) float32, nats."""
    return _head_stats(maps, weight, cut, empty, False)[1]


def head_stats(
    maps: Tensor, *, weight: str = "area", cut: str = "mean", empty: str = "inf"
) -> HeadStats:
    """The attention sum and the spatial entropy of each map."""
    return HeadStats(*_head_stats(maps, weight, cut, empty, True))


def binarize(maps: Tensor, *, cut: str = "mean") -> Tensor:
    """Where a map strictly exceeds its cut: (..., grid_h, grid_w) bool."""
    maps, _ = _readable(maps)
    mask = maps.new_empty(maps.shape, dtype=torch.bool)
    cuda_core.binarize(maps, CUT[cut], mask)
    return mask


def label(maps: Tensor, *, cut: str = "mean") -> Tensor:
    """The 8-connected regions, numbered from 1: (..., grid_h, grid_w) int32."""
    maps, _ = _readable(maps)
    labels = maps.new_empty(maps.shape, dtype=torch.int32)
    cuda_core.label(maps, CUT[cut], _workspace("label", maps), labels)
    return labels


def smooth(maps: Tensor, *, recipe: Recipe) -> Tensor:
    """Each map smoothed: (..., grid_h, grid_w) float32."""
    maps, batch = _readable(maps)
    return _combined(maps, 1, batch, recipe)


def combine(maps: Tensor, *, recipe: Recipe) -> Tensor:
    """The combined map of k heads, (..., k, grid_h, grid_w): (..., grid_h, grid_w) float32."""
    maps, (*batch, heads) = _readable(maps)
    return _combined(maps, heads, batch, recipe)


def boxes(maps: Tensor, *, recipe: Recipe | None = None, valid: Tensor | None = None) -> Boxes:
    """The box of the region that k heads' maps, (..., k, grid_h, grid_w), agree on."""
    recipe = recipe or Recipe()
    maps, (*batch, heads) = _readable(maps)
    rows = maps.new_empty((*batch, 7), dtype=torch.float32)
    found = maps.new_empty(batch, dtype=torch.bool)
    if valid is not None:
        valid = None if recipe.padding == "include" else _readable(valid)[0]
    cuda_core.boxes(
        maps,
        heads,
        *_filter(maps.device, recipe.kernel_size, recipe.sigma),
        BORDER[recipe.border],
        valid,
        REGION[recipe.region],
        _workspace("boxes", maps, heads),
        rows,
        found,
    )
    xyxy, others = rows.split_with_sizes((4, 3), -1)
    area, mass, score = others.unbind(-1)
    return Boxes(xyxy, area, mass, score, found)


def _head_stats(
    maps: Tensor, weight: str, cut: str, empty: str, with_sums: bool
) -> tuple[Any, Tensor]:
    maps, batch = _readable(maps)
    sums = maps.new_empty(batch, dtype=torch.float32) if with_sums else None
    entropies = maps.new_empty(batch, dtype=torch.float32)
    choices = WEIGHT[weight], CUT[cut], EMPTY[empty]
    workspace = _workspace("head_stats", maps)
    cuda_core.head_stats(maps, *choices, _table(maps.device), workspace, sums, entropies)
    return sums, entropies


def _combined(maps: Tensor, heads: int, batch: Sequence[int], recipe: Recipe) -> Tensor:
    combined = maps.new_empty((*batch, *maps.shape[-2:]), dtype=torch.float32)
    cuda_core.combine(
        maps,
        heads,
        *_filter(maps.device, recipe.kernel_size, recipe.sigma),
        BORDER[recipe.border],
        _workspace("combine", maps, heads),
        combined,
    )
    return combined


def _readable(maps: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The maps where they are, or copied so that the kernels can read them; the batch's shape."""
    batch = cuda_core.batch_of(maps)
    if batch is None:
        maps = maps.detach().contiguous()
        batch = cuda_core.batch_of(maps)
    return maps, batch


def _workspace(operation: str, maps: Tensor, heads: int = 1) -> Tensor | None:
    size = cuda_core.workspace_bytes(operation, maps, heads)
    return maps.new_empty(size, dtype=torch.uint8) if size else None


@cache
def _table(device: torch.device) -> Tensor:
    return _upload(cuda_core.n_ln_n(), device)


@cache
def _filter(device: torch.device, kernel_size: int, sigma: float) -> tuple[np.ndarray, Tensor]:
    """The weights of the taps on the host, and on the device."""
    taps = np.array(gaussian(kernel_size, sigma))
    return taps, _upload(taps, device)


def _upload(numbers: np.ndarray, device: torch.device) -> Tensor:
    """The numbers on the device, for good, and there before any stream asks for them.

    For good: graphs know their address. Two threads may come here at once, and both go on with
    their own.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the first call on a device, or with another filter, must be made before a CUDA graph "
            "is captured, but came while one is; make the same call once before"
        )
    there = torch.from_numpy(numbers).to(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    _uploaded.append(there)
    return there


_uploaded: list[Tensor] = []
