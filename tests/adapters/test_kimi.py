"""Kimi K2.5 and GLM-5: how much of the raster is the image, and what is refused."""

import pytest
from fastground.models import wrap
from fastground.types import Recipe
from PIL import Image
from test_adapters import TEXTS, assert_answers_are_those_of_generate, picture
from tiny_kimi import glm5_next, kimi_k25


def layout(lvlm, size):
    return lvlm.encode(Image.new("RGB", size, (10, 90, 200)), ["x"], Recipe()).layout


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((31, 20), (31, 20)),  # within all limits
        ((96, 48), (48, 24)),  # 12 patches a side, of 4 pixels
        ((60, 60), (35, 35)),  # 15 x 15 patches to 80: by 0.596
        ((3, 2), (3, 2)),
    ],
)
def test_cells_are_of_the_resized_image(size, resized):
    found = layout(wrap(*kimi_k25()), size)
    assert found.grid == (-(-resized[1] // 8), -(-resized[0] // 8))
    assert found.cell_size == (8 * size[0] / resized[0], 8 * size[1] / resized[1])
    assert found.origin == (0, 0)


def test_cells_that_only_fill_up_are_not_valid():
    # 33 x 19 in 5 x 3 cells of 8: of the last column and row, one and three pixels are the image's.
    valid = layout(wrap(*kimi_k25()), (33, 19)).valid()
    assert valid.shape == (3, 5)
    assert valid[:, 3].tolist() == [True, True, False]
    assert not valid[:, 4].any()


def test_what_does_not_fit_is_refused():
    model, processor = kimi_k25()
    model.config.vision_config.merge_kernel_size = (1, 1)
    with pytest.raises(ValueError, match="one image token for 4 x 4 pixels, but made 12"):
        layout(wrap(model, processor), (31, 20))


@pytest.mark.parametrize(
    ("size", "fitted", "grid"),
    [
        ((31, 20), (31, 20), (3, 4)),  # within both limits: as it is
        ((97, 61), (76, 48), (6, 10)),  # a line more would make 7 x 10 cells, of at most 64
        ((9, 7), (20, 16), (2, 3)),  # 1 x 2 cells, of at least 4: made larger until 16 is full
    ],
)
def test_of_glm_5_cells_are_of_the_fitted_image(size, fitted, grid):
    found = layout(wrap(*glm5_next()), size)
    assert found.grid == grid and found.origin == (0, 0)
    assert found.cell_size == (8 * size[0] / fitted[0], 8 * size[1] / fitted[1])


def test_of_glm_5_layers_are_read_where_an_index_chooses():
    lvlm = wrap(*glm5_next())
    assert lvlm.layers_with_heads == (1, 3) and not lvlm.shares_prefix
    # The lowest of three lines holds three pixels of eight, so that its middle is no longer one.
    assert layout(lvlm, (31, 19)).valid().sum(1).tolist() == [4, 4, 0]
    assert_answers_are_those_of_generate(lvlm, picture(), TEXTS[:2])
