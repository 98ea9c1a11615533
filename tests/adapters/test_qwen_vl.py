"""What is special to Qwen-VL and its kin: their resizing, their positions, their errors."""

from inspect import signature

import pytest
import torch
from fastground import packing
from fastground.attention import answers, attention_maps
from fastground.models import wrap
from fastground.models.generic import Generic
from fastground.types import Recipe
from test_adapters import TEXTS, made, picture
from tiny_qwen_vl import FAMILIES
from wrapped import Peft

EACH = [pytest.param(family, id=str(family)) for family in FAMILIES]


def of(name):
    return made(next(family for family in FAMILIES if family.name == name))


@pytest.mark.parametrize("family", EACH)
@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((31, 20), (2, 4)),  # 20 / 8 = 2.5 is rounded to even
        ((97, 61), (6, 10)),  # too many pixels: 61 / 1.202 / 8 = 6.3 and 97 / 1.202 / 8 = 10.1
        ((20, 30), (4, 2)),
    ],
)
def test_cells_by_hand(family, size, grid):
    layout = made(family).encode(picture(size), TEXTS[:1], Recipe()).layout
    assert layout.grid == grid
    assert layout.all_tokens is None
    assert layout.origin == (0, 0)
    assert layout.cell_size == (size[0] / grid[1], size[1] / grid[0])
    assert layout.tokens == tuple(range(layout.tokens[0], layout.tokens[0] + grid[0] * grid[1]))


@pytest.mark.parametrize("family", EACH)
def test_positions_are_the_models_own(family):
    lvlm = made(family)
    encoded = lvlm.encode(picture((44, 20)), TEXTS, Recipe())
    inputs, _ = packing.separate(encoded)
    if lvlm.positions(encoded.image_inputs) is None:
        names = ("exaone4_5", "hyperclovax_vision_v2", "lfm3_vl", "video_llama_3")
        assert family.name in names
        assert "position_ids" not in inputs
        return
    seen = inputs["attention_mask"].bool()
    assert not seen.all()
    marks = (inputs["input_ids"] == lvlm.model.config.image_token_id).int()
    given = {**inputs, "mm_token_type_ids": marks}
    takes = signature(lvlm.count_positions).parameters
    want, _ = lvlm.count_positions(**{name: x for name, x in given.items() if name in takes})
    assert torch.equal(inputs["position_ids"][:, seen], want[:, seen])
    last = [packing.next_position(encoded, len(ids)) - 1 for ids in encoded.token_ids]
    assert want.amax((0, 2)).tolist() == last


@pytest.mark.parametrize("family", EACH)
def test_answers_are_what_the_model_generates(family):
    lvlm = made(family)
    tokenizer, recipe = lvlm.processor.tokenizer, Recipe(template="chat")
    for text, found in zip(TEXTS, answers(lvlm, picture(), TEXTS, recipe=recipe), strict=True):
        before, after = lvlm.words(recipe)
        inputs = lvlm.processor(
            images=[picture()], text=[f"{before}{text}.{after}"], return_tensors="pt"
        )
        if "mm_token_type_ids" in signature(lvlm.model.forward).parameters:  # not made by all
            marks = (inputs["input_ids"] == lvlm.image_token_id).int()
            inputs.setdefault("mm_token_type_ids", marks)
        whole = lvlm.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        said = whole[0, inputs["input_ids"].shape[1] :].tolist()
        if tokenizer.eos_token_id in said:
            said = said[: said.index(tokenizer.eos_token_id)]
        assert found == tuple(tokenizer.decode(said, skip_special_tokens=True).split())


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen2_5_omni_thinker"])
@pytest.mark.parametrize("adapter", [None, Generic])
def test_inside_peft_s_wrapper_positions_are_counted_all_the_same(name, adapter):
    # Its `.model` is all of the model inside, and its forward names no arguments.
    plain = of(name)
    around = Peft(plain.model)
    lvlm = wrap(around, plain.processor)
    if adapter is not None:
        lvlm = adapter(around, plain.processor, "generic")
    want = attention_maps(plain, picture(), TEXTS, recipe=Recipe(), packed=False)
    for packed in (False, True):
        found = attention_maps(lvlm, picture(), TEXTS, recipe=Recipe(), packed=packed)
        torch.testing.assert_close(found.maps, want.maps, atol=1e-5, rtol=0)
    assert answers(lvlm, picture(), TEXTS) == answers(plain, picture(), TEXTS)


def test_the_image_stands_between_its_tokens():
    assert of("qwen3_vl").marked == "<|vision_start|><|image_pad|><|vision_end|>"
    assert of("glm4v").marked == "<|begin_of_image|><|image|><|end_of_image|>"
    assert of("video_llama_3").marked == "<|image_pad|>"


def test_tokens_that_do_not_fit_the_grid_are_an_error():
    lvlm, image = of("qwen2_5_vl"), picture()
    ids, inputs = lvlm.read(image)
    with pytest.raises(ValueError, match=r"one token a cell .* made 7 tokens and 32 patches"):
        lvlm.layout(image, ids[:-1], inputs, Recipe())
