"""Contenders side by side in one run: alternating repeats, medians, ratios, the machine's card.

Inside each repeat every contender runs once, in a new shuffled order, so that whatever disturbs the
machine disturbs all. The ratio to the first contender is taken repeat by repeat, then the median.
People get a table; benches/results/<machine>.json keeps the newest run of every benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from fastground.strict_json import dumps
from rich.console import Console
from rich.table import Table

FLOOR = "floor: one plain read"
RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch", "numpy", "scipy", "opencv-python-headless", "numba", "transformers", "triton",
    "cupy-cuda12x", "cupy-cuda13x", "kornia",
)  # fmt: skip


def _when_done() -> float:
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


CLOCKS: dict[str, Callable[[], float]] = {
    "cpu": time.process_time,
    "wall": time.perf_counter,
    "cuda": _when_done,
}


@dataclass
class Row:
    """One contender on one workload."""

    workload: str
    contender: str
    time_us: float
    """Median microseconds an item."""
    spread: float
    """Half the distance between the quartiles, over the median."""
    ratio: float
    """Median of this contender's time over the first contender's, repeat by repeat."""
    error: str
    """What its answers are off by, in words or as a number."""
    floor: float | None = None
    """The time of one plain read of the input over this contender's: 1 is the speed of memory."""
    kept_mb: float | None = None
    """Megabytes that the caller holds until it has its answer."""
    peak_mb: float | None = None
    """Most megabytes in use during a call, above those before it."""
    images_per_s: float | None = None
    expressions_per_s: float | None = None
    maps_per_s: float | None = None


FURTHER = {
    "floor": ("of floor", "{:.1%}"),
    "kept_mb": ("MB kept", "{:.3g}"),
    "peak_mb": ("MB peak", "{:.3g}"),
    "images_per_s": ("images/s", "{:.3g}"),
    "expressions_per_s": ("expr./s", "{:.3g}"),
    "maps_per_s": ("maps/s", "{:,.0f}"),
}
"""What some rows have beside their times: a column's title and how its numbers are said."""


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--repeats", type=int, default=9)
    options.add_argument("--min-time-ms", type=float, default=20, help="least time of one sample")
    options.add_argument("--no-save", action="store_true", help="print only, keep no JSON")
    return options


def sampling(given: argparse.Namespace) -> dict[str, Any]:
    """What `compare` takes of these options."""
    return {"repeats": given.repeats, "min_time_ms": given.min_time_ms}


