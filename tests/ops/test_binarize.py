"""binarize: every implementation against a comparison in NumPy."""

import fastground as fg
import instruction_sets
import map_cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

CUTS = st.sampled_from(["mean", "mean+eps", "2mean+eps"])


@given(maps=map_cases.batches(), cut=CUTS)
def test_equals_numpy(implementation, maps, cut):
    result = implementation(fg.binarize, maps, cut=cut)
    assert result.dtype == torch.bool
    assert torch.equal(result, torch.from_numpy(map_cases.foreground(maps, cut)))


@pytest.mark.parametrize("dtype", map_cases.DTYPES)
def test_a_constant_map_has_no_foreground(implementation, dtype):
    values = [0.1, 1 / 3, 0.7, 1e-7, 3.0, -0.1]
    maps = torch.tensor(values, dtype=dtype)[:, None, None].expand(-1, 23, 25)
    assert not implementation(fg.binarize, maps).any()


def test_what_is_no_number_is_refused_or_background(implementation):
    for maps in map_cases.spoilt():
        with pytest.raises(ValueError, match="1 of 3 are not"):
            implementation(fg.binarize, maps)
        result = implementation(fg.binarize, maps, nan="propagate")
        assert not result[1].any() and result[0].any() and result[2].any()


@given(maps=map_cases.batches(), cut=CUTS)
def test_every_instruction_set_gives_the_same(maps, cut):
    instruction_sets.assert_same_bits(lambda: fg.binarize(maps, cut=cut, nan="propagate"))
