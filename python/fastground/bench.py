"""How fast the operations are on this machine, and how far from their definition.

    maps like a model's --each operation, as it runs here--> time a map, answers
                        --a copy of the same bytes---------> time     |
                        --reference.py, of some of them-------------> answers

The floor is to read the maps once; a copy reads and writes them. Peers are measured by the
project's own benchmarks (`benches/`); this one needs nothing but fastground.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.benchmark import Timer

from fastground import dispatch, ops, reference
from fastground.types import Recipe

DTYPES = ("float32", "float16", "bfloat16", "float64")
MOST_CELLS = 10**9
"""Of all maps of a call: 4 GB in float32, of which there are some at a time."""
SOME = 64
"""So many maps the reference is asked, which takes its time."""
BLOCK, LEAST_BLOCKS = 1e-3, 5
"""Seconds of one call, repeated so often; and how often that is timed, at least."""
HEADS, KEYS, HEAD_DIM = 32, 640, 128
"""A layer of LLaVA-1.5-7B: what attention_rows is timed on."""


class Speed(NamedTuple):
    """One operation, timed."""

    operation: str
    implementation: str
    """As `ops.implementations` names it."""
    time_ns: float
    """Median, of a map; of a head's row for attention_rows."""
    spread: float
    """Interquartile range over median."""
    of_copy: float
    """The time of a copy of what it reads, over its own: the least of each, measured in turns."""
    error: float
    """Largest absolute difference from the definition; of whole numbers, how many differ."""


def attention_like(
    count: int, grid: tuple[int, int], *, dtype: str = "float32", device: str = "cpu", seed: int = 0
) -> torch.Tensor:
    """Maps as a head's: a softmax of smooth logits and of noise, times 0.3.

    Returns:
        (count, grid_h, grid_w) of the dtype, on the device.
    """
    generator = torch.Generator().manual_seed(seed)
    plain, noise = torch.randn(2, count, *grid, generator=generator)
    sigma = math.sqrt(grid[0] * grid[1]) / 8
    smooth = ops.smooth(plain, kernel_size=2 * math.ceil(3 * sigma) + 1, sigma=sigma)
    logits = 1.5 * smooth / smooth.std().clamp(min=1e-6) + 0.5 * noise
    maps = 0.3 * logits.flatten(1).softmax(-1).view_as(plain)
    return maps.to(device, getattr(torch, dtype))


def measure(
    count: int = 1024,
    grid: tuple[int, int] = (24, 24),
    *,
    dtype: str = "float32",
    device: str = "cpu",
    seconds: float = 0.3,
) -> Iterator[Speed]:
    """Every operation, as it is done.

    Args:
        count: maps of a call, at least 3; of all of them `MOST_CELLS` cells at most.
        grid: (grid_h, grid_w), 1 to 256 each.
        dtype: of the maps and keys.
        device: "cpu" or "cuda".
        seconds: each is repeated for.

    Raises:
        ValueError: fewer maps, another grid or dtype, or a device that is not there.
        RuntimeError: a CUDA device for which there are no kernels in this build.
    """
    if count < 3:
        raise ValueError(f"count must be at least 3, one box's maps, but got {count}")
    if len(grid) != 2 or not all(1 <= side <= 256 for side in grid):
        raise ValueError(f"grid must be 1 to 256 cells a side, but got {grid}")
    if count * math.prod(grid) > MOST_CELLS:
        raise ValueError(
            f"count maps must have at most {MOST_CELLS:,} cells together, but got {count} of "
            f"{grid[0]} x {grid[1]}; time fewer"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but got {dtype!r}")
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device must be cpu, or cuda where torch sees one, but got {device!r}")
    where = {name: row[kind] for name, row in dispatch.implementations().items()}
    maps = attention_like(count, grid, dtype=dtype, device=device)
    groups = maps[: count // 3 * 3].unflatten(0, (-1, 3))
    for name, given in (
        ("attention_sum", maps), ("binarize", maps), ("label", maps), ("entropy", maps),
        ("head_stats", maps), ("smooth", maps), ("combine", groups), ("boxes", groups),
    ):  # fmt: skip
        chosen = {"recipe": Recipe()} if given is groups else {}
        ours = partial(getattr(ops, name), nan="propagate", **chosen)
        theirs = partial(getattr(reference, name), **chosen)
        yield _timed(name, where[name], ours, theirs, given, given[:SOME], seconds)
    keys = torch.randn(1, HEADS, KEYS, HEAD_DIM).to(maps)
    query = 3 * torch.randn(1, 1, HEADS, HEAD_DIM).to(maps)
    rows = partial(ops.attention_rows, query), partial(reference.attention_rows, query)
    yield _timed("attention_rows", where["attention_rows"], *rows, keys, keys, seconds)


def _timed(
    name: str,
    implementation: str,
    ours: Callable[[torch.Tensor], Any],
    theirs: Callable[[torch.Tensor], Any],
    given: torch.Tensor,
    some: torch.Tensor,
    seconds: float,
) -> Speed:
    copied = torch.zeros_like(given)  # written once: memory that is there
    own, copy = _in_turns(partial(ours, given), partial(copied.copy_, given), seconds=seconds)
    median = statistics.median(own)
    low, _, high = statistics.quantiles(own, n=4)
    count = math.prod(given.shape[:-2])
    error = _apart(ours(some), theirs(some))
    of_copy = min(copy) / min(own)
    return Speed(name, implementation, 1e9 * median / count, (high - low) / median, of_copy, error)


def _in_turns(*calls: Callable[[], Any], seconds: float) -> list[list[float]]:
    """Seconds of each call, again and again, a block of one after a block of the other.

    So what else the machine does meanwhile is met by all of them.
    """
    timers = [
        Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
        for call in calls
    ]
    numbers = [max(1, int(BLOCK / timer.timeit(1).mean)) for timer in timers]
    taken: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds * len(calls)
    while len(taken[0]) < LEAST_BLOCKS or time.perf_counter() < end:
        for timer, number, times in zip(timers, numbers, taken, strict=True):
            times += timer.timeit(number).times
    return taken


def _apart(ours: Any, theirs: Any) -> float:
    """The largest difference of two answers; of whole numbers, how many differ."""
    if isinstance(ours, tuple):
        return max(_apart(a, b) for a, b in zip(ours, theirs, strict=True))
    if not ours.dtype.is_floating_point:
        return float((ours != theirs).sum())
    apart = torch.where(ours == theirs, 0, (ours - theirs).abs())
    return float(apart.nan_to_num(math.inf).max())
