"""Batches of maps that are hard on a labeller, drawn many at a time: (count, grid_h, grid_w).

Beside the families of benches/map_families.py: masks of every density, long winding regions that a
flood needs many sweeps for, maps without foreground, and maps with cells exactly at their mean.
Values are float64; those of the drawn patterns are few and exact in every dtype.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "benches"), str(ROOT / "tests" / "ops")]

import map_cases  # noqa: E402
import map_families  # noqa: E402

GRIDS = [
    (1, 1), (1, 24), (24, 1), (2, 2), (13, 57), (14, 14), (16, 16), (7, 31), (20, 64), (24, 24),
    (25, 25), (26, 26), (27, 27), (28, 36), (31, 32), (32, 32), (32, 31), (33, 33), (36, 28),
    (48, 63), (57, 57), (58, 64), (64, 20), (63, 64), (64, 64), (65, 65), (3, 130), (128, 128),
    (256, 256),
]  # fmt: skip
COUNTS = [1, 7, 15, 16, 17, 255, 256, 257, 1000]


def random_cells(rng, count, h, w, low=0.02, high=0.98):
    """Masks, each of its own density."""
    return rng.random((count, h, w), np.float32) < rng.uniform(low, high, (count, 1, 1))


def spoil(rng, masks, most=3):
    """Flips up to `most` cells of each mask, so that no two are the same."""
    masks = np.array(masks, dtype=bool)
    count, h, w = masks.shape
    for _ in range(rng.integers(most + 1)):
        masks[np.arange(count), rng.integers(h, size=count), rng.integers(w, size=count)] ^= True
    return masks


def turned(rng, count, h, w, draw):
    """draw(h, w) or draw(w, h).T, mirrored at random, spoilt in a few cells."""
    one = np.asarray(draw(w, h)).T if rng.integers(2) else np.asarray(draw(h, w))
    one = one[:: rng.choice([1, -1]), :: rng.choice([1, -1])] > 0
    return spoil(rng, np.broadcast_to(one, (count, h, w)))


def comb(h, w):
    i, j = np.indices((h, w))
    return (i == 0) | (j % 2 == 0)


def snake(h, w):
    """Full even rows, joined at the right and the left end by turns: as long as a path can be."""
    i, j = np.indices((h, w))
    return (i % 2 == 0) | (j == np.where(i % 4 == 1, w - 1, 0))


def rings(h, w):
    i, j = np.indices((h, w))
    return np.minimum.reduce([i, j, h - 1 - i, w - 1 - j]) % 2 == 0


def maze(rng, count, h, w):
    """Rooms at even rows and columns, each with a door either up or to the left: a tree."""
    rooms_h, rooms_w = (h + 1) // 2, (w + 1) // 2
    cells = np.zeros((count, 2 * rooms_h + 1, 2 * rooms_w + 1), bool)
    up = rng.random((count, rooms_h, rooms_w)) < rng.uniform(0.2, 0.8)
    cells[:, 1::2, 1::2] = True
    cells[:, :-1:2, 1::2] = up
    cells[:, 1::2, :-1:2] = ~up
    return spoil(rng, cells[:, 1 : h + 1, 1 : w + 1])


def full_lines(rng, count, h, w):
    rows = rng.random((count, h, 1)) < rng.uniform(0, 0.6)
    columns = rng.random((count, 1, w)) < rng.uniform(0, 0.6)
    return spoil(rng, rows | columns)


def one_cell(rng, count, h, w):
    cells = np.zeros((count, h * w), bool)
    cells[np.arange(count), rng.integers(h * w, size=count)] = True
    return cells.reshape(count, h, w)


def ties(rng, count, h, w):
    """As many cells at 0 as at 2, the others at the mean 1: these are background."""
    order = rng.random((count, h * w), np.float32).argsort(1)
    half = rng.integers(0, h * w // 2 + 1, (count, 1))
    levels = 1.0 + (order < half) - (order >= h * w - half)
    return levels.reshape(count, h, w)


def family_of_the_benches(name):
    def draw(rng, count, h, w):
        return map_families.FAMILIES[name](rng, count, max(h, 2), max(w, 2))[:, :h, :w]

    return draw


def two_levels(draw):
    """A mask's cells as numbers: background and foreground at values of one's choice."""

    def cells(rng, count, h, w):
        low, high = rng.choice([(0, 1), (0, 0.125), (-0.5, 0.25), (0.25, 0.3125), (-2, -1)])
        return np.where(draw(rng, count, h, w), high, low)

    return cells


PATTERNS = {
    "density": random_cells,
    "sparse": lambda rng, *size: random_cells(rng, *size, 0.02, 0.15),
    "dense": lambda rng, *size: random_cells(rng, *size, 0.85, 0.98),
    "critical": lambda rng, *size: random_cells(rng, *size, 0.35, 0.45),
    "spiral": lambda rng, *size: turned(rng, *size, map_cases.spiral),
    "comb": lambda rng, *size: turned(rng, *size, comb),
    "snake": lambda rng, *size: turned(rng, *size, snake),
    "rings": lambda rng, *size: turned(rng, *size, rings),
    "maze": maze,
    "checkerboard": lambda rng, *size: turned(
        rng, *size, lambda h, w: np.indices((h, w)).sum(0) % 2
    ),
    "stripes": lambda rng, *size: turned(rng, *size, lambda h, w: np.indices((h, w))[0] % 2),
    "dots": lambda rng, *size: turned(
        rng, *size, lambda h, w: (np.indices((h, w)) % 2 == 0).all(0)
    ),
    "full lines": full_lines,
    "one cell": one_cell,
    "all but one": lambda rng, *size: ~one_cell(rng, *size),
}

FAMILIES = {
    **{name: family_of_the_benches(name) for name in map_families.FAMILIES},
    **{name: two_levels(draw) for name, draw in PATTERNS.items()},
    "signed": lambda rng, count, h, w: rng.normal(size=(count, h, w)),
    "levels": lambda rng, count, h, w: rng.integers(0, 4, (count, h, w)) / 4,
    "ties": ties,
    "constant": lambda rng, count, h, w: np.broadcast_to(
        rng.choice([0.0, 0.1, 1 / 3, -0.7, 1e-7, 3.0], (count, 1, 1)), (count, h, w)
    ),
}
