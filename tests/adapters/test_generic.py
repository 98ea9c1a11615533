"""The generic adapter: the same as an own one where it says anything, else a reason."""

from inspect import signature

import pytest
import torch
from families import all_families
from fastground.attention import answers, attention_maps
from fastground.models import ADAPTERS, REFUSED, wrap
from fastground.models.generic import Generic
from fastground.types import Recipe
from PIL import Image
from random_llava import random_llava
from tiny_gemma import paligemma
from tiny_qwen_vl import exaone
from tiny_square import deepseek

TEXTS = ["the red mug", "a dog on the left of the small blue mug"]
OWN = [
    pytest.param(family, id=str(family))
    for family in all_families()
    if family.name in ADAPTERS and family.name != "phi4_multimodal"  # names no image token
]
TOLD = {
    "deepseek_vl", "deepseek_vl_hybrid", "janus", "vipllava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl",
    "glm4v", "glm46v", "glm_ocr", "glmga", "cosmos3_omni", "qwen2_5_omni_thinker",
    "qwen3_omni_moe_thinker", "video_llama_3", "cohere_compass", "exaone4_5",
}  # fmt: skip
"""Families with an adapter that the generic one can read as well; others it must refuse."""


def picture(size=(31, 20)):
    colours = torch.randint(0, 256, (*size[::-1], 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(colours.to(torch.uint8).numpy())


@pytest.mark.parametrize("family", OWN)
def test_the_generic_adapter_agrees_with_the_own_one_or_refuses(family):
    model, processor = family.build(0)
    own = wrap(model, processor)
    images = [Image.new("RGB", size) for size in family.sizes]
    try:
        generic = Generic(model, processor, "generic")
        found = [generic.look(image, Recipe()) for image in images]
    except ValueError as error:
        assert family.name not in TOLD
        assert f"'{family.name}' needs an adapter of its own" in str(error)
        return
    for image, seen in zip(images, found, strict=True):
        own_seen = own.look(image, Recipe())
        assert seen.ids == own_seen.ids
        got, want = seen.layout, own_seen.layout
        assert (got.grid, got.tokens, got.image_size) == (want.grid, want.tokens, want.image_size)
        assert got.cell_size == pytest.approx(want.cell_size)
        assert got.origin == pytest.approx(want.origin)
    recipe = Recipe()
    maps = attention_maps(own, picture(), TEXTS, recipe=recipe, packed=False)
    same = attention_maps(generic, picture(), TEXTS, recipe=recipe)
    torch.testing.assert_close(same.maps, maps.maps, atol=1e-5, rtol=0)
    assert answers(generic, picture(), TEXTS) == answers(own, picture(), TEXTS, packed=False)


def test_a_family_of_an_unknown_name_is_read_by_it():
    model, processor = exaone(0)
    own = wrap(model, processor).look(picture(), Recipe())
    model.config.model_type = "new"
    generic = wrap(model, processor)
    assert type(generic) is Generic
    assert generic.look(picture(), Recipe()).layout == own.layout


def test_what_stands_around_an_image_is_read_off_the_configuration():
    model, processor = exaone(0)
    around = "<|vision_start|><|image_pad|><|vision_end|>\n"
    assert Generic(model, processor, "named").words(Recipe()) == (around, "")
    model.config.vision_start_token_id = None
    assert Generic(model, processor, "unnamed").words(Recipe()) == ("<|image_pad|>\n", "")


def test_an_image_that_lies_elsewhere_is_seen():
    # The frame of a processor that pads is not that of one that squashes, whatever it claims.
    model, processor = deepseek(0)
    images = processor.image_processor
    pad, kind = images.pad_to_square, type(images)

    class Aside(kind):
        def pad_to_square(self, image, **more):
            return torch.from_numpy(pad(image, **more).copy()).roll(9, -2).numpy()

    images.__class__ = Aside
    with pytest.raises(ValueError, match=r"lie in a grid of 36 tokens as .* but Aside does not"):
        Generic(model, processor, "aside")


def test_patches_in_another_order_are_seen():
    model, processor = exaone(0)
    kind = type(processor.image_processor)

    class Columns(kind):
        def __call__(self, *args, **more):
            made = super().__call__(*args, **more)
            made["pixel_values"] = made["pixel_values"].flip(0)
            return made

    processor.image_processor.__class__ = Columns
    with pytest.raises(ValueError, match="as a known image processor lays it, but Columns"):
        Generic(model, processor, "columns")


def test_positions_that_change_with_the_place_are_refused():
    # As where a model finds an image by what stands before it, and is shown its tokens alone.
    model, processor = next(f for f in all_families() if f.name == "qwen2_5_vl").build(0)
    count = model.model.get_rope_index

    def alone(input_ids, **more):
        positions, rest = count(input_ids, **more)
        with_words = input_ids[0, -1] == processor.tokenizer.convert_tokens_to_ids("a")
        return positions if with_words else torch.zeros_like(positions), rest

    alone.__signature__ = signature(count)
    Generic(model, processor, "as it is")
    model.model.get_rope_index = alone
    with pytest.raises(ValueError, match="must count positions on from an image's, the same"):
        Generic(model, processor, "alone")


def test_a_number_of_tokens_that_fits_no_grid_is_refused():
    model, processor = deepseek(0)
    processor.num_image_tokens = 35
    with pytest.raises(ValueError, match=r"of 4 pixels a side .* 24 x 24 pixels became 35 tokens"):
        Generic(model, processor, "odd")
    # 25 is a square number, but no configuration says that it is the grid's.
    processor.num_image_tokens = 25
    with pytest.raises(ValueError, match="became 25 tokens; 'deepseek_vl' needs an adapter"):
        Generic(model, processor, "odd")


def test_a_processor_that_writes_words_is_refused():
    with pytest.raises(ValueError, match="leave the words as they are, but PaliGemmaProcessor"):
        Generic(*paligemma(0), "words")


def test_marks_of_another_kind_are_refused():
    [ernie] = [family for family in all_families() if family.name == "ernie4_5_vl_moe"]
    with pytest.raises(ValueError, match="but also makes moe_mm_token_type_ids"):
        Generic(*ernie.build(0), "marks")


@pytest.mark.parametrize("name", REFUSED)
def test_families_without_a_grid_are_refused_with_the_reason(name, tmp_path):
    model, processor = random_llava(0)
    model.config.model_type = name
    with pytest.raises(ValueError, match=rf"a grid of tokens, but '{name}' \w+ ") as error:
        wrap(model, processor)
    assert REFUSED[name] in str(error.value)
    assert name not in ADAPTERS


def test_encoders_with_decoders_are_refused_whatever_their_name():
    model, processor = random_llava(0)
    model.config.model_type, model.config.is_encoder_decoder = "new", True
    with pytest.raises(ValueError, match="'new' has an encoder for the image"):
        wrap(model, processor)
