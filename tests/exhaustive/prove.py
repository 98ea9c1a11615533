"""The native core against float64 computations by NumPy, SciPy and OpenCV, on very many maps.

    python tests/exhaustive/prove.py [--maps 1000000] [--jobs 2] [--seed 0]

Every batch has its own grid, family, dtype, size, cut and layout in memory, all drawn from its
number: a batch that differs is named and can be looked at again with --batch. Every instruction set
and number of threads must give the same bits; the numbers must be

    entropy         within 2e-6, area or mass weighted, on all maps
    attention_sum   within half a unit in the last place of float32, on all maps
    binarize, label equal, on a quarter of the batches
    smooth          within 4e-7, relative, on an eighth; combine 6e-8 more for each further head
    boxes           hull area and box equal to OpenCV's, on some maps of each batch of an eighth
"""

import argparse
import collections
import functools
import math
import multiprocessing
import sys
import time

import drawn_maps
import fastground as fg
import map_cases
import numpy as np
import oracle
import torch
from fastground import _core, ops

CELLS = 600_000
"""Cells of a batch, about; large grids come in smaller batches."""

HALF_STEP = 2.0**-150
"""Of the smallest numbers of float32, to which a result is rounded once."""

LAYOUTS = ["contiguous"] * 5 + ["transposed", "strided", "offset"]
PLAIN = fg.Recipe(kernel_size=1)
KINDS = [(grid, family) for grid in drawn_maps.GRIDS for family in drawn_maps.FAMILIES]


NAMES = _core.instruction_sets()


