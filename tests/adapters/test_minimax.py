"""MiniMax M3 and Muse Glimmer: layers that choose what a token sees, marks by the processor."""

import pytest
import torch
import transformers
from fastground.attention import attention_maps
from fastground.models import wrap
from fastground.types import Recipe
from test_adapters import TEXTS, asked, assert_answers_are_those_of_generate, eager_rows, picture
from tiny_minimax import FIRST, built, minimax_m3, muse_glimmer


def test_layers_that_choose_all_blocks_are_read_as_they_are():
    # Up to 6 blocks of 4 keys, of which a token may see 16.
    lvlm = wrap(*minimax_m3(block=4))
    assert lvlm.layers_with_heads == (0, 1, 2)
    apart = attention_maps(lvlm, picture(), TEXTS, recipe=Recipe(), packed=False)
    assert len(lvlm.encode(picture(), TEXTS, Recipe()).token_ids[1]) == 22
    want, sums = eager_rows(lvlm, *asked(lvlm))
    torch.testing.assert_close(apart.maps.flatten(2), want, atol=2e-6, rtol=0)
    torch.testing.assert_close(apart.sums, sums, atol=2e-6, rtol=0)
    together = attention_maps(lvlm, picture(), TEXTS, recipe=Recipe())
    torch.testing.assert_close(together.maps, apart.maps, atol=1e-5, rtol=0)


@pytest.mark.parametrize("packed", [True, False])
def test_more_tokens_than_layers_see_are_refused(packed):
    lvlm = wrap(*minimax_m3(block=4, blocks=2))
    message = r"at most 8 tokens a sequence to be captured, .* but got \d\d; give fewer"
    with pytest.raises(ValueError, match=message):
        attention_maps(lvlm, picture(), TEXTS, recipe=Recipe(), packed=packed)


@pytest.mark.parametrize("build", [minimax_m3, muse_glimmer])
def test_answers_are_those_of_generate(build):
    assert_answers_are_those_of_generate(wrap(*build(seed=3)), picture(), TEXTS[:2])


def test_the_image_stands_between_the_marks_of_the_processor():
    lvlm = wrap(*muse_glimmer())
    encoded = lvlm.encode(picture(), TEXTS[:1], Recipe())
    words = lvlm.processor.tokenizer.convert_ids_to_tokens(encoded.token_ids[0])
    first, last = (encoded.layout.tokens[i] for i in (0, -1))
    assert (words[first - 1], words[last + 1]) == ("<|image_start|>", "<|image_end|>")
    # 20 / 8 = 2.5 and 31 / 8 = 3.9: 2 x 3 is nearest to the shape of what is at most 3 x 4.
    assert encoded.layout.grid == (2, 3) and encoded.layout.all_tokens is None


def test_transformers_that_lets_images_see_each_other_is_refused():
    if tuple(map(int, transformers.__version__.split(".")[:2])) >= FIRST:
        pytest.skip("this transformers keeps them apart")
    with pytest.raises(ValueError, match=r"transformers must be .* newer for MiniMax M3, .* pip"):
        wrap(*built())
