"""Fuyu: its lines by hand, at its own size and made smaller, and what is refused."""

import pytest
from fastground.models import wrap
from fastground.types import Recipe
from test_adapters import TEXTS, assert_answers_are_those_of_generate, picture
from tiny_fuyu import fuyu


def test_answers_are_those_of_generate():
    assert_answers_are_those_of_generate(wrap(*fuyu(0)), picture(), TEXTS[:2])


def test_a_small_image_keeps_its_size():
    layout = wrap(*fuyu(0)).encode(picture((31, 20)), TEXTS[:1], Recipe()).layout
    assert layout.grid == (3, 4) and layout.cell_size == (8, 8) and layout.origin == (0, 0)
    assert layout.tokens == (0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13)


def test_a_large_image_is_made_smaller_and_not_stretched():
    # 97 x 61 fits 64 x 48 where it is 64 x 40: 5 lines of 8.
    layout = wrap(*fuyu(0)).encode(picture((97, 61)), TEXTS[:1], Recipe()).layout
    assert layout.grid == (5, 8)
    assert layout.cell_size == pytest.approx((97 / 8, 61 / 5))


def test_the_words_follow_as_its_processor_writes_them():
    lvlm = wrap(*fuyu(0))
    ids = lvlm.encode(picture((8, 8)), ["the red mug"], Recipe()).token_ids[0]
    assert lvlm.processor.tokenizer.convert_ids_to_tokens(ids.tolist()) == [
        "|SPEAKER|", "|NEWLINE|", "<s>", "▁the", "▁red", "▁mug", ".", "<0x04>"
    ]  # fmt: skip


def test_a_chat_is_refused():
    with pytest.raises(ValueError, match="template must be 'plain' for Fuyu, which knows no chat"):
        wrap(*fuyu(0)).encode(picture(), TEXTS, Recipe(template="chat"))


def test_another_size_of_patches_is_refused():
    model, processor = fuyu(0)
    lvlm = wrap(model, processor)
    seen = lvlm.look(picture(), Recipe())
    processor.image_processor.size = {"height": 16, "width": 16}
    with pytest.raises(ValueError, match=r"2 lines of 2 image tokens, but made 12 in 3; use"):
        lvlm.layout(picture(), seen.ids, seen.inputs, Recipe())
