"""Step 3.7: cells of both views by hand, heads of the layers without a window, what is refused."""

import pytest
import torch
from fastground.attention import attention_of_encoded
from fastground.capture import capture
from fastground.models import wrap
from fastground.types import Recipe
from PIL import Image
from test_adapters import TEXTS, asked, assert_answers_are_those_of_generate, picture
from tiny_step import PATCH, step


def layout(lvlm, size, blocks):
    return lvlm.encode(Image.new("RGB", size), ["x"], Recipe(blocks=blocks)).layout


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((31, 20), (4, 8)),  # long for what fits the whole: two tiles of 20, of 4 x 4 tokens each
        ((97, 61), (8, 12)),  # 97 = 3 x 32 + 1 and 61 = 32 + 29: three tiles by two
        ((48, 47), (6, 6)),  # fits the whole, and is not long
    ],
)
def test_tiles_lie_evenly_over_the_image(size, grid):
    lvlm = wrap(*step())
    found, whole = layout(lvlm, size, "stitch"), layout(lvlm, size, "base")
    assert found.grid == grid and found.cell_size == (size[0] / grid[1], size[1] / grid[0])
    assert whole.grid == (6, 6) and whole.cell_size == (size[0] / 6, size[1] / 6)
    assert whole.origin == (-0.375 * size[0] / 6, -0.375 * size[1] / 6)
    every = 36 if grid == (6, 6) else 36 + grid[0] * grid[1]
    assert len(whole.all_tokens or whole.tokens) == every


def test_a_token_sees_most_around_the_middle_of_its_cell():
    # Where the tower's answer comes from, by its gradients: in patches from a cell's nominal edge.
    found = []
    for seed in range(4):
        tower = step(seed)[0].model.vision_model
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randn(1, 3, 96, 96, generator=generator, requires_grad=True)
        tokens = tower(pixels).last_hidden_state[0].unflatten(0, (12, 12))
        for row, column in ((4, 4), (5, 7), (7, 5)):
            (back,) = torch.autograd.grad(tokens[row, column].norm(), pixels, retain_graph=True)
            share = back[0].square().sum(0)
            middle = (torch.arange(96) + 0.5) / PATCH
            share = share / share.sum()
            found += [middle @ share.sum(1) - 4 * row, middle @ share.sum(0) - 4 * column]
    layout_says = 2 - 1.5
    assert abs(float(torch.stack(found).mean()) - layout_says) < 0.25


def test_marks_stand_between_the_tiles():
    lvlm = wrap(*step())
    encoded = lvlm.encode(Image.new("RGB", (97, 61)), ["x"], Recipe(blocks="stitch"))
    words = lvlm.processor.tokenizer.convert_ids_to_tokens(encoded.token_ids[0])
    first = encoded.layout.tokens[0]
    assert words[first - 1] == "<patch_start>"
    # A line of the second tile begins behind all of the first and two marks.
    assert encoded.layout.tokens[4] == first + 16 + 2
    # The second row's first tile stands behind three with two marks each and a new line.
    assert encoded.layout.tokens[4 * 12] == first + 3 * (16 + 2) + 1
    assert words[first + 3 * (16 + 2) - 1] == "<patch_newline>"


def test_a_thin_image_is_filled_up_to_a_square():
    lvlm = wrap(*step())
    found, whole = layout(lvlm, (160, 24), "stitch"), layout(lvlm, (160, 24), "base")
    assert found.grid == (20, 20) and found.cell_size == (8, 8)
    assert whole.cell_size == (160 / 6, 160 / 6)
    # Lines of cells begin at -3, 5, 13 and 21, so that the fourth has its middle below the image.
    assert found.valid().sum(0).tolist() == [3] * 20 and whole.valid().sum() == 6


def test_heads_are_those_of_the_layers_with_as_many_as_full_attention_has():
    lvlm = wrap(*step())
    assert lvlm.layers_with_heads == (0, 2) and lvlm.architecture["num_heads"] == 4
    assert not lvlm.shares_prefix
    inputs, rows, layouts = asked(lvlm)
    with torch.no_grad(), capture(lvlm.model, rows=rows, layouts=layouts) as captured:
        lvlm.model(**inputs)
    assert [*captured.maps.heads] == [(n, head) for n in (0, 2) for head in range(4)]
    message = r"heads must be in layers with attention heads \(0, 2\), but got L1 H5"
    with pytest.raises(ValueError, match=r"heads 0 to 3, but got L1 H5"):
        capture(lvlm.model, heads=[(1, 5)])
    with pytest.raises(ValueError, match=message.replace("H5", "H0")):
        capture(lvlm.model, heads=[(1, 0)])


@pytest.mark.parametrize("size", [(31, 20), (40, 40)])
def test_answers_are_those_of_generate(size):
    assert_answers_are_those_of_generate(wrap(*step()), picture(size), TEXTS[:2])


def test_other_sizes_than_the_model_s_are_refused():
    model, processor = step()
    model.config.vision_config.patch_size = 4
    with pytest.raises(ValueError, match="3 x 3 image tokens of the whole image and 2 x 2 of each"):
        layout(wrap(model, processor), (97, 61), "base")


@pytest.mark.parametrize("packed", [True, False])
def test_images_with_tiles_and_without_share_a_forward(packed):
    lvlm, recipe = wrap(*step()), Recipe()
    encoded = [lvlm.encode(picture(size), TEXTS[:2], recipe) for size in ((40, 40), (97, 61))]
    assert ["pixel_values_local" in e.image_inputs for e in encoded] == [False, True]
    for each in (encoded, encoded[::-1]):
        many = attention_of_encoded(lvlm, each, recipe=recipe, packed=packed, max_tokens=1 << 16)
        for found, one in zip(many, each, strict=True):
            (want,) = attention_of_encoded(lvlm, [one], recipe=recipe, packed=packed)
            torch.testing.assert_close(found.maps, want.maps, atol=1e-5, rtol=0)
