"""smooth and combine: every implementation against OpenCV, SciPy and PyTorch's convolution."""

import itertools

import cv2
import fastground as fg
import instruction_sets
import map_cases
import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from fastground import ops, reference
from hypothesis import given
from hypothesis import strategies as st

SIZES = st.sampled_from([1, 3, 5, 7, 9, 15])
SIGMAS = st.sampled_from([0.3, 1.0, 2.5])
BORDERS = st.sampled_from(["reflect101", "reflect"])
SINGLE = [torch.float32, torch.float16, torch.bfloat16]


def assert_close(result, expected, maps, heads=1, **keywords):
    """Within 4e-7 of the smoothed magnitudes and the smallest step of float32.

    Heads are added one after the other in float32: each further one rounds once more, by 2**-24.
    """
    expected = torch.as_tensor(expected).double()
    bound = 4e-7 + 6e-8 * (heads - 1)
    size = reference.smooth(maps.double().abs(), **keywords).double()
    assert result.dtype == torch.float32 and result.shape == expected.shape
    assert torch.equal(result.isnan(), expected.isnan())
    near = (result.double() - expected).abs() <= bound * size + 2.0**-149
    assert (near | (result == expected.float()) | expected.isnan()).all()


@given(maps=map_cases.batches(sizes=("plain",)), kernel_size=SIZES, sigma=SIGMAS)
def test_equals_opencv(implementation, maps, kernel_size, sigma):
    expected = [
        cv2.GaussianBlur(m, (kernel_size, kernel_size), sigma, borderType=cv2.BORDER_REFLECT_101)
        for m in maps.double().numpy()
    ]
    keywords = {"kernel_size": kernel_size, "sigma": sigma}
    result = implementation(fg.smooth, maps, **keywords)
    assert_close(result, np.stack(expected), maps, **keywords)


@given(maps=map_cases.batches(sizes=("plain",)), kernel_size=SIZES, sigma=SIGMAS, border=BORDERS)
def test_equals_scipy(implementation, maps, kernel_size, sigma, border):
    mode = {"reflect101": "mirror", "reflect": "reflect"}[border]
    cells = maps.double().numpy()
    radius = kernel_size // 2
    expected = scipy.ndimage.gaussian_filter(cells, sigma, mode=mode, radius=radius, axes=(1, 2))
    keywords = {"kernel_size": kernel_size, "sigma": sigma, "border": border}
    assert_close(implementation(fg.smooth, maps, **keywords), expected, maps, **keywords)


@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9, 15])
def test_equals_a_dense_convolution(implementation, kernel_size):
    maps, radius = torch.rand(50, 24, 24), kernel_size // 2
    taps = torch.tensor(reference.gaussian(kernel_size, 1.0), dtype=torch.float64)
    padded = F.pad(maps[:, None].double(), [radius] * 4, mode="reflect")
    expected = F.conv2d(padded, torch.outer(taps, taps)[None, None])[:, 0]
    result = implementation(fg.smooth, maps, kernel_size=kernel_size)
    assert_close(result, expected, maps, kernel_size=kernel_size)


@given(maps=map_cases.batches(), kernel_size=SIZES, sigma=SIGMAS, border=BORDERS)
def test_equals_the_reference(implementation, maps, kernel_size, sigma, border):
    keywords = {"kernel_size": kernel_size, "sigma": sigma, "border": border}
    result = implementation(fg.smooth, maps, nan="propagate", **keywords)
    assert_close(result, reference.smooth(maps, **keywords), maps, **keywords)
    recipe = fg.Recipe(**keywords)
    combined = implementation(ops.combine, maps, recipe=recipe, nan="propagate")
    expected = reference.combine(maps, recipe=recipe)
    magnitudes = maps.double().abs().sum(0)
    assert_close(combined, expected, magnitudes, heads=len(maps), **keywords)


@given(
    maps=map_cases.batches(dtypes=[torch.float64]), kernel_size=SIZES, sigma=SIGMAS, border=BORDERS
)
def test_float64_equals_the_reference_to_the_bit(implementation, maps, kernel_size, sigma, border):
    keywords = {"kernel_size": kernel_size, "sigma": sigma, "border": border}
    result = implementation(fg.smooth, maps, nan="propagate", **keywords)
    assert torch.equal(result, reference.smooth(maps, **keywords))


@pytest.mark.parametrize("border", ["reflect101", "reflect"])
def test_every_small_grid(implementation, border):
    for h, w in itertools.product(range(1, 10), repeat=2):
        maps = torch.rand(3, h, w)
        for kernel_size in range(1, 16, 2):
            keywords = {"kernel_size": kernel_size, "sigma": 1.5, "border": border}
            result = implementation(fg.smooth, maps, **keywords)
            assert_close(result, reference.smooth(maps.double(), **keywords), maps, **keywords)


@pytest.mark.parametrize("heads", [1, 3, 16, 17])
def test_every_width(implementation, heads):
    for w in range(1, 257):
        maps = torch.rand(2, heads, 5, w)
        combined = implementation(ops.combine, maps)
        expected = reference.combine(maps.double(), recipe=fg.Recipe())
        assert_close(combined, expected, maps.double().sum(1), heads=heads)


@given(maps=map_cases.batches(), kernel_size=SIZES, sigma=SIGMAS, border=BORDERS)
def test_all_instruction_sets_agree_to_the_bit(maps, kernel_size, sigma, border):
    recipe = fg.Recipe(kernel_size=kernel_size, sigma=sigma, border=border)
    for groups in (maps[:, None], maps):
        instruction_sets.assert_same_bits(
            lambda groups=groups: ops.combine(groups, recipe=recipe, nan="propagate")
        )


