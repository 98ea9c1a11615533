"""Writes the README's tables of speed from one machine's results, and prints the goals beside them.

    python benches/readme_tables.py [benches/results/MACHINE.json]

Without an argument the machine measured last. The section lies between two HTML comments of
README.md; nobody edits it by hand, and a test holds it to the results file that it names. What a
results file lacks is left out of the tables, and among the goals is "not measured".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import goals
from goals import (
    CAPTURE,
    DISCOVER,
    DISCOVERED,
    EAGER,
    GROUNDER,
    HALF,
    NUMBA,
    ONE_BY_ONE,
    OPENCV,
    PACKED,
    PLAIN,
    PUBLISHED,
    SCIPY,
    rows_of,
)  # fmt: skip
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- speed: by benches/readme_tables.py -->\n", "<!-- end of speed -->\n"

Results = Mapping[str, Any]
STACK = "SciPy, one stack"
BY_TORCH = f"{NUMBA}, float32 by torch"
OPERATIONS = (  # said, benchmark, workload, ours, its fast peer, one map at a time
    ("float16", "entropy-types", "float16", "fastground", NUMBA, SCIPY),
    ("float16, peer's widened by torch", "entropy-types", "float16", "fastground", BY_TORCH, ""),
    ("bfloat16, peer's widened by torch", "entropy-types", "bfloat16", "fastground", BY_TORCH, ""),
    ("16,384 maps", "entropy-large", "16384 maps", "fastground", NUMBA, SCIPY),
    ("14 x 14", "entropy-sizes", "14 x 14", "fastground", NUMBA, SCIPY),
    ("27 x 27", "entropy-sizes", "27 x 27", "fastground", NUMBA, SCIPY),
    ("36 x 28", "entropy-sizes", "36 x 28", "fastground", NUMBA, SCIPY),
    ("64 x 64", "entropy-sizes", "64 x 64", "fastground", NUMBA, SCIPY),
    ("AVX2 only", "entropy", "attention", "fastground, avx2", NUMBA, SCIPY),
    ("x86-64-v2 (SSE4.2)", "entropy", "attention", "fastground, portable", NUMBA, SCIPY),
)
CAPTURES = (  # said, expressions, ours, over
    ("forward with capture, over a plain forward", "1 expression", CAPTURE, PLAIN),
    ("ended after half of the layers, over a plain forward", "1 expression", HALF, PLAIN),
    ("eager with `output_attentions`, over a plain forward", "1 expression", EAGER, PLAIN),
    ("7 expressions captured packed; one by one", "7 expressions", CAPTURE, PACKED),
    ("7 expressions packed; eager with `output_attentions`, one by one", "7 expressions",
     EAGER, PACKED),
)  # fmt: skip


def times(ratio: float | None) -> str:
    """A ratio as a person reads it."""
    if ratio is None:
        return ""
    return f"{ratio:.{2 if ratio < 2 else 1 if ratio < 10 else 0}f} x"


def duration(time_us: float) -> str:
    return f"{1e3 * time_us:.0f} ns" if time_us < 1 else f"{time_us:.1f} µs"


def span(calls: Mapping[str, Mapping[str, Any]]) -> str:
    """From the cheapest call to the dearest."""
    first, *_, last = sorted(calls.values(), key=lambda row: row["time_us"])
    ends = (f"{row['contender']} {duration(row['time_us'])}" for row in (first, last))
    return " to ".join(ends)


def section(results: Results, name: str) -> str:
    """The README's words and tables for these results, the file's name among them."""
    card = results["entropy"]["machine"]
    lines = [
        f"One core of this processor: {card['cpu']}, by its {card['kernels']} kernels; no GPU. "
        "Times are a map's; x is how much longer the",
        f"others take in the same run. `make bench` writes `benches/results/{name}`, and from it "
        "these tables.",
        "",
    ]
    tables = (families, operations, regions, captures, groundings, discoveries, rankings)
    for table in tables:
        if rows := list(table(results)):
            lines += [*rows, ""]
    return re.sub(r"(?<= )x(?=[ ;])", "\N{MULTIPLICATION SIGN}", "\n".join(lines))


def families(results: Results) -> Iterator[str]:
    heads = ("numba", "OpenCV, tiled", "SciPy, one stack", "SciPy, per map")
    yield "| entropy, 24 x 24 float32, 1,024 maps | fastground | " + " | ".join(heads) + " |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for family in ("attention", "noise", "blob", "speckle"):
        rows = rows_of(results, "entropy", family)
        others = [times(rows[peer]["ratio"]) for peer in (NUMBA, OPENCV, STACK, SCIPY)]
        yield f"| {family} | {duration(rows['fastground']['time_us'])} | {' | '.join(others)} |"


def operations(results: Results) -> Iterator[str]:
    yield "| entropy of attention-like maps | fastground | numba | SciPy, per map |"
    yield "| --- | ---: | ---: | ---: |"
    for said, benchmark, workload, ours, fast, slow in OPERATIONS:
        if ours not in (rows := rows_of(results, benchmark, workload)):
            continue
        ratios = (
            goals.times_faster(results, benchmark, workload, ours, peer) for peer in (fast, slow)
        )
        cells = [duration(rows[ours]["time_us"]), *map(times, ratios)]
        yield f"| {said} | {' | '.join(cells)} |"


def regions(results: Results) -> Iterator[str]:
    """What is not entropy alone, against all of its peers."""
    yield "| 24 x 24 float32, attention-like maps | fastground | others |"
    yield "| --- | ---: | --- |"
    if both := rows_of(results, "head-stats", "head_stats"):
        sums = times(both["NumPy, sum in float64"]["ratio"] / both["attention_sum"]["ratio"])
        alone = times(both["head_stats"]["ratio"])
        yield f"| attention sum | {duration(both['attention_sum']['time_us'])} | NumPy {sums} |"
        both_time = duration(both["head_stats"]["time_us"])
        yield f"| both, in one pass | {both_time} | {alone} the time of the entropy alone |"
    if two := rows_of(results, "entropy-threads", "2 threads"):
        one = times(two["fastground, 1 thread"]["ratio"])
        peer = times(two[f"{NUMBA}, 2 threads"]["ratio"])
        yield (
            "| entropy, two threads, 16,384 maps, float16 "
            f"| {duration(two['fastground, 2 threads']['time_us'])} "
            f"| one thread {one}; numba on two {peer} |"
        )
    tensors, numpy = (rows_of(results, "calls", kind) for kind in ("torch", "numpy"))
    if tensors:
        yield f"| one map a call, tensors | {span(tensors)} | NumPy arrays {span(numpy)} |"
    told = [("boxes: cut, regions, largest hull", "boxes", "attention")]
    told += [("boxes: region with the most cells", "boxes", "attention, most cells")]
    told += [("smooth, 16,384 maps, `out=`", "smooth", "16384 maps")]
    for said, benchmark, workload in told:
        if not (rows := rows_of(results, benchmark, workload)):
            continue
        others = [
            f"{peer} {times(row['ratio'])}"
            for peer, row in rows.items()
            if not peer.startswith(("fastground", "floor"))
        ]
        others += [
            f"a copy of the maps {times(row['ratio'])}"
            for peer, row in rows.items()
            if peer.startswith("floor")
        ]
        yield f"| {said} | {duration(rows['fastground']['time_us'])} | {'; '.join(others)} |"


def captures(results: Results) -> Iterator[str]:
    """Times and attention bytes of both models."""
    models = ("LLaVA", "Qwen2.5-VL")
    yield f"| 8 layers, 576 image tokens | {' | '.join(models)} |"
    yield "| --- | ---: | ---: |"
    for said, workload, ours, over in CAPTURES:
        ratios = [
            goals.times_faster(results, "capture", f"{model}, {workload}", over, ours)
            for model in models
        ]
        if None not in ratios:
            yield f"| {said} | {' | '.join(map(times, ratios))} |"
    kept = [
        goals.times_faster(results, "capture", f"{m}, 1 expression", CAPTURE, EAGER, "kept_mb")
        for m in models
    ]
    if None not in kept:
        yield f"| attention bytes kept: eager, over capture | {' | '.join(map(times, kept))} |"


def groundings(results: Results) -> Iterator[str]:
    """From an image to its boxes, and what plain forwards and the published way take."""
    head = "| from image to boxes, three heads | expressions/s | plain forwards | published way |"
    lines = [head, "| --- | ---: | ---: | ---: |"]
    for model in ("tiny", "LLaVA"):
        for workload in (f"{model}, 1 expression", f"{model}, 7 expressions"):
            rows = rows_of(results, "grounder", workload)
            if not rows:
                return
            ours = rows[GROUNDER]
            others = [times(rows[way]["ratio"] / ours["ratio"]) for way in (PLAIN, PUBLISHED)]
            lines.append(f"| {workload} | {ours['expressions_per_s']:.3g} | {' | '.join(others)} |")
    yield from lines


def discoveries(results: Results) -> Iterator[str]:
    """Discovery from JPEG files to the table, and what the other ways take."""
    measured = {model: rows_of(results, "discovery", model) for model in DISCOVERED}
    measured = {model: rows for model, rows in measured.items() if rows}
    if not measured:
        return
    yield "| discovery, 7 expressions an image | samples/s | maps/s | one by one | published way |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for model, rows in measured.items():
        ours = rows[DISCOVER]
        others = [times(rows[way]["ratio"]) for way in (ONE_BY_ONE, PUBLISHED)]
        rates = f"{ours['expressions_per_s']:.3g} | {ours['maps_per_s']:,.0f}"
        yield f"| {model} | {rates} | {' | '.join(others)} |"


def rankings(results: Results) -> Iterator[str]:
    """Heads from a run's shards, and every ablation, at several sizes."""
    rows = results.get("ranking", {"rows": ()})["rows"]
    sizes = dict.fromkeys(row["workload"] for row in rows)
    if not sizes:
        return
    yield "| heads from a run's shards, 1,024 a sample | ranking | with all ablations | memory |"
    yield "| --- | ---: | ---: | ---: |"
    for workload in sizes:
        samples = int(workload.split()[0])
        found = rows_of(results, "ranking", workload)
        seconds = [f"{row['time_us'] * samples / 1e6:.3g} s" for row in found.values()]
        most = max(row["peak_mb"] for row in found.values())
        yield f"| {samples:,} samples | {' | '.join(seconds)} | {most:.0f} MB |"


