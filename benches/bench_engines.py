"""Discovery by an actor of Ray beside the plain engine: the whole command, from start to end.

    python benches/bench_engines.py      tiny, one thread; 3,700 shapes take about a minute

    plain     fastground discover tiny
    Ray       fastground discover tiny --engine ray --num-actors 1

What Ray costs is mostly its start and its end; so the ratio belongs to a run of this length. Each
command is a process of its own, and time is the wall's: Ray has other processes at work, and starts
them anew, whether or not a cluster runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import harness
import numpy as np
import readme_tables
from fastground import runs
from goals import PLAIN_ENGINE, RAY_ENGINE

COMMANDS = {PLAIN_ENGINE: [], RAY_ENGINE: ["--engine", "ray", "--num-actors", "1"]}


def discover(out: Path, samples: int, engine: list[str]) -> None:
    """The command, into a new folder."""
    number = len(list(out.parent.iterdir()))
    command = [sys.executable, "-m", "fastground.cli", "discover", "tiny", *engine]
    command += ["--num-samples", str(samples), "--out", str(out.with_name(f"{out.name}-{number}"))]
    subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def compare(samples: int, repeats: int) -> list[harness.Row]:
    """Both engines on the same samples.

    Raises:
        AssertionError: their tables differ.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calls = {
            engine: partial(discover, folder / f"{i}", samples, options)
            for i, (engine, options) in enumerate(COMMANDS.items())
        }
        rows = harness.compare(
            "tiny", calls, items=samples, repeats=repeats, clock="wall", warm=False
        )
        tables = [runs.load(made) for made in folder.iterdir()]
        for table in tables:
            for column in ("sample_ids", "image_ids", "sums", "entropies"):
                mine, first = getattr(table, column), getattr(tables[0], column)
                assert np.array_equal(mine, first), column
    for row in rows:
        row.error = "equal tables"
        row.expressions_per_s = 1e6 / row.time_us
    return rows


def main() -> None:
    options = harness.parser("Discovery by Ray beside the plain engine.")
    options.add_argument("--samples", type=int, default=3700)
    options.set_defaults(repeats=2)
    given = options.parse_args()
    rows = compare(given.samples, given.repeats)
    described = f"fastground discover tiny, {given.samples:,} shapes, one thread; wall time"
    harness.report("discovery-engines", described, rows, save=not given.no_save)
    measured = {"discovery-engines": {"rows": [vars(row) for row in rows]}}
    readme_tables.print_goals(measured, only="discovery-engines")


if __name__ == "__main__":
    main()
