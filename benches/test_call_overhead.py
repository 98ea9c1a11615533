"""What one call costs on one 24 x 24 map, arguments checked and all: `pytest benches`.

The larger benchmarks time throughput; this one times the door, for torch tensors and for NumPy
arrays. pytest-benchmark prints a row a test; `--benchmark-compare` sets it beside an earlier run.
"""

import fastground as fg
import numpy as np
import pytest
import torch

OPERATIONS = {
    "attention_sum": fg.attention_sum,
    "binarize": fg.binarize,
    "entropy": fg.entropy,
    "head_stats": fg.head_stats,
    "label": fg.label,
    "smooth": fg.smooth,
    "boxes": fg.boxes,
}


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray], ids=["torch", "numpy"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_one_map(benchmark, name, kind):
    one = np.random.default_rng(0).random((24, 24), np.float32)
    many = np.repeat(one[None], 3, axis=0)
    if name == "boxes":
        one, many = one[None], many[:, None]
    result = benchmark(OPERATIONS[name], kind(one))
    batch = OPERATIONS[name](kind(many))
    pairs = zip(result, batch, strict=True) if isinstance(batch, tuple) else [(result, batch)]
    for alone, together in pairs:
        assert isinstance(alone, type(kind(one)))
        assert np.array_equal(np.asarray(alone), np.asarray(together[0]))
