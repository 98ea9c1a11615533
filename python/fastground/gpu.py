"""The operations on CUDA tensors: the signatures of `reference`, the kernels of csrc/*.cu.

    tensor -> (address, dtype, count, grid_h, grid_w, stride) -> kernels on the caller's stream

Arguments are not checked here; `fastground.ops` does that. Nothing leaves the device, nothing waits
for it, and all memory is torch's: results and, for grids of more than about 50 cells a side, room
to work in. So calls can be captured in a CUDA graph; but make one before, for a device gets its
table of n ln n, and the weights of each filter, at the first call that needs them.

A batch may lie as it likes, but the cells of a map must lie one after another, else they are copied
together, on the device.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch

from fastground import _core
from fastground.arguments import ANY, BORDER, CUT, EMPTY, REGION, WEIGHT
from fastground.dispatch import cuda_core
from fastground.reference import gaussian
from fastground.regions import Boxes
from fastground.types import HeadStats, Recipe

_CODES = {getattr(torch, name): code for name, code in _core.codes["dtype"].items()}


def attention_sum(maps: torch.Tensor) -> torch.Tensor:
    """The sum of each map: (...) float32."""
    maps, batch = _batch(maps)
    sums = _room(maps, batch, torch.float32)
    cuda_core.head_stats(_source(maps), *ANY, _where(maps), sums.data_ptr(), 0)
    return sums


def entropy(
    maps: torch.Tensor, *, weight: str = "area", cut: str = "mean", empty: str = "inf"
) -> torch.Tensor:
    """The spatial entropy of each map: (...) float32, nats."""
    return _head_stats(maps, (WEIGHT[weight], CUT[cut], EMPTY[empty]), False)[1]


def head_stats(
    maps: torch.Tensor, *, weight: str = "area", cut: str = "mean", empty: str = "inf"
) -> HeadStats:
    """The attention sum and the spatial entropy of each map."""
    sums, entropies = _head_stats(maps, (WEIGHT[weight], CUT[cut], EMPTY[empty]), True)
    return HeadStats(sums, entropies)


def binarize(maps: torch.Tensor, *, cut: str = "mean") -> torch.Tensor:
    """Where a map strictly exceeds its cut: (..., grid_h, grid_w) bool."""
    maps, batch = _batch(maps)
    mask = _room(maps, (*batch, *maps.shape[1:]), torch.bool)
    cuda_core.binarize(_source(maps), CUT[cut], _where(maps), mask.data_ptr())
    return mask


def label(maps: torch.Tensor, *, cut: str = "mean") -> torch.Tensor:
    """The 8-connected regions, numbered from 1: (..., grid_h, grid_w) int32."""
    maps, batch = _batch(maps)
    labels = _room(maps, (*batch, *maps.shape[1:]), torch.int32)
    workspace = _workspace("label", maps, len(maps))
    cuda_core.label(_source(maps), CUT[cut], _where(maps, workspace), labels.data_ptr())
    return labels


def combine(maps: torch.Tensor, *, recipe: Recipe) -> torch.Tensor:
    """The combined map of k heads, (..., k, grid_h, grid_w): (..., grid_h, grid_w) float32."""
    maps, batch = _batch(maps)
    heads = batch[-1]
    combined = _room(maps, (*batch[:-1], *maps.shape[1:]), torch.float32)
    workspace = _workspace("combine", maps, len(maps) // heads)
    taps = _taps(recipe.kernel_size, recipe.sigma)
    cuda_core.combine(
        _source(maps),
        heads,
        taps,
        _weights(maps.device, recipe.kernel_size, recipe.sigma).data_ptr(),
        BORDER[recipe.border],
        _where(maps, workspace),
        combined.data_ptr(),
    )
    return combined


def boxes(
    maps: torch.Tensor, *, recipe: Recipe | None = None, valid: torch.Tensor | None = None
) -> Boxes:
    """The box of the region that k heads' maps, (..., k, grid_h, grid_w), agree on."""
    recipe = recipe or Recipe()
    maps, batch = _batch(maps)
    heads = batch[-1]
    rows = _room(maps, (*batch[:-1], 7), torch.float32)
    workspace = _workspace("boxes", maps, len(maps) // heads)
    valid_source = None
    if valid is not None and recipe.padding != "include":
        valid, _ = _batch(valid.expand(*batch[:-1], *maps.shape[1:]))
        valid_source = _source(valid)
    cuda_core.boxes(
        _source(maps),
        heads,
        _taps(recipe.kernel_size, recipe.sigma),
        _weights(maps.device, recipe.kernel_size, recipe.sigma).data_ptr(),
        BORDER[recipe.border],
        valid_source,
        REGION[recipe.region],
        _where(maps, workspace),
        rows.data_ptr(),
    )
    return Boxes.of(rows)


def _head_stats(
    maps: torch.Tensor, choices: tuple[int, int, int], with_sums: bool
) -> tuple[Any, torch.Tensor]:
    maps, batch = _batch(maps)
    sums = _room(maps, batch, torch.float32) if with_sums else None
    entropies = _room(maps, batch, torch.float32)
    workspace = _workspace("head_stats", maps, len(maps))
    to_sums = 0 if sums is None else sums.data_ptr()
    cuda_core.head_stats(
        _source(maps), *choices, _where(maps, workspace), to_sums, entropies.data_ptr()
    )
    return sums, entropies


def _batch(maps: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Maps as (count, grid_h, grid_w), a map's cells one after another; the batch's shape."""
    batch, (grid_h, grid_w) = tuple(maps.shape[:-2]), maps.shape[-2:]
    stride = maps.stride()
    if (grid_w > 1 and stride[-1] != 1) or (grid_h > 1 and stride[-2] != grid_w):
        maps = maps.contiguous()
    if len(batch) != 1:
        shape = (math.prod(batch), grid_h, grid_w)
        try:
            maps = maps.view(shape)
        except RuntimeError:  # the axes cannot be walked as one
            maps = maps.contiguous().view(shape)
    return maps, batch


def _source(maps: torch.Tensor) -> tuple[int, ...]:
    return (maps.data_ptr(), _CODES[maps.dtype], *maps.shape, maps.stride(0))


def _room(maps: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=maps.device)


def _workspace(operation: str, maps: torch.Tensor, count: int) -> torch.Tensor | None:
    size = cuda_core.workspace_bytes(operation, *maps.shape[1:], count)
    return _room(maps, (size,), torch.uint8) if size else None


def _where(maps: torch.Tensor, workspace: torch.Tensor | None = None) -> tuple[int, ...]:
    """Device, stream, workspace and table, as the kernels take them."""
    device = maps.device
    return (
        device.index or 0,
        _stream(device),
        0 if workspace is None else workspace.data_ptr(),
        _table(device).data_ptr(),
    )


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


@cache
def _table(device: torch.device) -> torch.Tensor:
    return _upload(cuda_core.n_ln_n(), device)


@lru_cache
def _taps(kernel_size: int, sigma: float) -> np.ndarray:
    return np.array(gaussian(kernel_size, sigma))


@cache
def _weights(device: torch.device, kernel_size: int, sigma: float) -> torch.Tensor:
    return _upload(_taps(kernel_size, sigma), device)


def _upload(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
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


_uploaded: list[torch.Tensor] = []
