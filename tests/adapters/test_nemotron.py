"""Nemotron 3 Omni: its marks, its grid, the layers with heads, its answers."""

import pytest
from fastground.attention import attention_maps
from fastground.models import wrap
from fastground.types import Recipe
from test_adapters import TEXTS, assert_answers_are_those_of_generate, picture
from tiny_nemotron import nemotron


def test_its_cells_are_merged_patches_between_two_marks():
    lvlm = wrap(*nemotron())
    encoded = lvlm.encode(picture((31, 20)), TEXTS[:1], Recipe())
    layout, ids = encoded.layout, encoded.token_ids[0].tolist()
    # 31 / 4 = 7.75, 20 / 4 = 5: 8 and 6 patches, even numbers of them.
    assert layout.grid == (3, 4) and layout.cell_size == (31 / 4, 20 / 3)
    first = layout.tokens[0]
    assert layout.tokens == tuple(range(first, first + 12)) and layout.all_tokens is None
    names = lvlm.processor.tokenizer.convert_ids_to_tokens([ids[first - 1], ids[first + 12]])
    assert names == ["<img>", "</img>"]


def test_heads_are_those_of_its_layers_with_attention():
    lvlm = wrap(*nemotron())
    maps = attention_maps(lvlm, picture(), TEXTS, recipe=Recipe())
    assert lvlm.layers_with_heads == (1, 3) and {head.layer for head in maps.heads} == {1, 3}


def test_answers_are_those_of_generate():
    assert_answers_are_those_of_generate(wrap(*nemotron()), picture(), TEXTS[:2])


def test_another_merging_than_the_models_is_refused():
    model, processor = nemotron()
    processor.image_processor.downsample_ratio = 1.0
    with pytest.raises(ValueError, match=r"one token a cell and 2 x 2 patches each, but for 3 x 4"):
        wrap(model, processor).encode(picture(), TEXTS[:1], Recipe())
