"""What fastground wants to reach, as ratios against a peer in the same run.

`ours` and `peer` are contenders of one workload of one benchmark, as the benchmarks name them. A
goal without an aim has only a least; `at_most` bounds our time by the peer's instead, and
`within_us`, without a peer, by the clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CALLS = (
    "attention_sum", "binarize", "entropy", "head_stats", "label", "smooth", "boxes",
    "boxes, xyxy read", "boxes, all read",
)  # fmt: skip
NUMBA, OPENCV, SCIPY = "numba, union-find of cells", "OpenCV BBDT, tiled", "SciPy, per map"
CAPTURE, PACKED = "capture", "capture, packed"
HALF = "capture, half of the layers"
PLAIN, EAGER = "plain forwards", "eager, output_attentions"
GROUNDER, WHOLE, PUBLISHED = "Grounder", "Grounder, whole forward", "eager, SciPy"
ROWS, COPY = "attention_rows", "a copy of the keys"
SDPA, SDPA_ROWS = "sdpa, no weights", "sdpa, and attention_rows"
STACK, THREE, PACKED_ROWS = "all heads", "three heads", "all heads, packed"
BFLOAT16 = "all heads, bfloat16"
ONE, SEVEN = "1 expression", "7 expressions"
DISCOVER, ONE_BY_ONE = "discover", "discover, one by one"
DISCOVERED = ("tiny", "LLaVA", "Qwen3.5")
TEN_MINUTES = "RefCOCO in ten minutes"
PLAIN_ENGINE, RAY_ENGINE = "plain engine", "Ray, one actor"


@dataclass(frozen=True)
class Goal:
    benchmark: str
    workload: str
    peer: str = ""
    at_least: float | None = None
    """Times faster than the peer; or less, where not time is compared."""
    aim: float | None = None
    at_most: float | None = None
    """Our time, in the peer's."""
    within_us: float | None = None
    """Our time in microseconds."""
    ours: str = "fastground"
    of: str = "ratio"
    """The field of the rows: "ratio" (of times), "kept_mb" or "peak_mb"."""


def of_capture(benchmark: str, over_plain: float, over_eager: float | None) -> tuple[Goal, ...]:
    """The goals of both models; half of the layers may cost five hundredths more than a half."""
    found = []
    for model in ("LLaVA", "Qwen2.5-VL"):
        one, seven = f"{model}, 1 expression", f"{model}, 7 expressions"
        found += [
            Goal(benchmark, one, PLAIN, at_most=over_plain, ours=CAPTURE),
            Goal(benchmark, one, PLAIN, at_most=0.55, ours=HALF),
            Goal(benchmark, one, EAGER, 300, ours=CAPTURE, of="kept_mb"),
            Goal(benchmark, seven, CAPTURE, 5, ours=PACKED),
        ]
        if over_eager:
            found.append(Goal(benchmark, one, EAGER, over_eager, ours=CAPTURE))
    return tuple(found)


MAPS, CALL = "entropy, 16,384 maps", "entropy, 1,024 maps"
COPIED, ONE_CALL, REPLAY = "copy", "one call", "graph, waited for"
CUPY, KORNIA = "CuPy, labels of one stack", "kornia, union-find"
GPU = (
    # A copy reads and writes: of its bandwidth what only reads has 45 % in 1.11 of its time.
    Goal("gpu", "entropy, attention", COPIED, at_most=1.11),
    Goal("gpu", "entropy, float16", COPIED, at_most=2),
    Goal("gpu", "smooth", COPIED, at_most=1.67),
    Goal("gpu", "boxes, k = 3", COPIED, at_most=1.25),
    Goal("gpu-call", CALL, within_us=25, ours=ONE_CALL),
    Goal("gpu-call", CALL, within_us=8, ours=REPLAY),
    Goal("gpu-peers", MAPS, CUPY, 30),
    Goal("gpu-peers", MAPS, KORNIA, 100),
)

