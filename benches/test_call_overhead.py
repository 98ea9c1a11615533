"""What one call costs on one 24 x 24 map, arguments checked and all: `pytest benches`.

The larger benchmarks time throughput; this one times the door. pytest-benchmark prints a row a
test; `--benchmark-compare` sets it beside an earlier run.
"""

import fastground as fg
import pytest
import torch

OPERATIONS = {
    "attention_sum": fg.attention_sum,
    "binarize": fg.binarize,
    "entropy": fg.entropy,
    "head_stats": fg.head_stats,
    "label": fg.label,
    "smooth": fg.smooth,
    "boxes": lambda one: fg.boxes(one[None]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_map(benchmark, name):
    one = torch.rand(24, 24, generator=torch.Generator().manual_seed(0))
    many = one.expand(3, 24, 24)
    result = benchmark(OPERATIONS[name], one)
    batch = OPERATIONS[name](many) if name != "boxes" else fg.boxes(many[:, None])
    pairs = [(result, batch)] if isinstance(result, torch.Tensor) else zip(result, batch)  # noqa: B905
    assert all(torch.equal(a, b[0]) for a, b in pairs)
