"""Batches of attention maps to measure on: (count, grid_h, grid_w) float32.

24 x 24, above the mean: noise 0.50 of the cells, 6 regions; attention 0.2 and 10 (the realistic
one); blob 0.2 and 1; speckle 0.16 and 45 (the most regions).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

Maps = np.ndarray


def noise(rng: np.random.Generator, count: int, grid_h: int, grid_w: int) -> Maps:
    """Uniform."""
    return rng.uniform(size=(count, grid_h, grid_w))


def attention(rng: np.random.Generator, count: int, grid_h: int, grid_w: int) -> Maps:
    """Softmax of smooth logits, white noise and up to five sinks."""
    smooth = gaussian_filter(rng.normal(size=(count, grid_h, grid_w)), (0, grid_h / 8, grid_w / 8))
    smooth *= 1.5 / smooth.std()
    logits = smooth + rng.normal(scale=0.5, size=smooth.shape)
    for i in range(count):
        for _ in range(rng.integers(0, 6)):
            logits[i, rng.integers(grid_h), rng.integers(grid_w)] += 3
    weights = np.exp(logits)
    return 0.3 * weights / weights.sum((1, 2), keepdims=True)


def blob(rng: np.random.Generator, count: int, grid_h: int, grid_w: int) -> Maps:
    """One Gaussian bump."""
    size = (grid_h * grid_w) ** 0.5
    y, x = np.mgrid[:grid_h, :grid_w]
    a, b = rng.uniform(0, 1, (2, count, 1, 1)) * np.reshape([grid_h, grid_w], (2, 1, 1, 1))
    width = rng.uniform(size / 10, size / 5, (count, 1, 1))
    return np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * width**2))


def speckle(rng: np.random.Generator, count: int, grid_h: int, grid_w: int) -> Maps:
    """Log-normal with a long tail."""
    return rng.lognormal(sigma=2, size=(count, grid_h, grid_w))


FAMILIES: dict[str, Callable[[np.random.Generator, int, int, int], Maps]] = {
    "noise": noise,
    "attention": attention,
    "blob": blob,
    "speckle": speckle,
}


def batch(family: str, count: int = 1024, size: int | tuple[int, int] = 24, seed: int = 0) -> Maps:
    """The same maps for the same arguments; size is a grid (grid_h, grid_w) or a square's side."""
    grid = (size, size) if isinstance(size, int) else size
    maps = FAMILIES[family](np.random.default_rng(seed), count, *grid)
    return np.ascontiguousarray(maps, dtype=np.float32)
