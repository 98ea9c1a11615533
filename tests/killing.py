"""Runs of killed_runs.py, killed at random moments and begun again."""

import random
import subprocess
import sys
import time
from pathlib import Path

from fastground import runs


def written(folder):
    """When each shard of a run was written."""
    return {p.name: p.stat().st_mtime_ns for p in (folder / runs.SHARDS).glob("*.parquet")}


def folders(what, below, times, workers=0):
    """The folder of a run that nobody disturbed; then, so many times, that of one which was killed
    and ended when begun again, its finished shards as they were.

    what: the program's argument.
    """
    program = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("killed_runs.py"), what],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    with program:
        assert program.stdout.readline() == "ready\n"

        def ends(folder, seconds):
            program.stdin.write(f"{folder} {seconds} {workers}\n")
            return program.stdout.readline().strip()

        begin = time.monotonic()
        assert ends(below / "whole", 60) == "done"
        duration = time.monotonic() - begin
        yield below / "whole"
        moments, killed, tried = random.Random(0), 0, 0
        while killed < times:
            tried += 1
            assert tried < 4 * times + 20
            folder = below / str(tried)
            if ends(folder, moments.uniform(0, duration)) == "done":
                duration *= 0.9  # the first run took longer than most
                continue
            killed += 1
            kept = written(folder)
            assert ends(folder, 60) == "done"
            assert kept.items() <= written(folder).items()
            yield folder
        program.stdin.close()
