"""The ranking and all of its ablations from a run's shards at full size, with the memory it takes.

    python benches/bench_ranking.py                     120,624 samples of 1,024 heads
    python benches/bench_ranking.py --samples 1000000 --no-save

The numbers are synthetic: an attention sum and an entropy of each head, spread by the samples. Each
step is run once, by a process of its own; time is the wall's, the memory what the kernel saw at
most in the process, its libraries among it.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
from fastground import ablations, ranking, runs
from fastground.types import Recipe


def write(folder: Path, samples: int, shape: tuple[int, int], seed: int = 0) -> None:
    """A run of so many samples, seven an image."""
    random = np.random.default_rng(seed)
    about = {
        "checkpoint": "synthetic", "weights": "", "dataset": "synthetic", "split": "train",
        "architecture": {"model_type": "llava", "num_layers": shape[0], "num_heads": shape[1]},
        "recipe": Recipe().to_dict(), "versions": {},
    }  # fmt: skip
    level = random.beta(0.6, 1.5, shape).astype(np.float32)
    typical = random.gamma(3, 0.5, shape).astype(np.float32)
    with runs.begin(folder, about) as run:
        for index, start in enumerate(range(0, samples, run.shard_samples)):
            ids = range(start, min(start + run.shard_samples, samples))
            noise = random.random((2, len(ids), *shape), dtype=np.float32)
            sums = np.minimum(level * (0.5 + noise[0]), 1)
            entropies = typical * np.maximum(0.3 + noise[1] - 0.05, 0)
            keys = [(i, i // 7, 0) for i in ids]
            run.write(index, keys, [], sums=sums, entropies=entropies)


def rank(folder: Path) -> ranking.HeadRanking:
    """Heads, frequencies, five trials."""
    return ranking.rank_table(runs.load(folder))


def rank_and_ablate(folder: Path) -> ablations.Ablations:
    """The same, then N = 1..14, tau, criteria by fixed and own heads, 1,000 resamples."""
    return ablations.ablate(runs.load(folder), rank(folder))


def measured(step: Any, *given: Any) -> tuple[float, float]:
    """Seconds and megabytes of a call in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (step, *given))


def _measured(step: Any, *given: Any) -> tuple[float, float]:
    begin = time.perf_counter()
    step(*given)
    seconds = time.perf_counter() - begin
    unit = 1e-6 if sys.platform == "darwin" else 1.024e-3  # bytes there, kilobytes elsewhere
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


STEPS = {"ranking": rank, "ranking and ablations": rank_and_ablate}


def main() -> None:
    options = harness.parser("The ranking from a run's shards.")
    options.add_argument("--samples", type=int, nargs="+", default=[12_000, 120_624])
    options.add_argument("--layers", type=int, default=32)
    options.add_argument("--heads", type=int, default=32)
    options.add_argument("--folder", type=Path, help="where the shards are written; else /tmp")
    given = options.parse_args()
    rows = []
    for samples in given.samples:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            run = Path(folder) / "run"
            measured(write, run, samples, (given.layers, given.heads))
            first = 0.0
            for name, step in STEPS.items():
                seconds, megabytes = measured(step, run)
                first = first or seconds
                error = f"{seconds:.1f} s in all"
                row = harness.Row(
                    f"{samples} samples", name, seconds / samples * 1e6, 0, seconds / first, error
                )
                row.peak_mb = megabytes
                rows.append(row)
    described = (
        f"{given.layers} x {given.heads} heads, float32 in zstd Parquet, read block by block; wall "
        "time of one run, MB of the whole process"
    )
    harness.report("ranking", described, rows, save=not given.no_save, threads=2)


if __name__ == "__main__":
    main()
