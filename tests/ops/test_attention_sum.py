"""attention_sum: every implementation against exact summation."""

import math

import fastground as fg
import map_cases
import pytest
import torch
from hypothesis import given


@given(maps=map_cases.batches(sizes=("plain", "sub-normal")))
def test_equals_exact_summation(implementation, maps):
    exact = [math.fsum(cells) for cells in maps.double().flatten(1).tolist()]
    result = implementation(fg.attention_sum, maps)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.tensor(exact), rtol=2e-7, atol=1e-14)


def test_any_batch_shape(implementation):
    maps = torch.rand(2, 3, 4, 5)
    assert implementation(fg.attention_sum, maps).shape == (2, 3)
    assert implementation(fg.attention_sum, maps[0, 0]).shape == ()
    assert implementation(fg.attention_sum, maps[:0]).shape == (0, 3)


def test_what_is_no_number_is_refused_or_nan(implementation):
    for maps in map_cases.spoilt():
        with pytest.raises(ValueError, match="1 of 3 are not, the first at 1"):
            implementation(fg.attention_sum, maps)
        result = implementation(fg.attention_sum, maps, nan="propagate")
        assert result.isnan().tolist() == [False, True, False]


def test_a_sum_beyond_float32_is_refused(implementation):
    with pytest.raises(ValueError, match="sums fit the result"):
        implementation(fg.attention_sum, torch.full((2, 2), 3e38))
