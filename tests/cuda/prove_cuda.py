"""The CUDA kernels, run on the CPU, against the native core, on very many maps: equal to the bit.

    python tests/cuda/prove_cuda.py [--maps 300000] [--jobs 2] [--seed 0]

The batches are those of tests/exhaustive/prove.py. Sums and entropies are compared on all of them,
foregrounds and labels on a quarter, combined maps and boxes on an eighth. What a batch differs in
is named, and can be looked at again with --batch. What this cannot show is what a GPU alone does:
its memory model, its arithmetic units, its launches.
"""

import argparse
import contextlib
import functools
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "exhaustive"))

import cuda_on_host
import drawn_maps  # noqa: F401  sets the path to tests/ops
import fastground as fg
import numpy as np
import prove
import torch
from fastground import gpu, ops

CELLS = 200_000
"""Cells of a batch, about."""

REGIONS = ["hull", "component", "mass", "all"]


def same(found, expected):
    """Whether two tensors hold the same numbers, or NaN, everywhere."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    equal = found == expected
    if found.is_floating_point():
        equal |= found.isnan() & expected.isnan()
    return bool(equal.all())


def check(number, seed=0, most_cells=CELLS):
    """Compares all that is compared of one batch; how many maps, and what differs."""
    maps, words, rng = prove.batch(number, seed, most_cells)
    cut = str(rng.choice(["mean", "mean", "mean+eps", "2mean+eps"]))
    weight = str(rng.choice(["area", "area", "area", "mass"]))
    empty = str(rng.choice(["inf", "zero"]))
    if rng.integers(4) == 0:
        maps = maps.clone()
        maps[rng.integers(len(maps)), 0, 0] = float(rng.choice([np.nan, np.inf, -np.inf]))
    keywords = {"weight": weight, "cut": cut, "empty": empty}
    pairs = {
        "head_stats": (gpu.head_stats, fg.head_stats, keywords),
        "attention_sum": (gpu.attention_sum, fg.attention_sum, {}),
    }
    if number % 4 == 0:
        for name in ("binarize", "label"):
            pairs[name] = (getattr(gpu, name), getattr(fg, name), {"cut": cut})
    differ = []
    few = maps[:8]  # a warp each: see launch.cuh
    if not same(gpu.entropy(few, **keywords), fg.entropy(few, nan="propagate", **keywords)):
        differ.append(f"{words}: entropy of few {keywords} differs")
    for name, (by_cuda, by_core, chosen) in pairs.items():
        found, expected = by_cuda(maps, **chosen), by_core(maps, nan="propagate", **chosen)
        if not isinstance(found, tuple):
            found, expected = (found,), (expected,)
        if not all(map(same, found, expected)):
            differ.append(f"{words}: {name} {chosen} differs")
    if number % 4 == 0:
        masks = fg.binarize(maps, nan="propagate")
        if not same(gpu.label(masks), fg.label(masks)):
            differ.append(f"{words}: label of masks differs")
    if number % 8 == 1:
        differ += [f"{words}: {what} differs" for what in check_combined(maps, rng)]
    return len(maps), differ


def check_combined(maps, rng):
    """What differs of some combined maps and of the boxes in them."""
    heads = min(int(rng.integers(1, 19)), len(maps))
    groups = maps[: min(len(maps) // heads, 12) * heads].unflatten(0, (-1, heads))
    grid = groups.shape[-2:]
    recipe = fg.Recipe(
        kernel_size=int(rng.choice([1, 3, 5, 7, 7, 7, 9, 15])),
        sigma=float(rng.choice([0.3, 1.0, 2.5])),
        border=str(rng.choice(["reflect101", "reflect"])),
        region=str(rng.choice(REGIONS)),
    )
    expected = ops.combine(groups, recipe=recipe, nan="propagate")
    if not same(gpu.combine(groups, recipe=recipe), expected):
        yield f"combine {recipe}"
    valid = {
        0: None,
        1: torch.from_numpy(rng.random(grid) < 0.8),
        2: torch.from_numpy(rng.random((len(groups), *grid)) < 0.8),
    }[int(rng.integers(3))]
    keywords = {"recipe": recipe, "valid": valid}
    expected = fg.boxes(groups, nan="propagate", **keywords)
    if not all(map(same, gpu.boxes(groups, **keywords), expected)):
        yield f"boxes {recipe}"


IN_WORKER = contextlib.ExitStack()
"""What a worker process keeps until it ends."""


def start_worker(path):
    torch.set_num_threads(1)
    IN_WORKER.enter_context(cuda_on_host.kernels(cuda_on_host.load(path)))


def prove_all(maps, module_path, jobs=1, seed=0, most_cells=CELLS):
    """Checks batches until so many maps have been seen; (how many, what differs)."""
    numbers, planned = [], 0
    while planned < maps:
        planned += prove.plan(len(numbers), most_cells)[3]
        numbers.append(len(numbers))
    one = functools.partial(check, seed=seed, most_cells=most_cells)
    done, differ = 0, []
    pool = None
    if jobs > 1:
        context = multiprocessing.get_context("spawn")
        pool = context.Pool(jobs, start_worker, (module_path,))
    with cuda_on_host.kernels(cuda_on_host.load(module_path)):
        begin = shown = time.monotonic()
        for count, wrong in pool.imap_unordered(one, numbers) if pool else map(one, numbers):
            done += count
            differ += wrong
            for line in wrong:
                print(line, flush=True)
            if time.monotonic() - shown > 15:
                shown = time.monotonic()
                print(f"{done:,} of {planned:,} maps, {shown - begin:.0f} s", flush=True)
    if pool:
        pool.close()
        pool.join()
    print(f"{done:,} maps, {len(differ)} differences, {time.monotonic() - begin:.0f} s")
    return done, differ


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--maps", type=int, default=300_000)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, help="only this one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        built = cuda_on_host.build(Path(folder))
        if given.batch is not None:
            with cuda_on_host.kernels(cuda_on_host.load(built)):
                sys.exit("\n".join(check(given.batch, given.seed)[1]) or None)
        sys.exit(bool(prove_all(given.maps, built, given.jobs, given.seed)[1]))
