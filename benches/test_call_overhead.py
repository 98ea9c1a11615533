"""The calls of bench_calls.py under pytest-benchmark: `pytest benches`.

It prints a row a test; `--benchmark-compare` sets it beside an earlier run. Here one map is also
held to the batch that it is part of.
"""

import bench_calls
import numpy as np
import pytest
import torch


@pytest.mark.parametrize("kind", bench_calls.KINDS)
@pytest.mark.parametrize("name", bench_calls.OPERATIONS)
def test_one_map(benchmark, name, kind):
    operation, made_of = bench_calls.OPERATIONS[name], bench_calls.KINDS[kind]
    one = bench_calls.one_map(name)
    result = benchmark(operation, made_of(one))
    batch = operation(made_of(np.repeat(one[None], 3, axis=0)))
    single = isinstance(batch, torch.Tensor | np.ndarray)
    pairs = [(result, batch)] if single else zip(result, batch, strict=True)
    for alone, together in pairs:
        assert isinstance(alone, type(made_of(one)))
        assert np.array_equal(np.asarray(alone), np.asarray(together[0]))
