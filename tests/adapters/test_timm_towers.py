"""FastVLM, Gemma 3n, PerceptionLM: what does not depend on their towers, which timm makes."""

import pytest
import torch
from fastground import models
from fastground.capture import capture
from fastground.models import wrap
from fastground.types import Recipe
from PIL import Image
from random_llava import CHAT, image_processor
from stand_in_tower import CELL
from test_adapters import (
    TEXTS,
    asked,
    assert_answers_are_those_of_generate,
    eager_rows,
    picture,
)
from tiny_gemma import gemma3n
from tiny_llava import fast_vlm
from tiny_perception_lm import perception_lm


def layout(lvlm, size, blocks="base"):
    return lvlm.encode(Image.new("RGB", size), ["x"], Recipe(blocks=blocks)).layout


@pytest.mark.parametrize("build", [fast_vlm, gemma3n, perception_lm])
def test_answers_are_those_of_generate(build):
    assert_answers_are_those_of_generate(wrap(*build(0)), picture(), TEXTS[:2])


@pytest.mark.parametrize("build", [fast_vlm, gemma3n])
def test_without_timm_loading_says_so(build, tmp_path):
    lvlm = wrap(*build(0))
    lvlm.model.save_pretrained(tmp_path)
    lvlm.processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="read: TimmWrapperModel requires the timm library"):
        models.load(tmp_path, device="cpu")


def test_fast_vlm_pads_what_its_published_processor_would_crop():
    model, processor = fast_vlm(0)
    colours = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    processor.image_processor = image_processor(5 * CELL, "CLIPImageProcessorPil", **colours)
    lvlm = wrap(model, processor)
    found = layout(lvlm, (100, 50))
    assert found.grid == (5, 5) and found.cell_size == (20, 20) and found.origin == (0, -25)
    made = lvlm.encode(Image.new("RGB", (100, 50), "white"), ["x"], Recipe()).image_inputs
    assert made["pixel_values"][0, 0, 0, 0] == 0 and made["pixel_values"][0, 0, 20, 20] == 1


def test_fast_vlm_has_no_system_sentence():
    model, processor = fast_vlm(0)
    processor.chat_template = CHAT
    assert wrap(model, processor).words(Recipe()) == ("<image>\n", "")


def test_fast_vlm_needs_the_number_of_pixels_of_a_token():
    model, processor = fast_vlm(0)
    processor.patch_size = None
    with pytest.raises(ValueError, match=r"patch_size must be .* but is None; set it, to 64"):
        wrap(model, processor)


def test_the_image_of_gemma_3n_sees_nothing_after_it():
    lvlm = wrap(*gemma3n(0))
    encoded = lvlm.encode(picture(), TEXTS, Recipe())
    states = []
    for ids in encoded.token_ids[:2]:
        with torch.no_grad():
            seen = lvlm.model.model(ids[None], **encoded.image_inputs)
        states.append(seen.last_hidden_state)
    prefix = encoded.prefix_length
    torch.testing.assert_close(states[0][:, :prefix], states[1][:, :prefix], atol=1e-5, rtol=0)


def test_the_last_layers_of_gemma_3n_have_the_keys_of_the_first():
    lvlm = wrap(*gemma3n(0))
    inputs, rows, layouts = asked(lvlm)
    want, _ = eager_rows(lvlm, inputs, rows, layouts)
    attention = [layer.self_attn for layer in lvlm.model.get_decoder().layers]
    assert [hasattr(own, "k_proj") for own in attention] == [True, True, False, False]
    for last in (2, 3):
        chosen = [(last, head) for head in range(4)]
        ask = {"heads": chosen, "rows": rows, "layouts": layouts, "stop_after": last}
        with torch.no_grad(), capture(lvlm.model, **ask) as captured:
            lvlm.model(**inputs, use_cache=False)
        found, own = captured.maps.maps.flatten(2), want[:, 4 * last : 4 * last + 4]
        torch.testing.assert_close(found, own, atol=2e-6, rtol=0)
        assert (found - want[:, 4 * last - 8 : 4 * last - 4]).abs().max() > 1e-3  # other queries


def test_the_tiles_of_perception_lm_are_one_raster():
    # 97 x 61 is enlarged most, of all canvases of up to six tiles, on two rows of three.
    lvlm = wrap(*perception_lm(0))
    assert layout(lvlm, (97, 61)).grid == (4, 4)
    found = layout(lvlm, (97, 61), "stitch")
    assert found.grid == (8, 12) and found.cell_size == (97 / 12, 61 / 8)
    first = found.all_tokens[0] + 16
    assert found.tokens[:5] == (first, first + 1, first + 2, first + 3, first + 16)


def test_perception_lm_may_see_an_image_whole_alone():
    lvlm = wrap(*perception_lm(0, vision_input_type="vanilla"))
    for blocks in ("base", "stitch"):
        found = layout(lvlm, (97, 61), blocks)
        assert found.grid == (4, 4) and found.all_tokens is None


def test_perception_lm_with_another_ratio_is_refused():
    model, processor = perception_lm(0)
    processor.pooling_ratio = 1
    with pytest.raises(ValueError, match="4 x 4 image tokens a tile, as the model pools 2 x 2"):
        layout(wrap(model, processor), (97, 61))
