"""The CUDA kernels: what csrc/cuda_bindings.cpp exposes, where they are built.

Nothing is returned but by the last two: results are written at the addresses given for them, once
the stream comes to it; 0 is not wanted. The cells of a map lie one after another.
"""

from typing import TypeAlias

import numpy as np

Batch: TypeAlias = tuple[int, ...]
"""Address, code of the dtype, count, grid_h, grid_w, elements from map to map."""

Where: TypeAlias = tuple[int, ...]
"""Device, stream, address of the workspace (or 0), address of the table of n ln n there."""

def head_stats(
    maps: Batch, weight: int, cut: int, empty: int, where: Where, sums: int, entropies: int
) -> None: ...
def binarize(maps: Batch, cut: int, where: Where, mask: int) -> None: ...
def label(maps: Batch, cut: int, where: Where, labels: int) -> None: ...
def combine(
    maps: Batch,
    heads: int,
    taps: np.ndarray,
    weights: int,
    border: int,
    where: Where,
    combined: int,
) -> None: ...
def boxes(
    maps: Batch,
    heads: int,
    taps: np.ndarray,
    weights: int,
    border: int,
    valid: Batch | None,
    region: int,
    where: Where,
    rows: int,
) -> None: ...
def workspace_bytes(operation: str, grid_h: int, grid_w: int, count: int) -> int: ...
def n_ln_n() -> np.ndarray: ...