def plan(number, most_cells=CELLS):
    """The grid, family and number of maps of a batch; each pair of grid and family in turn."""
    (h, w), family = KINDS[number * 257 % len(KINDS)]
    count = drawn_maps.COUNTS[number % len(drawn_maps.COUNTS)]
    return h, w, family, max(1, min(count, most_cells // (h * w)))


def batch(number, seed, most_cells=CELLS):
    """The maps of a batch as a tensor, what they are in words, and the generator for choices."""
    rng = np.random.default_rng([seed, number])
    h, w, family, count = plan(number, most_cells)
    dtype = map_cases.DTYPES[rng.integers(4)]
    layout = LAYOUTS[rng.integers(len(LAYOUTS))]
    cells = np.array(drawn_maps.FAMILIES[family](rng, count, h, w), np.float64)
    words = f"batch {number}: {count} x {h} x {w} {family} {str(dtype)[6:]} {layout}"
    return map_cases.lay_out(torch.from_numpy(cells).to(dtype), layout), words, rng


def same_bits(operation):
    """The operation's results, and which instruction sets or thread counts give other bits."""
    results, other = None, []
    for name in NAMES:
        for n in (1, 2, 3):
            _core.use(name)
            fg.set_num_threads(n)
            found = operation()
            found = [found] if isinstance(found, torch.Tensor) else list(found)
            arrays = [array.numpy() for array in found]
            if results is None:
                results = arrays
            elif any(a.tobytes() != b.tobytes() for a, b in zip(arrays, results, strict=True)):
                other.append(f"{name} with {n} threads")
    _core.use("")
    return results, other


class Report:
    """Counts what was compared and notes what differs."""

    def __init__(self, words):
        self.words = words
        self.compared = collections.Counter()
        self.differ = []

    def each(self, what, right):
        """right: whether each map, by its first axis, is as it must be."""
        self.compared[what] += len(right)
        if not right.all():
            wrong = np.flatnonzero(~right)
            self.differ.append(
                f"{self.words}: {what} differs on {len(wrong)}, first on map {wrong[0]}"
            )

    def bits(self, what, other):
        if other:
            self.differ.append(f"{self.words}: {what} has other bits by {', '.join(other)}")


def check(number, seed=0, most_cells=CELLS):
    """Compares all that is compared of one batch; (number of maps, comparisons, differences)."""
    maps, words, rng = batch(number, seed, most_cells)
    weight = rng.choice(["area", "area", "area", "mass"])
    cut = rng.choice(["mean", "mean", "mean+eps", "2mean+eps"])
    report = Report(f"{words} {weight} {cut}")
    cells = maps.double().numpy()
    masks = cells > oracle.levels(cells, cut)
    regions = oracle.Regions(masks)

    (sums, entropies), other = same_bits(lambda: fg.head_stats(maps, weight=weight, cut=cut))
    report.bits("head_stats", other)
    excess = np.maximum(cells - oracle.levels(cells, "mean"), 0) if weight == "mass" else None
    expected = regions.entropies(excess)
    close = np.isclose(entropies, expected, rtol=0, atol=2e-6)
    report.each(f"entropy by {weight}", close)
    exact = cells.sum((1, 2))
    if number % 8 == 1:
        exact = np.array([math.fsum(one) for one in cells.reshape(len(cells), -1).tolist()])
    slack = 2**-24 * np.abs(exact) + 1e-14 * np.abs(cells).sum((1, 2)) + 2**-150
    report.each("attention_sum", np.abs(sums - exact) <= slack)

    if number % 4 == 0:
        check_regions(report, maps, cut, masks, regions)
    if number % 8 == 2:
        check_smooth(report, maps, cells, rng)
    if number % 8 == 5:
        check_boxes(report, maps[:: len(maps) // 8 + 1])
    return len(maps), report.compared, report.differ


def check_regions(report, maps, cut, masks, regions):
    (found,), other = same_bits(lambda: fg.binarize(maps, cut=cut))
    report.bits("binarize", other)
    report.each("binarize", (found == masks).all((1, 2)))
    numbers = regions.numbers()
    for what, given in (("label", maps), ("label of masks", torch.from_numpy(masks))):
        (labels,), other = same_bits(lambda given=given: fg.label(given, cut=cut))
        report.bits(what, other)
        report.each(what, (labels == numbers).all((1, 2)))


def check_smooth(report, maps, cells, rng):
    (smoothed,), other = same_bits(lambda: fg.smooth(maps))
    report.bits("smooth", other)
    expected, most = oracle.smooth(cells), oracle.smooth(np.abs(cells))
    near = np.abs(smoothed - expected) <= 4e-7 * most + HALF_STEP
    report.each("smooth", near.all((1, 2)))
    heads = int(rng.integers(1, 17))
    groups = maps[: len(maps) // heads * heads].unflatten(0, (-1, heads))
    (combined,), other = same_bits(lambda: ops.combine(groups))
    report.bits("combine", other)
    parts = (x[: heads * len(groups)].reshape(groups.shape) for x in (expected, most))
    expected, most = (part.sum(1) for part in parts)
    bound = 4e-7 + 6e-8 * (heads - 1)  # heads are added one after the other in float32
    near = np.abs(combined - expected) <= bound * most + HALF_STEP
    report.each("combine", near.all((1, 2)))
    _, other = same_bits(lambda: fg.boxes(groups, nan="propagate"))
    report.bits(f"boxes of {heads} smoothed", other)


def check_boxes(report, maps):
    found, other = same_bits(lambda: fg.boxes(maps[:, None], recipe=PLAIN, nan="propagate"))
    report.bits("boxes", other)
    xyxy, area = found[:2]
    cells = maps.float().double().numpy()
    labels = oracle.Regions(cells > oracle.levels(cells, "mean")).numbers()
    right = []
    for index, one in enumerate(labels):
        areas, boxes = oracle.hulls(one)
        if not areas:
            right.append(not found[4][index] and not area[index])
            continue
        largest = [i for i, a in enumerate(areas) if a == max(areas)]
        sums = [cells[index][one == i + 1].sum() for i in largest]
        best = largest[max(range(len(largest)), key=lambda i: (sums[i], -i))]
        right.append(area[index] == areas[best] and tuple(xyxy[index]) == boxes[best])
    report.each("boxes", np.array(right))


def start_worker():
    torch.set_num_threads(1)


def prove(maps, jobs=1, seed=0, most_cells=CELLS):
    """Checks batches until so many maps have been seen; (how many, what was found to differ)."""
    begin = shown = time.monotonic()
    numbers, planned = [], 0
    while planned < maps:
        planned += plan(len(numbers), most_cells)[3]
        numbers.append(len(numbers))
    one = functools.partial(check, seed=seed, most_cells=most_cells)
    pool = multiprocessing.get_context("spawn").Pool(jobs, start_worker) if jobs > 1 else None
    done, compared, differ = 0, collections.Counter(), []
    for count, made, wrong in pool.imap_unordered(one, numbers) if pool else map(one, numbers):
        done += count
        compared.update(made)
        differ += wrong
        for line in wrong:
            print(line, flush=True)
        if time.monotonic() - shown > 15:
            shown = time.monotonic()
            print(f"{done:,} of {planned:,} maps, {shown - begin:.0f} s", flush=True)
    if pool:
        pool.close()
        pool.join()
    for what, count in sorted(compared.items()):
        print(f"{count:>11,} {what}")
    print(f"{' and '.join(NAMES)} in {time.monotonic() - begin:.0f} s")
    print(f"{done:,} maps, {len(differ)} batches differ")
    return done, differ


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--maps", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, help="only this one")
    given = parser.parse_args()
    if given.batch is not None:
        sys.exit("\n".join(check(given.batch, given.seed)[2]) or None)
    sys.exit(bool(prove(given.maps, given.jobs, given.seed)[1]))
