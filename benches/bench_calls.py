"""What one call costs on one attention map, and how much of that is not the map's own work.

    python benches/bench_calls.py

The other benchmarks time throughput; this one times the door, on one thread, for torch tensors and
for NumPy arrays: checks, the answer's arrays and the work itself. What the work costs says the same
map a thousand times over, in one call; the overhead is what one call costs beyond that. Boxes are
timed with none, one and all of their five parts read, so that nothing put off stays unseen. Ratios
are to the cheapest call, attention_sum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import fastground as fg
import harness
import numpy as np
import torch

OPERATIONS: dict[str, Callable[..., Any]] = {
    "attention_sum": fg.attention_sum,
    "binarize": fg.binarize,
    "entropy": fg.entropy,
    "head_stats": fg.head_stats,
    "label": fg.label,
    "smooth": fg.smooth,
    "boxes": fg.boxes,
    "boxes, xyxy read": lambda maps: fg.boxes(maps).xyxy,
    "boxes, all read": lambda maps: tuple(fg.boxes(maps)),
}
BATCH = 1024
KINDS: dict[str, Callable[[np.ndarray], Any]] = {"torch": torch.from_numpy, "numpy": np.asarray}


def one_map(name: str, size: int = 24) -> np.ndarray:
    """The map that this operation is called with: noise, for boxes of one head."""
    cells = np.random.default_rng(0).random((size, size), np.float32)
    return cells[None] if name.startswith("boxes") else cells


def many_maps(name: str) -> np.ndarray:
    """As many of them as a batch has."""
    one = one_map(name)
    return np.ascontiguousarray(np.broadcast_to(one, (BATCH, *one.shape)))


def main() -> None:
    options = harness.parser("Calls on one map.")
    given = options.parse_args()
    rows = []
    for kind, made_of in KINDS.items():
        calls = {name: partial(op, made_of(one_map(name))) for name, op in OPERATIONS.items()}
        rows += harness.compare(kind, calls, items=1, **harness.sampling(given))
        many = {name: partial(op, made_of(many_maps(name))) for name, op in OPERATIONS.items()}
        workload = f"{kind}, one of many"
        rows += harness.compare(workload, many, items=BATCH, **harness.sampling(given))
    described = (
        f"one call on one map of 24 x 24 float32, and a map's share of a call on {BATCH:,} of it; "
        "one thread, CPU time"
    )
    harness.report("calls", described, rows, save=not given.no_save)


if __name__ == "__main__":
    main()
