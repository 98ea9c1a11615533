"""What one call costs on one attention map: checks, the answer's arrays and the work itself.

    python benches/bench_calls.py

The other benchmarks time throughput; this one times the door, on one thread, for torch tensors and
for NumPy arrays. Most of it is not the work: a tensor is made in half a microsecond. Boxes make
their five when they are read, so that they are timed with none, one and all of them. Ratios are to
the cheapest call, attention_sum.
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
KINDS: dict[str, Callable[[np.ndarray], Any]] = {"torch": torch.from_numpy, "numpy": np.asarray}


def one_map(name: str, size: int = 24) -> np.ndarray:
    """The map that this operation is called with: noise, for boxes of one head."""
    cells = np.random.default_rng(0).random((size, size), np.float32)
    return cells[None] if name.startswith("boxes") else cells


def main() -> None:
    options = harness.parser("Calls on one map.")
    given = options.parse_args()
    rows = []
    for kind, made_of in KINDS.items():
        calls = {name: partial(op, made_of(one_map(name))) for name, op in OPERATIONS.items()}
        rows += harness.compare(kind, calls, items=1, **harness.sampling(given))
    described = "one call on one map of 24 x 24 float32, one thread, CPU time"
    harness.report("calls", described, rows, save=not given.no_save)


if __name__ == "__main__":
    main()
