"""boxes: every implementation against SciPy's regions and OpenCV's hulls."""

import copy
import gc
import math
import pickle

import cv2
import fastground as fg
import instruction_sets
import map_cases
import numpy as np
import pytest
import scipy.ndimage
import torch
from fastground import reference
from fastground.arguments import dtype_name
from hypothesis import given
from hypothesis import strategies as st

GRIDS = [(1, 1), (1, 9), (8, 1), (3, 5), (7, 7), (14, 14), (24, 24), (12, 30), (5, 66)]
REGIONS = ["hull", "component", "mass", "all"]
PLAIN = {"kernel_size": 1}  # the combined map is the sum of the maps


def corners_of(part):
    return np.concatenate([np.argwhere(part) + offset for offset in np.ndindex(2, 2)])[:, ::-1]


def inside_hull(hull, grid):
    """Cells whose centre is in the hull, by OpenCV's point test."""
    test = [
        [cv2.pointPolygonTest(hull, (j + 0.5, i + 0.5), False) >= 0 for j in range(grid[1])]
        for i in range(grid[0])
    ]
    return np.array(test)


def by_opencv(combined, valid, region):
    """x1, y1, x2, y2, area, mass, score of one combined map, or None without foreground."""
    foreground = valid & (combined > combined[valid].mean() if valid.any() else False)
    labels, count = scipy.ndimage.label(foreground, np.ones((3, 3)))
    if count == 0:
        return None
    parts = [labels == i for i in range(1, count + 1)] if region != "all" else [labels > 0]
    hulls = [cv2.convexHull(corners_of(part).astype(np.int32)) for part in parts]
    sums = [combined[part].sum() for part in parts]
    sizes = {
        "hull": [cv2.contourArea(hull) for hull in hulls],
        "mass": sums,
    }.get(region, [part.sum() for part in parts])
    best = max(range(len(parts)), key=lambda i: (sizes[i], sums[i], -i))
    part = inside_hull(hulls[best], combined.shape) if region == "hull" else parts[best]
    inside, outside = combined[part & valid], combined[~part & valid]
    x1, y1 = corners_of(parts[best]).min(0)
    x2, y2 = corners_of(parts[best]).max(0)
    area = sizes[best] if region == "hull" else parts[best].sum()
    with np.errstate(divide="ignore"):
        score = inside.mean() / outside.mean() if outside.size else math.inf
    return x1, y1, x2, y2, area, inside.sum() / combined[valid].sum(), score


def assert_like_opencv(boxes, combined, valid, region):
    for i, cells in enumerate(combined.double().numpy()):
        expected = by_opencv(cells, valid, region)
        assert bool(boxes.found[i]) == (expected is not None)
        numbers = torch.cat([boxes.xyxy[i], torch.stack(boxes[1:4])[:, i]]).tolist()
        assert numbers == pytest.approx(expected or [0] * 7, rel=1e-5)


NONNEGATIVE = map_cases.batches(grids=GRIDS, sizes=("plain",)).filter(
    lambda m: bool((m >= 0).all())
)


@pytest.mark.parametrize("region", REGIONS)
@given(maps=NONNEGATIVE)
def test_equals_opencv(implementation, region, maps):
    recipe = fg.Recipe(region=region, **PLAIN)
    boxes = implementation(fg.boxes, maps[:, None], recipe=recipe)
    valid = np.ones(maps.shape[-2:], dtype=bool)
    assert_like_opencv(boxes, maps.float(), valid, region)


@pytest.mark.parametrize("region", REGIONS)
@given(maps=NONNEGATIVE, seed=st.integers(0, 100))
def test_only_valid_cells_count(implementation, region, maps, seed):
    valid = np.random.default_rng(seed).uniform(size=maps.shape[-2:]) < 0.7
    recipe = fg.Recipe(region=region, **PLAIN)
    boxes = implementation(fg.boxes, maps[:, None], recipe=recipe, valid=torch.from_numpy(valid))
    assert_like_opencv(boxes, maps.float(), valid, region)


@pytest.mark.parametrize("profile", ["paper", "repo-2025-08"])
@given(maps=map_cases.batches(grids=GRIDS), heads=st.integers(1, 3))
def test_equals_the_reference(implementation, profile, maps, heads):
    maps = maps[:, None].expand(-1, heads, -1, -1)
    recipe = fg.Recipe.profile(profile)
    boxes = implementation(fg.boxes, maps, recipe=recipe, nan="propagate")
    expected = reference.boxes(maps, recipe=recipe)
    assert torch.equal(boxes.xyxy, expected.xyxy) and torch.equal(boxes.found, expected.found)
    assert torch.equal(boxes.area, expected.area)
    close = {"rtol": 1e-4, "atol": 1e-4, "equal_nan": True}
    torch.testing.assert_close(boxes.mass, expected.mass, **close)
    torch.testing.assert_close(boxes.score, expected.score, **close)