@pytest.mark.parametrize("kernel_size", [3, 7, 9, 15])
@pytest.mark.parametrize("border", ["reflect101", "reflect"])
def test_a_mirrored_map_gives_the_mirrored_result(implementation, kernel_size, border):
    for h, w in [(24, 24), (7, 13), (5, 6), (1, 9), (30, 5)]:
        for dtype in SINGLE:
            maps = torch.rand(4, h, w).to(dtype)
            result = implementation(fg.smooth, maps, kernel_size=kernel_size, border=border)
            for dims in [(1,), (2,), (1, 2)]:
                mirrored = implementation(
                    fg.smooth, maps.flip(dims), kernel_size=kernel_size, border=border
                )
                if kernel_size <= 9 and w > 3:
                    assert torch.equal(mirrored, result.flip(dims))
                torch.testing.assert_close(mirrored, result.flip(dims), rtol=2e-7, atol=0)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9, 15])
def test_a_constant_map_stays(implementation, kernel_size):
    for value in (0.3, 1e-3, 7.7e-36, 3e38, 3e-45, 0.0, -1.9):
        for h, w in [(24, 24), (4, 9), (1, 1), (3, 30)]:
            maps = torch.full((2, h, w), value)
            result = implementation(fg.smooth, maps, kernel_size=kernel_size, sigma=2.0)
            assert (result == result[0, 0, 0]).all()
            if value == 3e-45:  # less than the slack
                assert torch.equal(result, maps)
            assert_close(result, maps, maps, kernel_size=kernel_size, sigma=2.0)


@pytest.mark.parametrize("scale", [3.4e38, 1e38, 1e-30, 1e-36, 1e-38, 1e-41, 3e-45])
def test_numbers_at_the_ends_of_the_range(implementation, scale):
    maps = (torch.rand(40, 24, 24, dtype=torch.float64) * scale).float()
    maps[::2] *= torch.rand(20, 24, 24) < 0.1
    for recipe in [fg.Recipe(), fg.Recipe(kernel_size=3), fg.Recipe(kernel_size=9)]:
        keywords = {"kernel_size": recipe.kernel_size}
        expected = reference.smooth(maps.double(), **keywords)
        assert_close(implementation(fg.smooth, maps, **keywords), expected, maps, **keywords)
        opposed = torch.stack([maps, -maps.flip(0), maps], dim=1)
        combined = implementation(ops.combine, opposed, recipe=recipe, nan="propagate")
        expected = reference.combine(opposed.double(), recipe=recipe)
        assert_close(combined, expected, opposed.double().abs().sum(1), heads=3, **keywords)


@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9])
def test_sub_normal_cells_beside_large_ones(implementation, kernel_size):
    """From 1 down to the smallest steps in one map, also many such steps about zero."""
    falling = 2.0 ** -torch.linspace(0, 155, 24, dtype=torch.float64)
    maps = torch.stack([falling.expand(24, 24), falling[:, None].expand(24, 24)]).float()
    noise = torch.randint(-99, 100, (50, 24, 24)) * 2.0**-149
    noise[:, 0, 0] = 1.0
    for cells in (maps, noise, noise.abs()):
        expected = reference.smooth(cells.double(), kernel_size=kernel_size)
        result = implementation(fg.smooth, cells, kernel_size=kernel_size)
        assert_close(result, expected, cells, kernel_size=kernel_size)


def test_the_far_and_small_beside_the_large(implementation):
    maps = torch.zeros(5, 24, 24)
    for i, value in enumerate([1.0, 1e-20, 1e-40, 1e30, 1e-45]):
        maps[i, 3, 4] = value
        maps[i, 20, 20] = 1.0
    for sigma in (0.1, 0.2, 0.3, 1.0):
        expected = reference.smooth(maps.double(), sigma=sigma)
        assert_close(implementation(fg.smooth, maps, sigma=sigma), expected, maps, sigma=sigma)


@pytest.mark.parametrize("off", [{"kernel_size": 1}, {"sigma": 0}, {"sigma": 1e-200}])
def test_no_smoothing_is_the_identity(implementation, off):
    maps = torch.rand(3, 6, 5)
    assert torch.equal(implementation(fg.smooth, maps, **off), maps)


def test_combine_is_the_sum_over_the_heads(implementation):
    maps = torch.rand(2, 4, 5, 24, 24)
    combined = implementation(ops.combine, maps)
    assert combined.shape == (2, 4, 24, 24)
    torch.testing.assert_close(combined, implementation(fg.smooth, maps).sum(2))
    assert implementation(ops.combine, maps[:0]).shape == (0, 4, 24, 24)


def test_what_is_no_number_is_refused_or_nan(implementation):
    for maps in map_cases.spoilt():
        with pytest.raises(ValueError, match="1 of 3 are not"):
            implementation(fg.smooth, maps)
        result = implementation(fg.smooth, maps, nan="propagate")
        assert result[1].isnan().all() and result[[0, 2]].isfinite().all()
        assert implementation(ops.combine, maps, nan="propagate").isnan().all()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd, but got 4"),
        ({"kernel_size": 65537}, "kernel_size must be odd and at most 65535"),
        ({"kernel_size": 0}, "kernel_size must be an integer >= 1"),
        ({"sigma": -1.0}, "sigma must be finite and >= 0"),
        ({"sigma": float("nan")}, "sigma must be finite and >= 0"),
        ({"border": "wrap"}, "border must be one of reflect101, reflect"),
    ],
)
def test_bad_choices(keywords, message):
    with pytest.raises(ValueError, match=message):
        fg.smooth(torch.rand(4, 4), **keywords)
