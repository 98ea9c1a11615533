"""From maps to boxes and masks in pixels: geometry by hand, masks against torch and scipy."""

import numpy as np
import pytest
import torch
from fastground import grounding
from fastground.types import AttentionMaps, HeadId, ImageLayout, Recipe
from hypothesis import given, settings
from hypothesis import strategies as st

PLAIN = Recipe(kernel_size=1)
REGIONS = ("hull", "component", "mass", "all")


def layout(grid=(6, 6), image=(40, 60), side=60):
    """A padded square of `side` original pixels, as LLaVA makes it."""
    cell = (side / grid[1], side / grid[0])
    origin = (-float((side - image[1]) // 2), -float((side - image[0]) // 2))
    return ImageLayout(grid, tuple(range(grid[0] * grid[1])), None, image, cell, origin)


def attention(maps, where):
    maps = torch.as_tensor(maps, dtype=torch.float32)
    heads = tuple(HeadId(3, i) for i in range(maps.shape[1]))
    return AttentionMaps(maps, maps.sum((-2, -1)), heads, where)


def block(rows, columns, grid=(6, 6), value=1.0):
    out = np.zeros(grid)
    out[rows, columns] = value
    return out


def test_a_block_of_cells_is_its_box_in_pixels():
    maps = block(slice(2, 4), slice(1, 4))[None, None]
    (found,) = grounding.ground(attention(maps, layout()), ["it"], recipe=PLAIN)
    assert found.found and found.expression == "it"
    assert found.box.tolist() == [10, 10, 40, 30]
    assert found.mask.shape == (40, 60) and found.mask.dtype == torch.bool
    assert found.mass == pytest.approx(1) and found.map.equal(torch.tensor(maps[0, 0]).float())
    assert found.mask[11:29, 11:39].all()
    assert not found.mask[:10].any() and not found.mask[:, 40:].any()


def test_padding_belongs_to_no_region():
    maps = (block(0, slice(0, 6), value=3.0) + block(slice(2, 4), slice(1, 3)))[None, None]
    exclude, include = (
        grounding.ground(attention(maps, layout()), ["it"], recipe=PLAIN.replace(padding=p))[0]
        for p in ("exclude", "include")
    )
    assert exclude.box.tolist() == [10, 10, 30, 30] and exclude.mask.any()
    assert include.box.tolist() == [0, 0, 60, 0]  # all padding: clipped to nothing
    assert not include.mask.any()


def test_nothing_found_is_an_empty_box_and_mask():
    where = layout(image=(40, 50))
    constant, *_, good = grounding.ground(
        attention(
            np.stack([np.ones((2, 6, 6)), np.random.default_rng(0).random((2, 6, 6))]), where
        ),
        ["a", "b"],
    )
    assert not constant.found and constant.box.tolist() == [0, 0, 0, 0]
    assert not constant.mask.any()
    assert good.found and good.mask.any()


def test_each_expression_may_have_its_own_heads():
    maps = torch.rand(2, 5, 6, 6, generator=torch.Generator().manual_seed(1))
    whole = attention(maps, layout())
    chosen = torch.tensor([[4, 0], [2, 3]])
    found = grounding.ground(whole, ["a", "b"], chosen=chosen)
    for i, one in enumerate(found):
        heads = [whole.heads[j] for j in chosen[i]]
        alone = AttentionMaps(maps[i : i + 1], whole.sums[i : i + 1], whole.heads, whole.layout)
        (expected,) = grounding.ground(alone.select(heads), ["x"])
        assert one.box.equal(expected.box) and one.heads == expected.heads
        assert one.maps.equal(expected.maps) and one.score == expected.score


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.sampled_from(REGIONS), st.sampled_from([(40, 60), (33, 21), (60, 60)])
)
def test_the_mask_never_leaves_the_box(seed, region, image):
    maps = np.random.default_rng(seed).random((2, 2, 7, 7)) ** 3
    where = layout((7, 7), image, max(image))
    recipe = Recipe(region=region, sigma=0.5)
    for one in grounding.ground(attention(maps, where), ["a", "b"], recipe=recipe):
        y, x = one.mask.nonzero().T + 0.5
        x1, y1, x2, y2 = one.box.tolist()
        assert one.found
        assert ((x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)).all()
        assert 0 <= x1 <= x2 <= image[1] and 0 <= y1 <= y2 <= image[0]


def test_peaks_are_cell_centres_and_never_padding():
    combined = torch.zeros(2, 6, 6)
    combined[0, 3, 4], combined[1, 0, 0], combined[1, 1, 2] = 1, 9, 2
    points = grounding.peaks(combined, layout(), Recipe())
    assert points.tolist() == [[45, 25], [25, 5]]
    points = grounding.peaks(combined, layout(), Recipe(padding="include"))
    assert points.tolist() == [[45, 25], [5, -5]]


@pytest.mark.parametrize("image", [(40, 60), (37, 23), (5, 60)])
def test_coverage_is_the_area_of_a_cell_under_the_mask(image):
    side = max(image)
    where = layout((5, 5), image, side)
    mask = torch.rand(image, generator=torch.Generator().manual_seed(3)) > 0.5
    square = np.zeros((side, side))
    left, top = (int(-o) for o in where.origin)
    square[top : top + image[0], left : left + image[1]] = mask.numpy()
    fine = np.kron(square, np.ones((5, 5)))  # each cell is now side x side
    expected = fine.reshape(5, side, 5, side).mean((1, 3))
    found = grounding.cell_coverage(mask, where).numpy()
    assert np.allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match="masks must be"):
        grounding.cell_coverage(mask.T[:-1], where)


def ceiling(masks, where, recipe):
    """The boxes that perfect maps would give."""
    maps = grounding.cell_coverage(masks, where)[..., None, :, :]
    return grounding.boxes_in_pixels(grounding.boxes_on_grid(maps, where, recipe), where)


def test_the_ceiling_without_smoothing_is_the_aligned_mask_itself():
    mask = torch.zeros(2, 40, 60, dtype=torch.bool)
    mask[0, 10:30, 20:50] = True
    mask[1, 0:7, 0:60] = True
    boxes = ceiling(mask, layout(), PLAIN)
    assert boxes[0].tolist() == [20, 10, 50, 30]
    assert boxes[1].tolist() == [0, 0, 60, 10]
    one_cell = torch.zeros(60, 60, dtype=torch.bool)
    one_cell[30:35, 30:35] = True
    fine = layout((12, 12), (60, 60))
    assert ceiling(one_cell, fine, Recipe()).tolist() == [20, 20, 45, 45]


def test_bad_input_is_said():
    maps = attention(np.random.default_rng(0).random((2, 1, 6, 6)), layout())
    with pytest.raises(ValueError, match="one a map group, 2, but got 1"):
        grounding.ground(maps, ["a"])
    with pytest.raises(ValueError, match="layout knows no image"):
        grounding.ground(attention(maps.maps, ImageLayout((6, 6), tuple(range(36)))), ["a", "b"])
    with pytest.raises(ValueError, match=r"NaN|finite"):
        grounding.ground(attention(maps.maps * torch.nan, layout()), ["a", "b"])