def one_map(*rows):
    return torch.tensor([[float(c) for c in row] for row in rows])[None]


def test_a_single_cell(implementation):
    boxes = implementation(fg.boxes, one_map("000", "001"), recipe=fg.Recipe(**PLAIN))
    assert boxes.xyxy.tolist() == [2, 1, 3, 2] and boxes.found
    assert (boxes.area, boxes.mass, boxes.score) == (1, 1, math.inf)


def test_each_choice_of_region(implementation):
    maps = one_map("1000005", "0100000", "0010022", "0000022")
    kept = {}
    for region in REGIONS:
        boxes = implementation(fg.boxes, maps, recipe=fg.Recipe(region=region, **PLAIN))
        kept[region] = (boxes.xyxy.tolist(), float(boxes.area))
    assert kept == {
        "hull": ([0, 0, 3, 3], 5.0),
        "component": ([5, 2, 7, 4], 4.0),
        "mass": ([5, 2, 7, 4], 4.0),
        "all": ([0, 0, 7, 4], 8.0),
    }


def test_ties_go_to_the_larger_sum_then_to_raster_order(implementation):
    recipe = fg.Recipe(**PLAIN)
    larger = implementation(fg.boxes, one_map("200", "000", "003"), recipe=recipe)
    assert larger.xyxy.tolist() == [2, 2, 3, 3]
    equal = implementation(fg.boxes, one_map("00020", "20000", "00000"), recipe=recipe)
    assert equal.xyxy.tolist() == [3, 0, 4, 1]


@pytest.mark.parametrize("region", REGIONS)
@given(
    grid=st.sampled_from([(5, 5), (6, 9), (12, 30), (4, 80)]),
    density=st.floats(0.05, 0.6),
    seed=st.integers(0, 1000),
)
def test_many_ties(implementation, region, grid, density, seed):
    """Few values, small regions: most are equal in size, many in their sum too."""
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(
        (rng.uniform(size=(3, *grid)) < density) * rng.integers(2, 4, (3, *grid))
    )
    recipe = fg.Recipe(region=region, **PLAIN)
    boxes = implementation(fg.boxes, maps.float()[:, None], recipe=recipe)
    assert_like_opencv(boxes, maps.float(), np.ones(grid, dtype=bool), region)


@pytest.mark.parametrize("region", REGIONS)
@given(maps=map_cases.batches(grids=GRIDS), seed=st.integers(0, 100), heads=st.integers(1, 3))
def test_every_instruction_set_gives_the_same(region, maps, seed, heads):
    valid = torch.from_numpy(np.random.default_rng(seed).uniform(size=maps.shape) < 0.8)
    recipe = fg.Recipe(region=region, kernel_size=3)
    maps = maps[:, None].expand(-1, heads, -1, -1)
    for where in (None, valid):
        instruction_sets.assert_same_bits(
            lambda where=where: fg.boxes(maps, recipe=recipe, valid=where, nan="propagate")
        )


def test_nothing_is_found_in_a_flat_map(implementation):
    boxes = implementation(fg.boxes, torch.full((2, 3, 24, 24), 0.1))
    assert boxes.xyxy.tolist() == [[0] * 4] * 2 and not boxes.found.any()
    assert not (boxes.area.any() or boxes.mass.any() or boxes.score.any())


def test_padding_is_the_recipes_choice(implementation):
    maps = one_map("900", "000", "012")
    valid = torch.tensor([[False] * 3, [True] * 3, [True] * 3])
    excluded = implementation(fg.boxes, maps, recipe=fg.Recipe(**PLAIN), valid=valid)
    assert excluded.xyxy.tolist() == [1, 2, 3, 3]
    recipe = fg.Recipe(padding="include", **PLAIN)
    included = implementation(fg.boxes, maps, recipe=recipe, valid=valid)
    assert included.xyxy.tolist() == [0, 0, 1, 1]
    nowhere = implementation(fg.boxes, maps, valid=torch.zeros(3, 3, dtype=torch.bool))
    assert not nowhere.found and nowhere.score == 0


def test_shapes_of_batch_and_valid(implementation):
    maps = torch.rand(2, 4, 3, 6, 5)
    shared = torch.rand(6, 5) > 0.3
    boxes = implementation(fg.boxes, maps, valid=shared)
    each = implementation(fg.boxes, maps, valid=shared.expand(2, 4, 6, 5).contiguous())
    assert boxes.xyxy.shape == (2, 4, 4) and boxes.found.shape == boxes.area.shape == (2, 4)
    assert all(map(torch.equal, boxes, each))
    none = implementation(fg.boxes, maps[:, :0])
    assert none.xyxy.shape == (2, 0, 4) and none.found.dtype == torch.bool