def named_in(readme: str) -> str:
    """The results file that the README's section names."""
    _, written, _ = split(readme)
    found = re.search(r"`benches/results/([\w.-]+\.json)`", written)
    return found[1] if found else ""


def split(readme: str, begin: str = BEGIN, end: str = END) -> tuple[str, str, str]:
    """Before the section, the section, after it."""
    before, found, rest = readme.partition(begin)
    written, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"README.md: needs the lines {begin.strip()} and {end.strip()}")
    return before + begin, written, end + after


def newest() -> Path:
    """The results file with the latest run, of those that the tables can be written from."""
    found = {
        path: json.loads(path.read_text())
        for path in (ROOT / "benches" / "results").glob("*-cores.json")
    }
    files = {
        path: max(run["date"] for run in runs.values())
        for path, runs in found.items()
        if "entropy" in runs
    }
    if not files:
        raise SystemExit("benches/results: no results yet; `make bench` writes them")
    return max(files, key=lambda path: files[path])


def print_goals(results: Results, only: str | None = None) -> None:
    """Those of all benchmarks, or of one, beside what these results reach."""
    table = Table(
        title="goals, times faster than the peer (in italics: at most, of its time or in µs)"
    )
    for column in ("operation", "case", "ours", "peer"):
        table.add_column(column)
    for column in ("at least", "aim", "here", ""):
        table.add_column(column, justify="right")
    for goal, ratio, word in goals.reached(results):
        if only not in (None, goal.benchmark):
            continue
        most = f"{goal.within_us:g} µs" if goal.within_us else goal.at_most
        least = f"[i]{most}[/i]" if most else f"{goal.at_least:g}"
        here = "" if ratio is None else f"{ratio:.3g}"
        ours = goal.ours if goal.of == "ratio" else f"{goal.ours}: {goal.of}"
        names = (goal.benchmark, goal.workload, ours, goal.peer)
        table.add_row(*names, least, f"{goal.aim:g}" if goal.aim else "", here, word)
    Console(width=None if sys.stdout.isatty() else 130).print(table, highlight=False)


def main() -> None:
    options = argparse.ArgumentParser(description="The README's tables of speed, and the goals.")
    options.add_argument("results", nargs="?", type=Path, help="default: the machine run last")
    options.add_argument("--no-save", action="store_true", help="print only, leave README.md")
    given = options.parse_args()
    path = given.results or newest()
    results = json.loads(path.read_text())
    print_goals(results)
    if not given.no_save:
        before, _, after = split(README.read_text(encoding="utf-8"))
        README.write_text(before + section(results, path.name) + after, encoding="utf-8")
        print(f"written to {README.name} from {path}")


if __name__ == "__main__":
    main()
