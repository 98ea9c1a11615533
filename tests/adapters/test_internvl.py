"""What is special to tiles and a thumbnail: which tiles, in which order, over which pixels."""

import pytest
import torch
from fastground.models import wrap
from fastground.types import Recipe
from PIL import Image
from test_adapters import TEXTS, assert_answers_are_those_of_generate, picture
from tiny_internvl import (
    aya_vision,
    cohere2_vision,
    got_ocr2,
    internvl,
    llama4,
    pp_chart2table,
)

BASE, STITCH = Recipe(), Recipe(blocks="stitch")


def seen(build, size, recipe):
    lvlm = wrap(*build())
    return lvlm.look(Image.new("RGB", size), recipe)


def test_tiles_are_stitched_line_by_line():
    # 97 x 61 is closest to three tiles by two. <img> is token 0; a tile is 16 tokens, 4 a line.
    look = seen(internvl, (97, 61), STITCH)
    assert look.layout.grid == (8, 12)
    assert look.layout.cell_size == (97 / 12, 61 / 8)
    assert look.layout.tokens[:12] == (1, 2, 3, 4, 17, 18, 19, 20, 33, 34, 35, 36)
    assert look.layout.tokens[12:16] == (5, 6, 7, 8)
    assert look.layout.tokens[48:52] == (49, 50, 51, 52)  # the second row of tiles
    assert len(look.layout.all_tokens) == 7 * 16


def test_the_thumbnail_is_last_and_the_whole_image():
    look = seen(internvl, (97, 61), BASE)
    assert look.layout.grid == (4, 4)
    assert look.layout.cell_size == (97 / 4, 61 / 4)
    assert look.layout.tokens == tuple(range(1 + 6 * 16, 1 + 7 * 16))
    assert len(look.layout.all_tokens) == 7 * 16


def test_one_tile_is_the_whole_image_for_both():
    model, processor = internvl()
    processor.image_processor.max_patches = 1
    lvlm, image = wrap(model, processor), Image.new("RGB", (97, 61))
    base, stitch = (lvlm.look(image, recipe).layout for recipe in (BASE, STITCH))
    assert base == stitch
    assert base.grid == (4, 4)
    assert base.all_tokens is None


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (200, 30), (60, 40)])
@pytest.mark.parametrize("build", [internvl, cohere2_vision, llama4])
def test_a_cell_shows_the_pixels_it_lies_over(build, size):
    # Brightness is where a pixel lies; a cell's mean is then where its middle lies.
    width, height = size
    ramp = torch.zeros(height, width, 3)
    ramp[..., 0] = torch.arange(width)
    ramp[..., 1] = torch.arange(height)[:, None]
    lvlm = wrap(*build())
    look = lvlm.look(Image.fromarray(ramp.byte().numpy()), STITCH)
    layout, side = look.layout, 4
    rows, columns = (n // side for n in layout.grid)
    tiles = look.inputs["pixel_values"][: rows * columns]
    images = lvlm.processor.image_processor
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (images.image_mean, images.image_std))
    cells = ((tiles * std + mean) * 255).unfold(2, 8, 8).unfold(3, 8, 8).mean((-2, -1))
    seen = cells.view(rows, columns, 3, side, side).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    for axis, found in ((0, seen[0]), (1, seen[1].T)):
        cell = layout.cell_size[axis]
        inside = int(size[axis] / cell)  # the last may be half empty, the first look beyond
        # The last pixel's middle is half a pixel from the edge, as brightness is whole.
        want = layout.origin[axis] + (torch.arange(inside) + 0.5) * cell - 0.5
        other = int(size[1 - axis] / layout.cell_size[1 - axis])
        off = (found[:other, :inside] - want).abs()[:, 1:-1]
        assert off.max() < 0.75 and off.max() < cell / 4


def test_tokens_that_are_no_square_a_tile_are_refused():
    model, processor = internvl()
    processor.image_seq_length = 15
    with pytest.raises(ValueError, match="one square of image tokens a tile, but made 105 tokens"):
        wrap(model, processor).look(Image.new("RGB", (97, 61)), BASE)


def test_a_processor_that_tiles_by_another_rule_is_refused():
    lvlm, image = wrap(*internvl()), Image.new("RGB", (97, 61))
    ids, inputs = lvlm.read(image)
    lvlm.processor.image_processor.max_patches = 2
    with pytest.raises(ValueError, match="the 1 x 2 tiles that its configuration says, but made 6"):
        lvlm.layout(image, ids, inputs, STITCH)


