"""smooth and combine: every implementation against OpenCV and SciPy."""

import cv2
import fastground as fg
import map_cases
import numpy as np
import pytest
import scipy.ndimage
import torch
from fastground import ops, reference
from hypothesis import given
from hypothesis import strategies as st

SIZES = st.sampled_from([1, 3, 5, 7, 9, 15])
SIGMAS = st.sampled_from([0.3, 1.0, 2.5])
BORDERS = st.sampled_from(["reflect101", "reflect"])


@given(maps=map_cases.batches(sizes=("plain",)), kernel_size=SIZES, sigma=SIGMAS)
def test_equals_opencv(implementation, maps, kernel_size, sigma):
    expected = [
        cv2.GaussianBlur(m, (kernel_size, kernel_size), sigma, borderType=cv2.BORDER_REFLECT_101)
        for m in maps.double().numpy()
    ]
    result = implementation(fg.smooth, maps, kernel_size=kernel_size, sigma=sigma)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result, np.stack(expected), rtol=2e-6, atol=1e-6)


@given(maps=map_cases.batches(sizes=("plain",)), kernel_size=SIZES, sigma=SIGMAS, border=BORDERS)
def test_equals_scipy(implementation, maps, kernel_size, sigma, border):
    mode = {"reflect101": "mirror", "reflect": "reflect"}[border]
    cells = maps.double().numpy()
    radius = kernel_size // 2
    expected = scipy.ndimage.gaussian_filter(cells, sigma, mode=mode, radius=radius, axes=(1, 2))
    keywords = {"kernel_size": kernel_size, "sigma": sigma, "border": border}
    result = implementation(fg.smooth, maps, **keywords)
    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=1e-7)


@given(maps=map_cases.batches(), kernel_size=SIZES, sigma=SIGMAS, border=BORDERS)
def test_equals_the_reference_to_the_bit(implementation, maps, kernel_size, sigma, border):
    keywords = {"kernel_size": kernel_size, "sigma": sigma, "border": border}
    result = implementation(fg.smooth, maps, nan="propagate", **keywords)
    assert torch.equal(result, reference.smooth(maps, **keywords))
    recipe = fg.Recipe(**keywords)
    combined = implementation(ops.combine, maps, recipe=recipe, nan="propagate")
    assert torch.equal(combined, reference.combine(maps, recipe=recipe))


@pytest.mark.parametrize("off", [{"kernel_size": 1}, {"sigma": 0}, {"sigma": 1e-200}])
def test_no_smoothing_is_the_identity(implementation, off):
    maps = torch.rand(3, 6, 5)
    assert torch.equal(implementation(fg.smooth, maps, **off), maps)


def test_a_constant_map_stays(implementation):
    result = implementation(fg.smooth, torch.full((4, 9), 0.3), kernel_size=15, sigma=4.0)
    torch.testing.assert_close(result, torch.full((4, 9), 0.3))


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
