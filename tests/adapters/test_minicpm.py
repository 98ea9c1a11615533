"""MiniCPM-V: cells of both views by hand, and what is refused."""

import pytest
import torch
import transformers
from fastground import packing
from fastground.models import wrap
from fastground.types import Recipe
from PIL import Image
from test_adapters import TEXTS, assert_answers_are_those_of_generate, picture
from tiny_minicpm import FIRST, built, minicpm, minicpm47


def layout(lvlm, size, blocks="base"):
    return lvlm.encode(Image.new("RGB", size), ["x"], Recipe(blocks=blocks)).layout


def test_the_whole_image_and_its_slices():
    # 61 x 97 is 2.57 views of 48 x 48: two rows of one, nearer to its shape than three are. Whole
    # it has sides of 38 and 60 pixels, 2 and 4 cells of 16; a slice of 61 x 48.5 has 53 and 42.
    lvlm = wrap(*minicpm())
    found = layout(lvlm, (61, 97))
    assert found.grid == (4, 2) and found.cell_size == (61 / 2, 97 / 4)
    assert len(found.all_tokens) == 8 + 2 * 9
    encoded = lvlm.encode(Image.new("RGB", (61, 97)), ["x"], Recipe(blocks="stitch"))
    assert encoded.layout.grid == (6, 3) and encoded.layout.cell_size == (61 / 3, 97 / 6)
    words = lvlm.processor.tokenizer.convert_ids_to_tokens(encoded.token_ids[0])
    first, last = (encoded.layout.tokens[i] for i in (0, -1))
    assert words[first - 1] == "<slice>" and words[last + 1] == "</slice>"
    assert words[first + 9 : first + 12] == ["</slice>", "\n", "<slice>"]
    beside = layout(lvlm, (97, 61), "stitch")
    # A line of the second slice begins behind all nine tokens of the first and two marks.
    assert beside.grid == (3, 6) and beside.tokens[3] == beside.tokens[0] + 9 + 2


@pytest.mark.parametrize("blocks", ["base", "stitch"])
def test_a_small_image_has_no_slices(blocks):
    found = layout(wrap(*minicpm()), (31, 20), blocks)
    assert found.grid == (2, 4) and found.all_tokens is None


def test_with_less_merged_cells_are_smaller():
    found = layout(wrap(*minicpm(downsample="4x")), (61, 97))
    assert found.grid == (8, 5) and found.cell_size == (61 / 5, 97 / 8)


def test_another_number_of_patches_a_token_is_refused():
    model, processor = minicpm()
    model.config.downsample_mode = "4x"
    with pytest.raises(ValueError, match="one image token for 2 x 2 patches and mark 2 slices"):
        layout(wrap(model, processor), (61, 97))


@pytest.mark.parametrize("size", [(31, 20), (61, 97), (97, 90)])
def test_answers_are_those_of_generate(size):
    assert_answers_are_those_of_generate(wrap(*minicpm()), picture(size), TEXTS[:2])


@pytest.mark.parametrize("size", [(31, 20), (61, 97), (97, 90)])
@pytest.mark.parametrize("template", ["plain", "chat"])
def test_of_4_7_positions_are_the_models_own(size, template):
    lvlm = wrap(*minicpm47())
    encoded = lvlm.encode(picture(size), TEXTS, Recipe(template=template))
    for ids in encoded.token_ids:
        given = lvlm.token_inputs(ids[None])
        want, _ = lvlm.model.model.get_rope_index(
            ids[None], target_sizes=encoded.image_inputs["target_sizes"], **given
        )
        prefix = encoded.prefix_length
        assert torch.equal(encoded.prefix_positions, want[:, 0, :prefix])
        words = packing.next_position(encoded, prefix) + torch.arange(len(ids) - prefix)
        assert torch.equal(words.expand(3, -1), want[:, 0, prefix:])
    assert_answers_are_those_of_generate(lvlm, picture(size), TEXTS[:2])


def test_transformers_that_mixes_up_the_views_is_refused():
    if tuple(map(int, transformers.__version__.split(".")[:2])) >= FIRST:
        pytest.skip("this transformers keeps them apart")
    with pytest.raises(ValueError, match=r"transformers must be 5\.19 or newer .* pip install -U"):
        wrap(*built())