def test_an_image_processor_without_a_rule_is_refused():
    from transformers import CLIPImageProcessorPil

    lvlm, image = wrap(*internvl()), Image.new("RGB", (97, 61))
    ids, inputs = lvlm.read(image)
    lvlm.processor.image_processor = CLIPImageProcessorPil()
    with pytest.raises(ValueError, match="must say how it tiles an image"):
        lvlm.layout(image, ids, inputs, STITCH)


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_aya_needs_no_image_token_in_its_vocabulary(template):
    image, recipe = Image.new("RGB", (97, 61), "red"), Recipe(template=template)
    model, processor = aya_vision(knows_image=False)
    assert processor.image_token not in processor.tokenizer.get_vocab()
    lvlm = wrap(model, processor)
    encoded = lvlm.encode(image, ["the red mug"], recipe)
    before, after = lvlm.words(recipe)
    prompt = (before + "the red mug." + after).replace(lvlm.mark, processor.image_token)
    own = processor(images=[image], text=[prompt], return_tensors="pt")
    assert encoded.token_ids[0].tolist() == own["input_ids"][0].tolist()


def test_aya_names_its_tiles():
    look = seen(aya_vision, (97, 61), STITCH)
    # <|START_OF_IMG|> TILE_1 precede the first tile; TILE_2 the second.
    assert look.layout.tokens[:8] == (2, 3, 4, 5, 19, 20, 21, 22)
    assert look.layout.grid == (8, 12)


def test_got_ocr2_looks_around_the_middle_of_a_cell():
    model, processor = got_ocr2()
    layout = wrap(model, processor).look(Image.new("RGB", (128, 128)), BASE).layout
    patches = torch.randn(1, 16, 64, 64, requires_grad=True)
    merged = model.model.multi_modal_projector(patches)[0].unflatten(0, (16, 16))
    merged[5, 9].sum().backward()
    seen = patches.grad[0].abs().sum(0)
    for axis, cell in ((1, 5), (0, 9)):  # (down, across)
        rows = seen.sum(axis).nonzero().flatten()
        middle = (rows.min() + rows.max() + 1) / 2 * 2  # pixels; a patch has two
        x = layout.origin[1 - axis] + (cell + 0.5) * layout.cell_size[1 - axis]
        assert x == pytest.approx(float(middle))


def test_llama4_fills_the_corner_of_its_tiles():
    # 60 x 40 pixels fit 2 x 2 tiles of 32 best: 64 wide if it grew, but it never grows here.
    look = seen(llama4, (60, 40), STITCH)
    assert look.layout.grid == (8, 8)
    assert look.layout.cell_size == (8.0, 8.0)
    assert look.layout.image_size == (40, 60)
    # The middle of the eighth column lies on the image's edge.
    assert look.layout.valid().nonzero().max(0).values.tolist() == [4, 7]
    # <|image_start|> first; a word between tiles, another after a row of them.
    assert look.layout.tokens[:9] == (1, 2, 3, 4, 18, 19, 20, 21, 5)
    assert look.layout.tokens[32] == 1 + 2 * 17


def test_llama4_shrinks_with_the_aspect_kept():
    # 200 x 30 on six tiles side by side: 192 wide, and so 28 of the 32 rows (28.8, rounded down).
    look = seen(llama4, (200, 30), STITCH)
    assert look.layout.grid == (4, 24)
    assert look.layout.cell_size == pytest.approx((8 * 200 / 192, 8 * 30 / 28))
    base = seen(llama4, (200, 30), BASE).layout
    assert base.cell_size == (50, 7.5)
    assert base.tokens == tuple(range(1 + 6 * 17 + 1, 1 + 6 * 17 + 17))


def test_llama4_grows_to_the_canvas_where_told_so():
    model, processor = llama4()
    lvlm, image = wrap(model, processor), Image.new("RGB", (60, 40))
    ids, inputs = lvlm.read(image)
    processor.image_processor.resize_to_max_canvas = True
    layout = lvlm.layout(image, ids, inputs, STITCH)
    assert layout.cell_size == (8 * 60 / 64, 8 * 40 / 42)
    assert torch.equal(layout.valid().any(0), torch.ones(8, dtype=torch.bool))


def test_chart2table_has_the_cells_of_got_ocr():
    charts, got = (seen(build, (97, 61), BASE) for build in (pp_chart2table, got_ocr2))
    assert charts.ids == got.ids and charts.layout == got.layout
    assert_answers_are_those_of_generate(wrap(*pp_chart2table()), picture(), TEXTS[:2])


def test_a_chat_of_chart2table_must_say_the_words():
    image = "user <img>{% for _ in range(256) %}<imgpad>{% endfor %}</img>\n"
    own = wrap(*pp_chart2table(chat=f"{image}a chart of the mug"))
    with pytest.raises(ValueError, match=r"says the words .* says them 0 times; use"):
        own.encode(picture(), TEXTS, Recipe(template="chat"))
    said = wrap(*pp_chart2table(chat=image + "{{ messages[0]['content'][1]['text'] }}"))
    encoded = said.encode(picture(), TEXTS, Recipe(template="chat"))
    assert len(encoded.layout.tokens) == 256
    assert encoded.prefix_length == encoded.layout.tokens[-1] + 1
