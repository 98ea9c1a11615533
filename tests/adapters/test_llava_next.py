"""What is special to tiles without their padding: which lines are left, over which pixels."""

import pytest
import torch
from fastground.models import wrap
from fastground.types import Recipe
from PIL import Image
from test_adapters import TEXTS, assert_answers_are_those_of_generate, picture
from tiny_llava_next import granite4_vision, llava_next, llava_onevision

BASE, STITCH = Recipe(), Recipe(blocks="stitch")


def layout(built, size, recipe):
    return wrap(*built).look(Image.new("RGB", size), recipe).layout


def test_a_canvas_that_fits_keeps_all_its_lines():
    # 40 x 20 on 1 x 2 tiles of 16 pixels, 4 x 4 cells each: 5 original pixels a cell.
    stitch = layout(llava_next(), (40, 20), STITCH)
    assert stitch.grid == (4, 8)
    assert stitch.cell_size == (5, 5)
    assert stitch.origin == (0, 0)
    # The base's 16 tokens, then lines of 8 and a newline.
    assert stitch.tokens[:9] == (16, 17, 18, 19, 20, 21, 22, 23, 25)
    assert stitch.all_tokens == tuple(range(16 + 4 * 9))
    base = layout(llava_next(), (40, 20), BASE)
    assert base.tokens == tuple(range(16))
    assert base.all_tokens == stitch.all_tokens
    assert base.cell_size == (10, 5)


@pytest.mark.parametrize("turned", [False, True])
def test_lines_of_padding_are_gone_and_the_rest_lies_where_it_was(turned):
    # 97 x 61 on 2 x 2 tiles: 32 x 21 pixels, 5 of padding before and 6 after. The model reckons 5
    # of 8 lines, drops one at either end, and so keeps a pixel of padding: 4 are one line.
    size = (61, 97) if turned else (97, 61)
    found = layout(llava_next(), size, STITCH)
    line, scale = 4, 61 / 21
    thin = (6, line * scale, (1 * line - 5) * scale)
    full = (8, 97 / 8, 0.0)
    across, down = (thin, full) if turned else (full, thin)
    assert found.grid == (down[0], across[0])
    assert found.cell_size == pytest.approx((across[1], down[1]))
    assert found.origin == pytest.approx((across[2], down[2]))


@pytest.mark.parametrize("turned", [False, True])
def test_a_cell_shows_the_pixels_it_lies_over(turned):
    # As above; brightness is where a pixel lies, so a cell's mean is where its middle lies.
    ramp = torch.zeros(61, 97, 3)
    ramp[..., 0] = torch.arange(97)
    ramp[..., 1] = torch.arange(61)[:, None]
    ramp = ramp.transpose(0, 1) if turned else ramp
    lvlm = wrap(*llava_next())
    look = lvlm.look(Image.fromarray(ramp.byte().contiguous().numpy()), STITCH)
    images = lvlm.processor.image_processor
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (images.image_mean, images.image_std))
    tiles = (look.inputs["pixel_values"][0, 1:] * std + mean) * 255
    cells = tiles.unfold(2, 4, 4).unfold(3, 4, 4).mean((-2, -1))
    seen = cells.view(2, 2, 3, 4, 4).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    along, down = (seen[0], seen[1].T) if not turned else (seen[0].T, seen[1])
    # Of the two axes the long one is whole; of the other a line is cut at either end, and the
    # first and last of the rest hold padding.
    (long, short) = (0, 1) if not turned else (1, 0)
    for found, axis, cut in ((along, long, 0), (down, short, 1)):
        cell, origin = look.layout.cell_size[axis], look.layout.origin[axis]
        inner = range(1, 7 - 2 * cut)
        for i in inner:
            middle = origin + (i + 0.5) * cell - 0.5
            assert (found[2:6, i + cut] - middle).abs().max() < 0.75


def test_a_thin_image_may_have_no_line_left():
    # 400 x 4 on 1 x 3 tiles: an eighth of a line, so the model drops two of four at either end.
    lvlm, image = wrap(*llava_next()), Image.new("RGB", (400, 4))
    base = lvlm.encode(image, ["the mug"], BASE).layout
    assert len(base.all_tokens) == 16
    with pytest.raises(ValueError, match="so thin that the model drops its tiles"):
        lvlm.look(image, STITCH)


def test_many_lines_are_averaged():
    # 48 x 48 on 3 x 3 tiles: 144 cells, 4.5 times the 32 of two bases; so 12 / sqrt(4.5) a side.
    found = layout(llava_onevision(), (48, 48), STITCH)
    assert found.grid == (5, 5)
    assert found.cell_size == (48 / 5, 48 / 5)
    assert found.origin == (0, 0)
    assert len(found.all_tokens) == 16 + 5 * 6


def test_a_remainder_of_a_tile_belongs_to_no_cell():
    # Tiles of 18 pixels, patches of 4, as 384 and 14: two pixels at a tile's end are seen by none.
    built = llava_onevision(tile=18, aspect="anyres_max_9")
    base = layout(built, (36, 36), BASE)
    assert base.grid == (4, 4)
    assert base.cell_size == (8, 8)  # the base is half as large as the image
    stitch = layout(built, (36, 36), STITCH)
    assert stitch.grid == (8, 8)
    middles = torch.tensor([18 * tile + 4 * i + 2.0 for tile in (0, 1) for i in range(4)])
    found = stitch.origin[0] + (torch.arange(8) + 0.5) * stitch.cell_size[0]
    assert (found - middles).abs().max() <= 1  # half of what is left over


@pytest.mark.parametrize(
    ("change", "value", "match"),
    [
        ("size", {"shortest_edge": 20}, r"size and crop_size are \[16, 20\]"),
        ("image_grid_pinpoints", [[20, 40]], "cut a canvas of 20 x 40 pixels into tiles of 16"),
        ("image_grid_pinpoints", [[48, 48]], "made 5 tiles with the base"),
    ],
)
def test_a_processor_that_tiles_otherwise_is_refused(change, value, match):
    model, processor = llava_next()
    lvlm, image = wrap(model, processor), Image.new("RGB", (97, 61))
    ids, inputs = lvlm.read(image)
    setattr(processor.image_processor, change, value)
    with pytest.raises(ValueError, match=match):
        lvlm.layout(image, ids, inputs, STITCH)


def test_tokens_of_another_selection_are_refused():
    model, processor = llava_next()
    processor.num_additional_image_tokens = 0  # as for a tower without a class token
    with pytest.raises(ValueError, match="16 tokens of the base and 6 lines of 8"):
        wrap(model, processor).look(Image.new("RGB", (97, 61)), BASE)


@pytest.mark.parametrize("rate", ["1/2", "2/4", "4/8"])
def test_a_cell_of_granite_is_two_by_two_patches_whatever_its_windows(rate):
    # 80 x 40 on 1 x 2 tiles of 32 pixels: 4 x 8 cells of 8 pixels, 10 original ones.
    built = granite4_vision(rate=rate)
    stitch = layout(built, (80, 40), STITCH)
    assert stitch.grid == (4, 8) and stitch.cell_size == (10, 10)
    assert stitch.all_tokens == tuple(range(16 + 4 * 9))
    base = layout(built, (80, 40), BASE)
    assert base.grid == (4, 4) and base.cell_size == (20, 10)
    assert_answers_are_those_of_generate(wrap(*built), picture(), TEXTS[:2])
