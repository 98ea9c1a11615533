"""Pixtral's tower: rows of cells of an image in its own shape, and what is refused."""

import pytest
from fastground.attention import attention_maps
from fastground.models import ADAPTERS, wrap
from fastground.models.llava import Llava
from fastground.models.pixtral import Pixtral
from fastground.types import Recipe
from PIL import Image
from tiny_pixtral import lighton_ocr, mistral3, mistral_large4, pixtral


def encoded(lvlm, size):
    return lvlm.encode(Image.new("RGB", size, (10, 90, 200)), ["x"], Recipe())


def test_a_row_of_tokens_a_row_of_cells():
    # 97 x 61 in at most 64 x 64: 64 x 40, so 8 x 5 cells of 8 pixels.
    lvlm = wrap(*mistral3())
    found = encoded(lvlm, (97, 61))
    assert found.layout.grid == (5, 8)
    assert found.layout.cell_size == (97 / 8, 61 / 5)
    words = lvlm.processor.tokenizer.convert_ids_to_tokens(found.token_ids[0])
    first = words.index("[IMG]")
    for row in range(5):
        cells = range(first + row * 9, first + row * 9 + 8)
        assert found.layout.tokens[row * 8 : row * 8 + 8] == tuple(cells)
        assert words[cells[-1] + 1] == ("[IMG_END]" if row == 4 else "[IMG_BREAK]")
    assert found.layout.all_tokens is None


def test_rows_without_words_between_them():
    found = encoded(wrap(*lighton_ocr()), (97, 61)).layout
    assert found.grid == (5, 8)
    assert found.tokens == tuple(range(found.tokens[0], found.tokens[0] + 40))


def test_a_small_image_is_stretched_to_whole_cells():
    # 9 x 7 is not made larger but for the rest of a cell: 12 x 8 in patches of 4.
    found = encoded(wrap(*pixtral()), (9, 7)).layout
    assert found.grid == (2, 3)
    assert found.cell_size == (9 / 3, 7 / 2)


def test_an_image_that_is_not_resized_keeps_its_pixels():
    found = encoded(wrap(*mistral3(do_resize=False)), (45, 30)).layout
    assert found.grid == (3, 5)  # of 8 pixels; the rest at the right and below has no cell
    assert found.cell_size == (8, 8)


def test_the_tower_chooses_the_adapter():
    assert isinstance(wrap(*pixtral()), Pixtral)
    assert ADAPTERS["llava"] is Llava


def test_what_does_not_fit_is_refused():
    model, processor = mistral3()
    processor.spatial_merge_size = 1
    with pytest.raises(ValueError, match="5 x 8 of 40 x 64, but made 160"):
        encoded(wrap(model, processor), (97, 61))
    with pytest.raises(ValueError, match="'full' with a Pixtral tower"):
        wrap(*pixtral(strategy="default"))
    with pytest.raises(ValueError, match="do_center_crop is set"):
        wrap(*mistral3(do_center_crop=True))


def test_a_window_of_the_language_model_forbids_sharing():
    assert wrap(*mistral3()).shares_prefix
    assert not wrap(*mistral3(window=32)).shares_prefix


@pytest.mark.parametrize("packed", [True, False])
def test_more_tokens_than_an_index_chooses_are_refused(packed):
    lvlm = wrap(*mistral_large4(topk=8))
    assert lvlm.layers_with_heads == (0, 1, 2) and lvlm.shares_prefix
    message = r"at most 8 tokens a sequence to be captured, .* but got \d\d; give fewer"
    with pytest.raises(ValueError, match=message):
        attention_maps(lvlm, Image.new("RGB", (31, 20)), ["a", "x"], recipe=Recipe(), packed=packed)
