"""label: every implementation against scipy.ndimage.label."""

import fastground as fg
import instruction_sets
import map_cases
import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st

EIGHT = np.ones((3, 3))


def by_scipy(masks):
    """SciPy numbers regions in raster order of their first cell, too."""
    labels = [scipy.ndimage.label(mask, EIGHT)[0] for mask in masks]
    return torch.from_numpy(np.stack(labels)).int()


@given(maps=map_cases.batches(), cut=st.sampled_from(["mean", "mean+eps", "2mean+eps"]))
def test_equals_scipy(implementation, maps, cut):
    result = implementation(fg.label, maps, cut=cut)
    assert result.dtype == torch.int32
    assert torch.equal(result, by_scipy(map_cases.foreground(maps, cut)))


@given(
    grid=st.sampled_from([*map_cases.GRIDS, (64, 63), (40, 70), (256, 3), (2, 256)]),
    density=st.floats(0.02, 0.98),
    seed=st.integers(0, 1000),
)
def test_masks_are_labelled_as_they_are(implementation, grid, density, seed):
    masks = np.random.default_rng(seed).uniform(size=(3, *grid)) < density
    assert torch.equal(implementation(fg.label, torch.from_numpy(masks)), by_scipy(masks))


@pytest.mark.parametrize("density", [0.1, 0.4, 0.6, 0.9])
def test_every_width(density):
    rng = np.random.default_rng(0)
    for width in range(1, 131):
        masks = rng.uniform(size=(4, rng.integers(1, 20), width)) < density
        expected = by_scipy(masks)
        for name in instruction_sets.each():
            assert torch.equal(fg.label(torch.from_numpy(masks)), expected), (name, width)


@pytest.mark.parametrize("grid", [(9, 7), (3, 70)])
def test_masks_of_any_layout(implementation, grid):
    masks = torch.from_numpy(np.random.default_rng(0).uniform(size=(5, *grid)) < 0.5)
    expected = by_scipy(masks.numpy())
    for layout in ("transposed", "strided"):
        wide = map_cases.lay_out(masks.double(), layout)
        strided = torch.empty_strided(wide.shape, wide.stride(), dtype=torch.bool)
        strided.copy_(masks)
        assert torch.equal(implementation(fg.label, strided), expected)
    assert torch.equal(implementation(fg.label, masks.flip(-1)), by_scipy(masks.flip(-1).numpy()))


@given(maps=map_cases.batches())
def test_every_instruction_set_gives_the_same(maps):
    instruction_sets.assert_same_bits(lambda: fg.label(maps, nan="propagate"))


@pytest.mark.parametrize("grid", [(24, 24), (64, 64), (40, 100)])
def test_a_spiral_is_one_region(implementation, grid):
    wall = map_cases.spiral(*grid) > 0
    assert by_scipy(wall[None]).max() == 1
    for mask in (wall, wall[::-1].copy(), wall[:, ::-1].copy(), wall.T.copy()):
        assert torch.equal(
            implementation(fg.label, torch.from_numpy(mask)), torch.tensor(mask).int()
        )


def test_numbers_follow_the_first_cell_in_raster_order(implementation):
    mask = torch.tensor([[0, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0, 1, 0, 1, 1]], dtype=torch.bool)
    expected = [[0, 0, 0, 1, 0], [2, 0, 0, 0, 0], [0, 2, 0, 3, 3]]
    assert implementation(fg.label, mask).tolist() == expected


def test_what_is_no_number_is_refused_or_background(implementation):
    for maps in map_cases.spoilt():
        with pytest.raises(ValueError, match="1 of 3 are not"):
            implementation(fg.label, maps)
        result = implementation(fg.label, maps, nan="propagate")
        assert result.amax((-2, -1)).bool().tolist() == [True, False, True]


def test_an_empty_batch(implementation):
    assert implementation(fg.label, torch.zeros(0, 2, 5, 4)).shape == (0, 2, 5, 4)
