"""Mini-Gemini: the features where its own code would put them, and scaled as it was trained."""

import pytest
import torch
from fastground.attention import answers, attention_maps
from fastground.models import wrap
from fastground.types import Recipe
from originals import language
from PIL import Image
from tiny_mini_gemini import SIDE, mini_gemini
from torch.nn.functional import gelu, interpolate

IMAGE = Image.new("RGB", (32, 20), (200, 30, 30))


@torch.no_grad()
def test_logits_are_those_of_one_prompt_with_the_features_in_place():
    model, processor = mini_gemini(3)
    lvlm = wrap(model, processor, checkpoint="mini")
    encoded = lvlm.encode(IMAGE, ["the red mug"], Recipe())
    ids, cells = encoded.token_ids[0], encoded.layout.tokens
    pixels = encoded.image_inputs["pixel_values"]
    small = interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    features = model.encode_images(small, pixels)[0]
    weights, config = dict(model.named_parameters()), model.config.to_dict()
    table = weights["model.embed_tokens.weight"]
    whole = torch.cat([table[ids[: cells[0]]], features, table[ids[cells[-1] + 1 :]]])
    states = language(
        weights, config, whole * config["hidden_size"] ** 0.5, plus=1,
        act=lambda x: gelu(x, approximate="tanh"),
    )  # fmt: skip
    found = model(input_ids=ids[None], **encoded.image_inputs).logits[0]
    torch.testing.assert_close(found, states @ table.T, atol=1e-5, rtol=0)
    assert found.std() > 0.05


def test_cells_are_the_first_tower_s_patches_over_the_padded_image():
    lvlm = wrap(*mini_gemini(), checkpoint="mini")
    layout = lvlm.encode(IMAGE, ["x"], Recipe()).layout
    assert layout.grid == (4, 4) and layout.cell_size == (8.0, 8.0)
    assert layout.origin == (0.0, -6.0)
    box = layout.to_pixels(torch.tensor([[2.0, 1.0, 3.0, 2.0]]))
    assert box.tolist() == [[16.0, 2.0, 24.0, 10.0]]


def test_answers_word_by_word_and_from_a_model_wrapped_twice():
    model, processor = mini_gemini()
    said = answers(wrap(model, processor), IMAGE, ["the red mug", "a dog"], max_new_tokens=3)
    again = answers(
        wrap(model, processor), IMAGE, ["the red mug", "a dog"], max_new_tokens=3, packed=False
    )
    assert said == again
    assert len(model._forward_pre_hooks) == 1


def test_capture_leaves_the_tower_s_attention_alone():
    lvlm = wrap(*mini_gemini())
    tower = lvlm.model.get_vision_tower().config
    assert tower._attn_implementation == "sdpa"
    maps = attention_maps(lvlm, IMAGE, ["the red mug"], recipe=Recipe()).maps
    assert maps.shape == (1, 12, 4, 4)
    assert tower._attn_implementation == "sdpa"
    assert lvlm.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, p: setattr(p, "patch_size", 4), "patch_size must be 16 .*but got 4"),
        (lambda m, p: setattr(m.config, "image_grid", 2), "image_grid 1, but .* a larger grid"),
        (
            lambda m, p: (
                setattr(p.image_processor, "size", {"shortest_edge": 32})
                or setattr(p.image_processor, "crop_size", {"height": 32, "width": 32})
            ),
            "images of 64 pixels a side, config.image_size_aux, but made 32",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    model, processor = mini_gemini()
    change(model, processor)
    with pytest.raises(ValueError, match=message):
        wrap(model, processor).encode(IMAGE, ["x"], Recipe())


def test_another_class_of_that_name_is_refused():
    from transformers import GemmaForCausalLM

    model, processor = mini_gemini()
    plain = GemmaForCausalLM(model.config).eval()
    with pytest.raises(ValueError, match="GemmaForCausalLM has no encode_images; load it with"):
        wrap(plain, processor)