GOALS = (
    Goal("entropy", "attention", NUMBA, 10, 18),
    Goal("entropy", "attention", OPENCV, 17, 28),
    Goal("entropy", "attention", SCIPY, 110, 180),
    Goal("entropy", "noise", NUMBA, 32, 55),
    Goal("entropy", "speckle", NUMBA, 9, 18),
    Goal("entropy", "blob", NUMBA, 6.5, 11),
    Goal("entropy", "attention", NUMBA, 6.5, 10, ours="fastground, avx2"),
    Goal("entropy-types", "float16", NUMBA, 20, 35),
    Goal("entropy-sizes", "14 x 14", NUMBA, 10),
    Goal("entropy-sizes", "27 x 27", NUMBA, 9),
    Goal("entropy-sizes", "36 x 28", NUMBA, 8.5),
    Goal("entropy-sizes", "64 x 64", NUMBA, 4, 10),
    Goal("head-stats", "head_stats", "entropy", at_most=1.05, ours="head_stats"),
    Goal("smooth", "16384 maps", "OpenCV, per map", 9),
    Goal("smooth", "16384 maps", "PyTorch conv2d", 55),
    Goal("boxes", "attention, most cells", "OpenCV, per map", 10, 25),
    Goal("boxes", "attention, most cells", "SciPy, per map", 50, 130),
    Goal("boxes", "attention", "OpenCV, per map", 10, 25),
    Goal("boxes", "attention", "SciPy, per map", 50, 130),
    *of_capture("capture", 1.10, 2.5),
    *of_capture("capture-gpu", 1.03, None),
    Goal("grounder", "LLaVA, 1 expression", PLAIN, at_most=0.55, ours=GROUNDER),
    Goal("grounder-gpu", "LLaVA, 1 expression", PLAIN, at_most=0.55, ours=GROUNDER),
    Goal("rows", STACK, EAGER, 2.5, ours=SDPA_ROWS),
    Goal("rows", BFLOAT16, EAGER, 3.8, ours=SDPA_ROWS),  # with AMX; else sdpa itself is too slow
    Goal("rows-gpu", STACK, COPY, 1.2, 1.5, ours=ROWS),  # 60 and 75 % of the copy's bandwidth
    Goal("rows-gpu", STACK, EAGER, 20, ours=ROWS),
    Goal("rows-gpu", STACK, EAGER, 300, ours=ROWS, of="kept_mb"),
    Goal("rows-gpu", THREE, within_us=15, ours=ROWS),
    Goal("rows-gpu", PACKED_ROWS, ONE, at_most=1.3, ours=SEVEN),
    *(Goal("calls", kind, within_us=5, ours=call) for kind in ("torch", "numpy") for call in CALLS),
    *(Goal("discovery", model, ONE_BY_ONE, 5, ours=DISCOVER) for model in ("tiny", "LLaVA")),
    Goal("discovery", "Qwen3.5", ONE_BY_ONE, 4, ours=DISCOVER),  # its recurrent layers in PyTorch
    *(Goal("discovery", model, PUBLISHED, 15, ours=DISCOVER) for model in ("tiny", "LLaVA")),
    Goal("discovery-engines", "tiny", PLAIN_ENGINE, at_most=1.10, ours=RAY_ENGINE),
    Goal("discovery-gpu", "LLaVA", PUBLISHED, 100, ours=DISCOVER),
    Goal("discovery-gpu", "LLaVA", TEN_MINUTES, at_most=1, ours=DISCOVER),
    *GPU,
)


def rows_of(results: Mapping[str, Any], benchmark: str, workload: str) -> dict[str, dict[str, Any]]:
    """By contender; none if not measured."""
    rows = results.get(benchmark, {}).get("rows", [])
    return {row["contender"]: row for row in rows if row["workload"] == workload}


def times_faster(
    results: Mapping[str, Any],
    benchmark: str,
    workload: str,
    ours: str,
    peer: str,
    of: str = "ratio",
) -> float | None:
    """The peer's time (or memory: `Goal.of`) over ours; None if not measured."""
    numbers = {name: row.get(of) for name, row in rows_of(results, benchmark, workload).items()}
    if not (numbers.get(ours) and numbers.get(peer)):
        return None
    return float(numbers[peer] / numbers[ours])


def reached(results: Mapping[str, Any]) -> Iterator[tuple[Goal, float | None, str]]:
    """Each goal, its ratio or time in these results and what that means, in words."""
    for goal in GOALS:
        if goal.within_us is not None:
            ours = rows_of(results, goal.benchmark, goal.workload).get(goal.ours)
            taken = ours and ours["time_us"]
            word = "reached" if taken and taken <= goal.within_us else "not reached"
            yield goal, taken, word if taken else "not measured"
            continue
        ratio = times_faster(results, goal.benchmark, goal.workload, goal.ours, goal.peer, goal.of)
        if ratio is None:
            yield goal, None, "not measured"
        elif goal.at_most is not None:
            yield goal, 1 / ratio, "reached" if 1 / ratio <= goal.at_most else "not reached"
        elif ratio < (goal.at_least or 0):
            yield goal, ratio, "not reached"
        else:
            yield goal, ratio, "aim reached" if goal.aim and ratio >= goal.aim else "reached"
