"""LFM2-VL: which tile is where, the thumbnail's shape, and what is refused."""

import pytest
from fastground.models import wrap
from fastground.types import Recipe
from PIL import Image
from tiny_lfm2_vl import FACTOR, PATCH, TILE, lfm2_vl

SIDE = TILE // PATCH // FACTOR


def encoded(lvlm, size, blocks="base"):
    return lvlm.encode(Image.new("RGB", size, (10, 90, 200)), ["x"], Recipe(blocks=blocks))


def test_tiles_are_stitched_in_the_order_of_their_names():
    # 90 x 60: the nearest grid is 3 x 2 tiles.
    lvlm = wrap(*lfm2_vl())
    found = encoded(lvlm, (90, 60), "stitch")
    assert found.layout.grid == (2 * SIDE, 3 * SIDE)
    assert found.layout.cell_size == (10, 10)
    words = lvlm.processor.tokenizer.convert_ids_to_tokens(found.token_ids[0])
    for row in range(2):
        for column in range(3):
            first = words.index(f"<|img_row_{row + 1}_col_{column + 1}|>") + 1
            for y in range(SIDE):
                cell = (row * SIDE + y) * 3 * SIDE + column * SIDE
                tokens = range(first + y * SIDE, first + (y + 1) * SIDE)
                assert found.layout.tokens[cell : cell + SIDE] == tuple(tokens)


def test_the_thumbnail_has_its_own_shape():
    # At most 9 cells of 8 pixels: 90 x 60 shrinks to 29.4 x 19.6, so 3 x 2 cells.
    lvlm = wrap(*lfm2_vl())
    found = encoded(lvlm, (90, 60))
    words = lvlm.processor.tokenizer.convert_ids_to_tokens(found.token_ids[0])
    first = words.index("<|img_thumbnail|>") + 1
    assert found.layout.grid == (2, 3)
    assert found.layout.cell_size == (30, 30)
    assert found.layout.tokens == tuple(range(first, first + 6))
    assert len(found.layout.all_tokens) == 6 * SIDE * SIDE + 6


def test_one_view_is_both():
    small = wrap(*lfm2_vl())
    assert encoded(small, (20, 12)).layout == encoded(small, (20, 12), "stitch").layout
    tiles = wrap(*lfm2_vl(use_thumbnail=False))
    base, stitch = (encoded(tiles, (90, 60), blocks).layout for blocks in ("base", "stitch"))
    assert base == stitch
    assert base.grid == (2 * SIDE, 3 * SIDE)
    assert base.all_tokens is None


def test_expressions_do_not_share_the_image():
    assert not wrap(*lfm2_vl()).shares_prefix


def test_a_processor_of_another_model_is_refused():
    model, processor = lfm2_vl()
    model.config.downsample_factor = 1
    with pytest.raises(ValueError, match="one image token for 1 x 1 patches"):
        encoded(wrap(model, processor), (90, 60))
