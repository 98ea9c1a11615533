"""Spatial entropy of a batch of attention maps: fastground and what one would write instead.

    python benches/bench_entropy.py [CASE ...]

From the maps of one image's heads to one entropy each, by every instruction set that this machine
has, beside the peers of `entropy_peers`. CPU time of the process on one thread, but for the threads
themselves, which are timed by the clock on the wall. The floor is one plain read of the same maps
in the same run: "of floor" is the share of that speed which a contender reaches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import entropy_peers as peers
import fastground as fg
import harness
import map_families
import numpy as np
import torch
from fastground import _core

Contenders = dict[str, Callable[..., np.ndarray]]
NUMBA = "numba, union-find of cells"


def instruction_sets() -> Contenders:
    """fastground as it comes, then forced to each slower instruction set that runs here."""
    found: Contenders = {"fastground": fg.entropy}
    for name in _core.instruction_sets()[1:]:
        found[f"fastground, {name}"] = partial(_forced, name)
    return found


def _forced(name: str, maps: np.ndarray) -> np.ndarray:
    _core.use(name)
    try:
        return fg.entropy(maps)
    finally:
        _core.use("")


def error_of(result: np.ndarray, truth: np.ndarray) -> str:
    """The largest difference, or in how many maps one is infinite and the other is not."""
    finite = np.isfinite(truth)
    wrong = int((np.isfinite(result) != finite).sum())
    largest = np.abs(np.asarray(result, np.float64)[finite] - truth[finite]).max(initial=0)
    return f"{wrong} wrong" if wrong else f"{largest:.0e}"


def compare(
    workload: str, contenders: Mapping[str, Callable], maps: np.ndarray, given: argparse.Namespace
) -> list[harness.Row]:
    """The contenders on these maps, each checked against SciPy in float64."""
    truth = peers.scipy_per_map(maps.astype(np.float64))
    errors = {name: error_of(call(maps), truth) for name, call in contenders.items()}
    if "per map loop" in errors:
        errors["per map loop"] = "other weight"
    calls = {name: partial(call, maps) for name, call in contenders.items()}
    return harness.compare(
        workload, calls, items=len(maps), errors=errors, floor=maps, **harness.sampling(given)
    )


def families(given: argparse.Namespace) -> tuple[str, list[harness.Row]]:
    rows = []
    for family in map_families.FAMILIES:
        contenders = instruction_sets() | peers.FAST | peers.SLOW
        rows += compare(family, contenders, map_families.batch(family, given.count), given)
    return f"{given.count} maps of 24 x 24 float32, one thread, CPU time", rows


def sizes(given: argparse.Namespace) -> tuple[str, list[harness.Row]]:
    rows = []
    for grid in ((14, 14), (27, 27), (36, 28), (64, 64)):
        maps = map_families.batch("attention", given.count, grid)
        name = f"{grid[0]} x {grid[1]}"
        rows += compare(name, instruction_sets() | peers.FAST, maps, given)
    return f"{given.count} attention maps, float32, one thread, CPU time", rows


def large(given: argparse.Namespace) -> tuple[str, list[harness.Row]]:
    maps = map_families.batch("attention", 16 * given.count)
    rows = compare(f"{len(maps)} maps", instruction_sets() | peers.FAST, maps, given)
    return "attention maps of 24 x 24 float32, one thread, CPU time", rows


def types(given: argparse.Namespace) -> tuple[str, list[harness.Row]]:
    """float16 as NumPy holds it; bfloat16 as torch does, numba on torch's float32 copy."""
    maps = map_families.batch("attention", given.count)
    half = maps.astype(np.float16)
    contenders = instruction_sets() | peers.FAST
    contenders[f"{NUMBA}, float32 by torch"] = lambda half: peers.numba_union_find(
        torch.from_numpy(half).float().numpy()
    )
    rows = compare("float16", contenders, half, given)
    brain = torch.from_numpy(maps).bfloat16()
    truth = peers.scipy_per_map(brain.double().numpy())
    calls: Contenders = {
        "fastground": lambda: fg.entropy(brain).numpy(),
        f"{NUMBA}, float32 by torch": lambda: peers.numba_union_find(brain.float().numpy()),
    }
    rows += harness.compare(
        "bfloat16",
        calls,
        items=len(maps),
        errors={name: error_of(call(), truth) for name, call in calls.items()},
        floor=brain.view(torch.int16).numpy(),
        **harness.sampling(given),
    )
    return f"{given.count} attention maps of 24 x 24, one thread, CPU time", rows


def head_stats(given: argparse.Namespace) -> tuple[str, list[harness.Row]]:
    """Both numbers of a head in one pass, against the entropy alone."""
    maps = map_families.batch("attention", given.count)
    sums = maps.sum((1, 2), dtype=np.float64)
    entropies = peers.scipy_per_map(maps.astype(np.float64))
    both = fg.head_stats(maps)
    assert error_of(both.entropy, entropies) == error_of(fg.entropy(maps), entropies)
    calls: dict[str, Callable[[], object]] = {
        "entropy": lambda: fg.entropy(maps),
        "head_stats": lambda: fg.head_stats(maps),
        "attention_sum": lambda: fg.attention_sum(maps),
        "NumPy, sum in float64": lambda: maps.sum((1, 2), dtype=np.float64),
    }
    errors = {
        "entropy": error_of(fg.entropy(maps), entropies),
        "head_stats": error_of(both.attention_sum, sums),
        "attention_sum": error_of(fg.attention_sum(maps), sums),
    }
    rows = harness.compare(
        "head_stats", calls, items=len(maps), errors=errors, floor=maps, **harness.sampling(given)
    )
    return f"{given.count} attention maps of 24 x 24 float32, one thread, CPU time", rows


def threads(given: argparse.Namespace) -> tuple[str, list[harness.Row]]:
    """Two threads against one, by the wall clock."""
    maps = map_families.batch("attention", 16 * given.count).astype(np.float16)
    truth = peers.scipy_per_map(maps.astype(np.float64))

    def ours(count: int) -> np.ndarray:
        fg.set_num_threads(count)
        return fg.entropy(maps)

    pool = ThreadPoolExecutor(2)
    calls = {
        "fastground, 2 threads": partial(ours, 2),
        "fastground, 1 thread": partial(ours, 1),
        f"{NUMBA}, 2 threads": partial(peers.numba_threads, pool, 2, maps),
        f"{NUMBA}, 1 thread": partial(peers.numba_union_find, maps),
    }
    rows = harness.compare(
        "2 threads",
        calls,
        items=len(maps),
        errors={name: error_of(call(), truth) for name, call in calls.items()},
        floor=maps,
        clock="wall",
        **harness.sampling(given),
    )
    harness.one_thread()
    pool.shutdown()
    return f"{len(maps)} attention maps of 24 x 24 float16, wall time", rows


CASES = {
    "entropy": families,
    "entropy-sizes": sizes,
    "entropy-large": large,
    "entropy-types": types,
    "entropy-threads": threads,
    "head-stats": head_stats,
}


def main() -> None:
    options = harness.parser("Spatial entropy against its peers.")
    options.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; or all")
    options.add_argument("--count", type=int, default=1024, help="maps a batch")
    given = options.parse_args()
    if unknown := set(given.cases) - set(CASES):
        options.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    harness.one_thread()
    for name in given.cases or CASES:
        description, rows = CASES[name](given)
        count = 2 if name == "entropy-threads" else 1
        harness.report(name, description, rows, save=not given.no_save, threads=count)


if __name__ == "__main__":
    main()
