"""Chameleon, Emu3 and Apertus: their tokens by hand, their frames, and who shares a forward."""

import pytest
import torch
from fastground import packing
from fastground.models import wrap
from fastground.types import Recipe
from PIL import Image
from test_adapters import TEXTS, assert_answers_are_those_of_generate, picture
from tiny_codes import apertus, chameleon, emu3
from tiny_llava import video_llava

SIZES = [(31, 20), (20, 44), (31, 20)]


@pytest.mark.parametrize("build", [chameleon, emu3, apertus])
def test_answers_are_those_of_generate(build):
    assert_answers_are_those_of_generate(wrap(*build(0)), picture(), TEXTS[:2])


def test_the_cells_of_chameleon_are_between_two_marks():
    lvlm = wrap(*chameleon(0))
    encoded = lvlm.encode(picture((64, 32)), TEXTS[:1], Recipe())
    layout, ids = encoded.layout, encoded.token_ids[0].tolist()
    assert layout.grid == (8, 8) and layout.cell_size == (8, 4) and layout.origin == (0, 0)
    first = layout.tokens[0]
    assert layout.tokens == tuple(range(first, first + 64))
    names = lvlm.processor.tokenizer.convert_ids_to_tokens
    assert names([ids[first - 1], ids[first + 64], ids[-1]]) == ["<start>", "<end>", "<sep>"]


def test_what_the_published_processor_of_chameleon_would_crop_is_seen():
    model, processor = chameleon(0)
    side = {"height": 32, "width": 32}
    processor.image_processor = type(processor.image_processor)(
        size={"shortest_edge": 32}, crop_size=side
    )
    lvlm = wrap(model, processor)
    encoded = lvlm.encode(Image.new("RGB", (64, 32), "black"), TEXTS[:1], Recipe())
    layout, pixels = encoded.layout, encoded.image_inputs["pixel_values"][0, 0]
    assert layout.cell_size == (8, 8) and layout.origin == (0, -16)
    assert pixels.shape == (32, 32)
    assert (pixels[12:20] < -0.9).all() and (pixels[:4] > 0.9).all() and (pixels[28:] > 0.9).all()


def test_the_lines_of_emu3_end_with_a_token():
    lvlm = wrap(*emu3(0))
    encoded = lvlm.encode(picture((97, 61)), TEXTS[:1], Recipe())
    layout, ids = encoded.layout, encoded.token_ids[0].tolist()
    # At most 64 squares: 61 / 1.202 / 8 = 6.3 and 97 / 1.202 / 8 = 10.1.
    assert layout.grid == (6, 10) and layout.cell_size == (9.7, 61 / 6)
    first = layout.all_tokens[0]
    assert layout.all_tokens == tuple(range(first, first + 6 * 11))
    assert layout.tokens[:11] == (*range(first, first + 10), first + 11)
    assert ids[0] == lvlm.processor.tokenizer.bos_token_id and ids.count(ids[0]) == 1


def test_between_the_lines_of_apertus_is_a_token_that_is_not_the_images():
    lvlm = wrap(*apertus(0))
    encoded = lvlm.encode(picture((97, 61)), TEXTS[:1], Recipe())
    layout, ids = encoded.layout, encoded.token_ids[0].tolist()
    assert layout.grid == (6, 10) and layout.cell_size == (9.7, 61 / 6)
    first = layout.tokens[0]
    assert layout.all_tokens is None
    assert layout.tokens == tuple(first + row * 11 + i for row in range(6) for i in range(10))
    names = lvlm.processor.tokenizer.convert_ids_to_tokens(ids)
    assert names[first - 5 : first] == ["<start>", "6", "*", "10", "<wrapper>"]
    assert names[first + 10] == "<line>" and names[layout.tokens[-1] + 1] == "<end>"


def test_a_chat_that_begins_with_bos_keeps_one():
    model, processor = emu3(0)
    processor.chat_template = "<s>" + processor.chat_template
    lvlm = wrap(model, processor)
    ids = lvlm.encode(picture(), TEXTS[:1], Recipe(template="chat")).token_ids[0].tolist()
    assert ids[0] == lvlm.processor.tokenizer.bos_token_id and ids.count(ids[0]) == 1


def test_another_autoencoder_than_the_processors_is_refused():
    model, processor = emu3(0)
    processor.downsample_ratio = 4
    with pytest.raises(ValueError, match=r"one image token for 8 x 8 pixels and 1 a line, but"):
        wrap(model, processor).encode(picture(), TEXTS[:1], Recipe())


@pytest.mark.parametrize(("build", "groups"), [(chameleon, [3]), (emu3, [1, 1, 1]), (apertus, [3])])
def test_images_of_emu3_share_a_forward_where_they_have_one_size(build, groups):
    lvlm = wrap(*build(0))
    encoded = [lvlm.encode(picture(size), TEXTS[:1], Recipe()) for size in SIZES]
    found = [len(batch) for batch in packing.batches(encoded)]
    assert found == groups
    same = packing.batches([encoded[0], encoded[2], encoded[1]])
    assert [len(batch) for batch in same] == ([3] if groups == [3] else [2, 1])


@pytest.mark.parametrize("build", [emu3, video_llava])
@pytest.mark.parametrize("height", [1, 3])
def test_lines_that_a_processor_takes_for_colours_are_refused(build, height):
    lvlm = wrap(*build(0))
    with pytest.raises(ValueError, match=rf"more than 3 pixels high, .* is 9 x {height}; enlarge"):
        lvlm.encode(picture((9, height)), TEXTS[:1], Recipe())
    assert lvlm.encode(picture((9, 2)), TEXTS[:1], Recipe()).layout.valid().any()


@torch.no_grad()
def test_padding_would_change_the_words_of_emu3():
    # What the rule above is for: a code of the same square, with black below and beside.
    vq = wrap(*emu3(0)).model.model.vqmodel
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 32, 32, generator=generator)
    alone = vq.encode(pixels, [(32, 32)]).image_tokens[0]
    padded = vq.encode(torch.nn.functional.pad(pixels, (0, 32, 0, 32)), [(32, 32)]).image_tokens[0]
    assert alone.shape == padded.shape and (alone != padded).any()
