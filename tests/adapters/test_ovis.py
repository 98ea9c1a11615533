"""Ovis2: which tile is where, and what is refused."""

import pytest
from fastground.models import wrap
from fastground.types import Recipe
from PIL import Image
from tiny_ovis import PATCH, STRIDE, TILE, ovis2

SIDE = TILE // PATCH // STRIDE


def encoded(lvlm, size, blocks="base"):
    return lvlm.encode(Image.new("RGB", size, (10, 90, 200)), ["x"], Recipe(blocks=blocks))


def test_tiles_are_stitched_row_by_row():
    # 90 x 60 in the grid of the nearest ratio, 3 x 2: stretched to 72 x 48 pixels.
    lvlm = wrap(*ovis2(use_covering_area_grid=False))
    found = encoded(lvlm, (90, 60), "stitch")
    assert found.layout.grid == (2 * SIDE, 3 * SIDE)
    assert found.layout.cell_size == (10, 10)
    words = lvlm.processor.tokenizer.convert_ids_to_tokens(found.token_ids[0])
    ends = [i for i, w in enumerate(words) if w in ("<IMG_COL>", "<IMG_ROW>", "<IMG_END>")]
    row = ["<IMG_COL>", "<IMG_COL>"]
    assert [words[i] for i in ends] == [*row, "<IMG_ROW>", *row, "<IMG_END>"]
    for tile, end in enumerate(ends):
        row, column = divmod(tile, 3)
        for y in range(SIDE):
            cell = (row * SIDE + y) * 3 * SIDE + column * SIDE
            first = end - SIDE * SIDE + y * SIDE
            assert found.layout.tokens[cell : cell + SIDE] == tuple(range(first, first + SIDE))


def test_the_whole_image_is_the_first_square():
    lvlm = wrap(*ovis2(use_covering_area_grid=False))
    found = encoded(lvlm, (90, 60))
    words = lvlm.processor.tokenizer.convert_ids_to_tokens(found.token_ids[0])
    first = words.index("<IMG_START>") + 1
    assert found.layout.tokens == tuple(range(first, first + SIDE * SIDE))
    assert found.layout.cell_size == (30, 20)
    assert len(found.layout.all_tokens) == 7 * SIDE * SIDE


def test_one_tile_is_the_whole_image():
    lvlm = wrap(*ovis2(crop_to_patches=False))
    base, stitch = (encoded(lvlm, (90, 60), blocks).layout for blocks in ("base", "stitch"))
    assert base == stitch
    assert base.all_tokens is None


def test_what_does_not_fit_is_refused():
    model, processor = ovis2()
    processor.image_seq_length = 4
    with pytest.raises(ValueError, match="9 image tokens a tile of 24 x 24"):
        encoded(wrap(model, processor), (90, 60))
    with pytest.raises(ValueError, match="whole cells of 8 pixels"):
        encoded(wrap(*ovis2(size={"height": 28, "width": 28})), (90, 60))