def test_boxes_are_a_named_tuple_of_five(implementation):
    maps = torch.rand(2, 3, 6, 5)
    maps[1] = 1  # nothing found
    for some in (maps, maps[0]):
        boxes = implementation(fg.boxes, some)
        assert boxes._fields == ("xyxy", "area", "mass", "score", "found")
        assert boxes.xyxy.shape == (*boxes.area.shape, 4)
        assert torch.equal(boxes.found, boxes.area > 0)
        for other in (copy.deepcopy(boxes), pickle.loads(pickle.dumps(boxes))):
            assert type(other) is type(boxes) and all(map(torch.equal, boxes, other))


@pytest.mark.parametrize("name", ["reference", "native"])
@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray], ids=["torch", "numpy"])
def test_each_part_is_of_the_kind_of_maps_and_the_callers_own(monkeypatch, name, kind):
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", name)
    numbers = np.random.default_rng(0).random((2, 3, 24, 24), np.float32)
    maps = kind(numbers)
    for some, batch in ((maps[0], ()), (maps, (2,)), (maps[:1, None], (1, 1)), (maps[:0], (0,))):
        boxes = fg.boxes(some)
        assert tuple(boxes.xyxy.shape) == (*batch, 4)
        assert all(tuple(part.shape) == batch for part in boxes[1:])
        assert all(isinstance(part, type(maps)) for part in boxes)
        assert [dtype_name(part.dtype) for part in boxes] == ["float32"] * 4 + ["bool"]
    boxes = fg.boxes(maps)
    kept = [copy.deepcopy(part) for part in boxes]
    xyxy, found = boxes.xyxy, boxes.found
    boxes.area[...] = 7  # each has its own numbers, and may be written
    boxes.found[...] = False
    assert (boxes.xyxy == kept[0]).all() and (boxes.score == kept[3]).all() and not found.any()
    del boxes, maps
    gc.collect()
    noise = [np.ones(n, np.uint8) for n in range(1, 2000)]  # were the memory free, it would be here
    assert (xyxy == kept[0]).all() and len(noise) == 1999


@pytest.mark.parametrize("grid", [(6, 5), (24, 24), (4, 70)])
@pytest.mark.parametrize("region", REGIONS)
def test_each_map_may_have_its_own_valid_cells(implementation, region, grid):
    maps = torch.rand(6, *grid)
    valid = torch.rand(6, *grid) > 0.3
    valid[1], valid[2] = False, True
    valid[3] = valid[4]
    recipe = fg.Recipe(region=region, **PLAIN)
    wide = torch.zeros(6, 2 * grid[0], 3 * grid[1], dtype=torch.bool)
    wide[:, ::2, 1::3] = valid
    transposed = valid.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for where in (valid, wide[:, ::2, 1::3], transposed):
        boxes = implementation(fg.boxes, maps[:, None], recipe=recipe, valid=where)
        for i in range(6):
            one = boxes._make(part[i : i + 1] for part in boxes)
            assert_like_opencv(one, maps[i : i + 1], valid[i].numpy(), region)
    nowhere = torch.zeros(1, 1, dtype=torch.bool).expand(6, *grid)
    assert not implementation(fg.boxes, maps[:, None], recipe=recipe, valid=nowhere).found.any()


def test_what_is_no_number_is_refused_or_not_found(implementation):
    for maps in map_cases.spoilt():
        with pytest.raises(ValueError, match="1 of 3 are not"):
            implementation(fg.boxes, maps[:, None])
        boxes = implementation(fg.boxes, maps[:, None], nan="propagate")
        assert boxes.found.tolist() == [True, False, True]
        assert boxes.score.isnan().tolist() == boxes.mass.isnan().tolist() == [False, True, False]
        assert boxes.xyxy[1].tolist() == [0] * 4


def test_bad_valid():
    maps = torch.rand(2, 3, 6, 5)
    with pytest.raises(ValueError, match=r"valid must be \(6, 5\) or \(2, 6, 5\)"):
        fg.boxes(maps, valid=torch.ones(5, 6, dtype=torch.bool))
    with pytest.raises(TypeError, match="valid must be bool, but got float32"):
        fg.boxes(maps, valid=torch.ones(6, 5))
    with pytest.raises(ValueError, match=r"maps must be \(\.\.\., k, grid_h, grid_w\)"):
        fg.boxes(maps[0, 0])
    with pytest.raises(ValueError, match="at least one head"):
        fg.boxes(maps[:, :0])
