"""Phi-4 multimodal: cells of both views by hand, several images of a forward, what is refused."""

import pytest
from fastground.models import wrap
from fastground.types import Recipe
from PIL import Image
from test_adapters import TEXTS, assert_answers_are_those_of_generate, picture
from tiny_phi4 import phi4


def layout(lvlm, size, blocks="base"):
    return lvlm.encode(Image.new("RGB", size), ["x"], Recipe(blocks=blocks)).layout


def test_cells_by_hand():
    # 97 x 61 becomes 128 x 80, so that 12 of 32 lines of patches are white, and 10 of 16 cells not.
    lvlm = wrap(*phi4())
    found, whole = layout(lvlm, (97, 61), "stitch"), layout(lvlm, (97, 61))
    assert found.grid == (10, 16) and found.cell_size == (97 / 16, 97 / 16)
    assert whole.grid == (16, 16) and whole.cell_size == (97 / 16, 97 / 16)
    assert len(found.all_tokens) == 10 * 17 + 1 + 16 * 17
    # After a line stands one token more.
    assert found.tokens[16] == found.tokens[0] + 17
    assert whole.tokens[0] == found.tokens[0] + 10 * 17 + 1


def test_of_several_tiles_lines_go_on_from_one_to_the_next():
    # 160 x 24 becomes 256 x 38 in two tiles: 10 lines of patches, 5 of cells.
    lvlm = wrap(*phi4())
    found, whole = layout(lvlm, (160, 24), "stitch"), layout(lvlm, (160, 24))
    assert found.grid == (5, 32) and found.cell_size == (5, 5)
    assert whole.cell_size == (10, 5) and whole.valid().sum() == 5 * 16


@pytest.mark.parametrize("size", [(31, 20), (160, 150)])
def test_answers_are_those_of_generate(size):
    assert_answers_are_those_of_generate(wrap(*phi4()), picture(size), TEXTS[:2])


def test_other_sizes_than_the_model_s_are_refused():
    model, processor = phi4()
    model.config.vision_config.patch_size = 8
    with pytest.raises(
        ValueError, match=r"8 x 8 of the whole image, .* for tiles of 128 pixels, 8"
    ):
        layout(wrap(model, processor), (97, 61))
