"""Batches of maps that try every operation: shapes, families, dtypes and layouts in memory."""

import itertools
import math

import numpy as np
import torch
from hypothesis import strategies as st

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
GRIDS = [(1, 1), (1, 2), (2, 1), (1, 24), (24, 1), (2, 2), (3, 5), (7, 7), (13, 6)]
GRIDS += [(14, 14), (16, 9), (24, 24), (9, 64), (27, 27), (33, 20), (64, 64), (5, 65), (3, 130)]


def spiral(h, w):
    """A wall that winds inwards with a gap of one cell: one long region."""
    wall = np.zeros((h, w))
    i, j, di, dj = 0, 0, 0, 1
    wall[0, 0] = 1
    for _ in range(4 * (h + w)):
        for _ in range(max(h, w)):
            a, b = i + di, j + dj
            if not (0 <= a < h and 0 <= b < w):
                break
            c, d = a + di, b + dj
            if 0 <= c < h and 0 <= d < w and wall[c, d]:
                break
            i, j = a, b
            wall[i, j] = 1
        di, dj = dj, -di
    return wall


def attention(rng, h, w):
    """Smooth logits, white noise and a few sinks, through a softmax."""
    y, x = np.mgrid[:h, :w]
    logits = rng.normal(size=(h, w))
    for _ in range(3):
        a, b, s = rng.uniform(0, h), rng.uniform(0, w), rng.uniform(1, 4)
        logits += 3 * np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * s * s))
    for _ in range(rng.integers(0, 4)):
        logits[rng.integers(h), rng.integers(w)] += 5
    weights = np.exp(logits)
    return 0.3 * weights / weights.sum()


def one_cell(rng, h, w):
    cells = np.zeros((h, w))
    cells[rng.integers(h), rng.integers(w)] = 0.7
    return cells


FAMILIES = {
    "noise": lambda rng, h, w: rng.uniform(size=(h, w)),
    "attention": attention,
    "speckle": lambda rng, h, w: rng.lognormal(sigma=2, size=(h, w)) / (h * w),
    "levels": lambda rng, h, w: rng.integers(0, 4, size=(h, w)) / 4,
    "signed": lambda rng, h, w: rng.normal(size=(h, w)),
    "constant": lambda rng, h, w: np.full((h, w), rng.uniform()),
    "zeros": lambda rng, h, w: np.zeros((h, w)),
    "one cell": one_cell,
    "all but one": lambda rng, h, w: 0.7 - one_cell(rng, h, w),
    "checkerboard": lambda rng, h, w: np.indices((h, w)).sum(0) % 2,
    "stripes": lambda rng, h, w: np.indices((h, w))[rng.integers(2)] % 2,
    "sparse dots": lambda rng, h, w: (np.indices((h, w)) % 2 == 0).all(0) * 1.0,
    "spiral": lambda rng, h, w: spiral(h, w),
}


def scale_of(size, dtype):
    info = torch.finfo(dtype)
    huge = 2.0 ** (math.frexp(info.max)[1] - 14)
    return {"plain": 1.0, "huge": huge, "sub-normal": info.smallest_normal / 8}[size]


@st.composite
def batches(draw, dtypes=DTYPES, grids=GRIDS, sizes=("plain", "plain", "huge", "sub-normal")):
    """(count, grid_h, grid_w) maps of one family, dtype and scale, contiguous or not."""
    h, w = draw(st.sampled_from(grids))
    family, dtype = draw(st.sampled_from(sorted(FAMILIES))), draw(st.sampled_from(dtypes))
    scale = scale_of(draw(st.sampled_from(sizes)), dtype)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    maps = np.stack([FAMILIES[family](rng, h, w) for _ in range(draw(st.integers(1, 3)))])
    maps = torch.from_numpy(maps * scale).to(dtype)
    return lay_out(maps, draw(st.sampled_from(["contiguous", "transposed", "strided", "offset"])))


def lay_out(maps, layout):
    """The same numbers, differently in memory."""
    count, h, w = maps.shape
    if layout == "transposed":
        return maps.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    if layout == "strided":
        wide = torch.full((count, 2 * h, 3 * w), torch.nan, dtype=maps.dtype)
        wide[:, ::2, 1::3] = maps
        return wide[:, ::2, 1::3]
    if layout == "offset":
        wide = torch.full((count + 1, h + 2, w + 1), torch.nan, dtype=maps.dtype)
        wide[1:, 1:-1, 1:] = maps
        return wide[1:, 1:-1, 1:]
    return maps


def spoilt():
    """For each dtype and each value that is no number: three maps, the second holds it."""
    for dtype, value in itertools.product(DTYPES, (torch.nan, torch.inf, -torch.inf)):
        maps = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
        maps[1, 2, 3] = value
        yield maps


def levels(maps, cut="mean"):
    """The level that each map's foreground exceeds: (...,) float64, by NumPy."""
    cells = maps.double().numpy()
    mean = np.maximum(cells.mean((-2, -1)), cells.min((-2, -1)))  # the mean rounds
    return {"mean": mean, "mean+eps": mean + 1e-3, "2mean+eps": 2 * mean + 1e-3}[cut]


def foreground(maps, cut="mean"):
    """NumPy's answer to `binarize`."""
    return maps.double().numpy() > levels(maps, cut)[..., None, None]
