"""Idefics3 and SmolVLM: which tile is where, and what is refused."""

from unittest.mock import patch

import pytest
from fastground.models import load, wrap
from fastground.types import Recipe
from PIL import Image
from tiny_idefics import SCALE, TILE, granite_docling, idefics

SIDE = TILE // 4 // SCALE


def layout(lvlm, size, blocks="base"):
    return lvlm.encode(Image.new("RGB", size, (10, 90, 200)), ["x"], Recipe(blocks=blocks)).layout


@pytest.fixture(scope="module")
def lvlm():
    return wrap(*idefics("idefics3", "Idefics3"))


def test_tiles_are_stitched_in_the_order_of_their_names(lvlm):
    # 97 x 61 is resized to 72 x 46 and stretched to 72 x 48: 2 rows of 3 tiles, each 3 x 3 tokens.
    found = layout(lvlm, (97, 61), "stitch")
    assert found.grid == (2 * SIDE, 3 * SIDE)
    assert found.cell_size == (97 / 9, 61 / 6)
    assert found.origin == (0, 0)
    encoded = lvlm.encode(Image.new("RGB", (97, 61)), ["x"], Recipe(blocks="stitch"))
    words = lvlm.processor.tokenizer.convert_ids_to_tokens(encoded.token_ids[0])
    for row in range(2):
        for column in range(3):
            named = words.index(f"<row_{row + 1}_col_{column + 1}>")
            for y in range(SIDE):
                cell = (row * SIDE + y) * found.grid[1] + column * SIDE
                assert found.tokens[cell : cell + SIDE] == tuple(
                    named + 1 + y * SIDE + x for x in range(SIDE)
                )
    whole = words.index("<global-img>")
    assert max(found.tokens) < whole
    assert found.all_tokens[-SIDE * SIDE :] == tuple(range(whole + 1, whole + 1 + SIDE * SIDE))
    assert set(found.tokens) < set(found.all_tokens)


def test_the_whole_image_is_the_last_square(lvlm):
    found = layout(lvlm, (97, 61))
    assert found.grid == (SIDE, SIDE)
    assert found.cell_size == (97 / SIDE, 61 / SIDE)
    assert found.tokens == found.all_tokens[-SIDE * SIDE :]
    assert len(found.all_tokens) == (2 * 3 + 1) * SIDE * SIDE


def test_what_is_left_of_a_tile_has_no_cell():
    rest = wrap(*idefics("idefics3", "Idefics3", tile=TILE + 2))
    assert layout(rest, (78, 52)).cell_size == pytest.approx((78 * 24 / 26 / 3, 52 * 24 / 26 / 3))
    assert layout(rest, (78, 52), "stitch").cell_size == (78 / 9, 52 / 6)


@pytest.mark.parametrize("settings", [{"size": {"longest_edge": TILE}}, {"do_image_splitting": 0}])
def test_one_tile_is_the_whole_image(settings):
    alone = wrap(*idefics("idefics3", "Idefics3", **settings))
    base, stitch = layout(alone, (97, 61)), layout(alone, (97, 61), "stitch")
    assert base == stitch
    assert base.grid == (SIDE, SIDE)
    assert base.all_tokens is None


def test_tiles_beyond_the_names_that_are_tokens():
    # The seventh column's name is several tokens or none in published tokenizers: here <unk>.
    model, processor = idefics("idefics3", "Idefics3", size={"longest_edge": 7 * TILE})
    with pytest.raises(ValueError, match="name every tile but the last, but made 261 for 29 tiles"):
        layout(wrap(model, processor), (700, 390))


def test_a_processor_of_another_model_is_refused():
    model, processor = idefics("idefics3", "Idefics3")
    processor.image_seq_len = 4
    with pytest.raises(ValueError, match="9 image tokens a tile of 24 x 24 pixels"):
        layout(wrap(model, processor), (97, 61))


@pytest.mark.parametrize("family", [("idefics3", "Idefics3"), ("smolvlm", "SmolVLM")])
def test_the_chat_template_is_the_processors(family):
    lvlm = wrap(*idefics(*family))
    assert lvlm.chat() == ("user:<image>", "<end_of_utterance>\nassistant:")


@pytest.mark.parametrize("family", [("idefics3", "Idefics3"), ("smolvlm", "SmolVLM")])
def test_a_checkpoint_is_loaded_without_torchvision(family, tmp_path):
    model, processor = idefics(*family)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    # SmolVLM's processor asks for num2words, which only its videos need.
    name = f"transformers.models.{family[0]}.processing_{family[0]}.num2words"
    with patch(name, str, create=True):
        loaded = load(tmp_path, device="cpu")
    wrapped = wrap(model, processor)
    assert type(loaded.processor.image_processor) is type(processor.image_processor)
    image, recipe = Image.new("RGB", (97, 61), (10, 90, 200)), Recipe(template="chat")
    found, want = (one.encode(image, ["x"], recipe) for one in (loaded, wrapped))
    assert found.layout == want.layout
    assert found.token_ids[0].tolist() == want.token_ids[0].tolist()
    assert found.image_inputs["pixel_values"].equal(want.image_inputs["pixel_values"])


@pytest.mark.parametrize(("fine", "side"), [(False, 3), (True, 6)])
def test_the_only_tile_of_granite_docling_is_the_whole_image(fine, side):
    lvlm = wrap(*granite_docling(fine_route=fine))
    for blocks in ("base", "stitch"):
        found = layout(lvlm, (24, 24), blocks)
        assert found.grid == (side, side) and found.all_tokens is None
    base, stitch = (layout(lvlm, (48, 24), blocks) for blocks in ("base", "stitch"))
    assert base.grid == (side, side) and base.cell_size == (48 / side, 24 / side)
    assert stitch.grid == (side, 2 * side) and stitch.cell_size == (24 / side, 24 / side)
    assert len(stitch.all_tokens) == 3 * side**2
    assert base.tokens == stitch.all_tokens[2 * side**2 :]