def compare(
    workload: str,
    contenders: Mapping[str, Callable[[], object]],
    *,
    items: int,
    errors: Mapping[str, str] | None = None,
    repeats: int = 9,
    min_time_ms: float = 20,
    clock: str = "cpu",
    seed: int = 0,
    floor: np.ndarray | None = None,
    warm: bool = True,
) -> list[Row]:
    """Time the contenders against each other.

    Args:
        workload: what they work on, in a word.
        contenders: by name; the first is the one that the ratios refer to.
        items: how many items one call handles; times are given for one.
        errors: by contender, what its answers are off by.
        repeats: samples of each contender.
        min_time_ms: a sample repeats a short call until about this time has passed.
        clock: "cpu" (of this process, for one thread), "wall", or "cuda" (wall, the GPU done).
        seed: of the order inside each repeat.
        floor: the input, if the time to read it once, on one thread, is to stand beside.
        warm: whether calls go before those that count; if not, a sample is one call.

    Returns:
        One row a contender, in their order; the floor last.
    """
    now = CLOCKS[clock]
    if clock == "cpu":
        one_thread()
    if floor is not None:
        contenders = {**contenders, FLOOR: plain_read(floor)}
    calls = dict.fromkeys(contenders, 1)
    for name, call in contenders.items() if warm else ():
        call()  # compiles, allocates, fills caches
        begin = now()
        call()
        calls[name] = max(1, round(min_time_ms / 1e3 / max(now() - begin, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order, shuffled = list(contenders), random.Random(seed)
    for _ in range(repeats):
        shuffled.shuffle(order)
        for name in order:
            call, count = contenders[name], calls[name]
            begin = now()
            for _ in range(count):
                call()
            times[name].append((now() - begin) / count / items * 1e6)
    first = times[next(iter(contenders))]
    rows = []
    for name, samples in times.items():
        median = statistics.median(samples)
        low, _, high = statistics.quantiles(samples, n=4) if repeats > 1 else (median,) * 3
        ratio = statistics.median(t / f for t, f in zip(samples, first, strict=True))
        error = (errors or {}).get(name, "")
        rows.append(Row(workload, name, median, (high - low) / 2 / median, ratio, error))
    if floor is not None:
        for row in rows:
            row.floor = rows[-1].ratio / row.ratio
        rows[-1].error = f"{floor.nbytes / items / rows[-1].time_us / 1e3:.1f} GB/s"
    return rows


def one_thread() -> None:
    """No contender starts threads of its own."""
    import cv2
    import fastground
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    fastground.set_num_threads(1)


def plain_read(array: np.ndarray) -> Callable[[], object]:
    """A call that reads the array once, as fast as this machine's vector loads go."""
    words = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    words = words[: len(words) // 8 * 8].view(np.uint64)
    read = _reader()
    return lambda: read(words)


@cache
def _reader() -> Callable[[np.ndarray], int]:
    import numba

    @numba.njit
    def read(words):  # type: ignore[no-untyped-def]
        seen = np.uint64(0)
        for i in range(len(words)):  # by index: an iterator is not vectorized
            seen ^= words[i]
        return seen

    return read


def kept(
    name: str, description: str, parts: Iterable[list[Row]], *, save: bool = True
) -> list[Row]:
    """All rows, written to the results as each part comes: a run that is cut short leaves them."""
    rows: list[Row] = []
    for part in parts:
        rows += part
        if save:
            _save(name, description, machine(), rows, threads=1)
    return rows


def report(
    name: str, description: str, rows: list[Row], *, save: bool = True, threads: int = 1
) -> None:
    """Print the rows for people, and keep them under the benchmark's name for machines."""
    card = machine()
    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table()
    for column in ("workload", "contender"):
        table.add_column(column)
    further = {
        field: title
        for field, (title, _) in FURTHER.items()
        if any(getattr(row, field) is not None for row in rows)
    }
    for column in ("us/item", "±", "ratio", "error", *further.values()):
        table.add_column(column, justify="right")
    workload = rows[0].workload
    for row in rows:
        if row.workload != workload:
            table.add_section()
            workload = row.workload
        numbers = (f"{row.time_us:.4g}", f"{row.spread:.0%}", f"{row.ratio:.3g}", row.error)
        table.add_row(
            row.workload, row.contender, *numbers, *(_said(row, field) for field in further)
        )
    console.print(f"{name}: {description}", table, _caption(card), highlight=False)
    if save:
        console.print(f"written to {_save(name, description, card, rows, threads)}")


def _said(row: Row, field: str) -> str:
    value = getattr(row, field)
    return "" if value is None else FURTHER[field][1].format(value)


def machine() -> dict[str, str]:
    """The processor, the accelerator if any, and the versions that a number belongs to."""
    import torch
    from fastground import _core

    card = {
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "kernels": _core.build_info()["kernels"],
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        card["gpu"] = torch.cuda.get_device_name()
        card["cuda"] = f"{torch.version.cuda}; kernels {_core.build_info()['cuda']}"
    for package in ("fastground", *PACKAGES):
        try:
            card[package] = version(package)
        except PackageNotFoundError:
            continue
    return card


def _cpu() -> str:
    lines = []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _caption(card: dict[str, str]) -> str:
    versions = ", ".join(f"{p} {card[p]}" for p in PACKAGES if p in card)
    return f"{card.get('gpu', card['cpu'])}, {card['cores']} cores, {card['kernels']}; {versions}"


@cache
def commit() -> str:
    """That of the checkout, before results were written into it."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=RESULTS.parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # no git here, which must not cost what is measured
        return "unknown"
    return run.stdout.strip() or "unknown"


def _save(name: str, description: str, card: dict[str, str], rows: list[Row], threads: int) -> Path:
    slug = re.sub(r"\((?:r|tm)\)|processor|cpu|@.*", "", card.get("gpu", card["cpu"]).lower())
    slug = "-".join(re.findall(r"[a-z0-9]+", slug))
    path = RESULTS / f"{slug}-{card['cores']}-cores.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[name] = {
        "description": description,
        "machine": card,
        "threads": threads,
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(dumps(dict(sorted(kept.items()))) + "\n")
    part.replace(path)
    return path
