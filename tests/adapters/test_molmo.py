"""Molmo 2: both views' geometry by hand, who sees what, and what is refused."""

import json

import pytest
import torch
from fastground import models, packing
from fastground.attention import attention_maps
from fastground.models import load, wrap
from fastground.types import Recipe
from PIL import Image
from test_adapters import (
    TEXTS,
    asked,
    assert_answers_are_those_of_generate,
    eager_rows,
    picture,
)
from tiny_molmo import MARGIN, PATCH, SIDE, molmo2

WINDOW = (SIDE - 2 * MARGIN) * PATCH


def layout(lvlm, size, blocks="base"):
    return lvlm.encode(Image.new("RGB", size), ["x"], Recipe(blocks=blocks)).layout


def test_the_whole_image_is_one_crop_of_an_odd_number_of_patches():
    # 7 patches in pairs: 4 cells of 2/7 of the image, the last with its other half beyond it.
    lvlm = wrap(*molmo2())
    for size in ((70, 140), (1, 1), (4000, 3), (333, 500), (1919, 1079)):
        found = layout(lvlm, size)
        assert found.grid == (4, 4)
        assert found.cell_size == pytest.approx((size[0] * 2 / 7, size[1] * 2 / 7), rel=2e-6)
        assert found.origin == (0, 0)
        assert found.valid().all()


def test_the_crops_are_one_raster_with_each_patch_once():
    # Of at most four crops 61 x 97 pixels, 53 x 89 without margins, need 2 x 2 the least enlarged:
    # a canvas of 2 * 5 + 2 = 12 patches a side, 6 cells.
    lvlm = wrap(*molmo2())
    found = layout(lvlm, (61, 97), "stitch")
    side = 2 * WINDOW + 2 * MARGIN * PATCH
    assert side == 12 * PATCH and found.grid == (6, 6)
    assert found.cell_size == pytest.approx((61 / 6, 97 / 6), rel=2e-6)
    encoded = lvlm.encode(Image.new("RGB", (61, 97)), ["x"], Recipe(blocks="stitch"))
    words = lvlm.processor.tokenizer.convert_ids_to_tokens(encoded.token_ids[0])
    first = words.index("<im_start>") + 1
    for row in range(6):
        line = range(first + row * 7, first + row * 7 + 6)
        assert found.tokens[row * 6 : row * 6 + 6] == tuple(line)
        assert words[line.stop] == "<im_col>"
    assert len(found.all_tokens) == 4 * 4 + 6 * 6


def test_cells_of_three_patches_begin_before_the_image():
    # 7 patches in threes: 9 have room, one more on each side.
    found = layout(wrap(*molmo2(pooling_size=[3, 3])), (70, 140))
    assert found.grid == (3, 3)
    assert found.cell_size == pytest.approx((30, 60), rel=2e-6)
    assert found.origin == pytest.approx((-10, -20))


def test_the_image_and_its_marks_see_each_other_as_the_processor_says():
    lvlm = wrap(*molmo2())
    assert not lvlm.shares_prefix
    own = lvlm.processor(images=[picture()], text=["<|image|> the mug ."], return_tensors="pt")
    said = lvlm.token_inputs(own["input_ids"])["mm_token_type_ids"]
    assert torch.equal(said, own["mm_token_type_ids"])
    assert said.sum() == (own["image_grids"][0, ::2] * (own["image_grids"][0, 1::2] + 1)).sum() + 4
    # Without them every token looks back alone, and maps are other ones.
    inputs, rows, layouts = asked(lvlm)
    want, _ = eager_rows(lvlm, inputs, rows, layouts)
    inputs.pop("mm_token_type_ids")
    causal, _ = eager_rows(lvlm, inputs, rows, layouts)
    assert (causal - want).abs().max() > 1e-3


def test_patches_of_several_images_are_numbered_as_by_the_processor():
    lvlm = wrap(*molmo2())
    images = [picture((31, 20)), picture((20, 44), seed=1), picture((97, 61), seed=2)]
    own = lvlm.processor(
        images=[[image] for image in images], text=["<|image|>"] * 3, padding=True,
        return_tensors="pt",
    )  # fmt: skip
    parts = [lvlm.encode(image, ["x"], Recipe()) for image in images]
    inputs, _ = packing.separate(*parts)
    for name in ("image_token_pooling", "pixel_values", "image_grids"):
        assert torch.equal(inputs[name], own[name]), name
    assert int(inputs["image_token_pooling"].max()) == own["pixel_values"].shape[:2].numel() - 1


def test_every_prompt_begins_with_the_first_token():
    lvlm = wrap(*molmo2())
    for template in ("plain", "chat"):
        recipe = Recipe(template=template)
        before, after = lvlm.words(recipe)
        assert not before.startswith("<s>")
        [ids] = lvlm.encode(picture(), ["the mug"], recipe).token_ids
        own = lvlm.processor(
            images=[picture()], text=[f"{before}the mug.{after}"], return_tensors="pt"
        )
        assert ids.tolist() == own["input_ids"][0].tolist()
        assert ids.tolist().count(1) == 1 and ids[0] == 1
    lvlm.processor.tokenizer.bos_token = None  # the published ones have none: it is then the last
    assert lvlm.spelled("the mug", ".") == ("</s>the mug", ".")
    assert lvlm.encode(picture(), ["the mug"], Recipe()).token_ids[0][0] == 2


def test_answers_are_those_of_generate():
    assert_answers_are_those_of_generate(wrap(*molmo2()), picture(), TEXTS)


def test_expressions_do_not_see_each_other():
    lvlm = wrap(*molmo2())
    both = attention_maps(lvlm, picture(), TEXTS[:2], recipe=Recipe())
    for i, text in enumerate(TEXTS[:2]):
        alone = attention_maps(lvlm, picture(), [text], recipe=Recipe())
        torch.testing.assert_close(both.maps[i : i + 1], alone.maps, atol=1e-5, rtol=0)


def test_a_processor_of_another_pooling_is_refused():
    model, processor = molmo2()
    processor.replace_image_token = lambda *_, **__: "<low_res_im_start><im_patch><im_end>"
    with pytest.raises(ValueError, match="one image token for each of 4 x 4 and 4 x 6 cells"):
        layout(wrap(model, processor), (31, 20))


def test_what_runs_code_of_its_own_is_refused_with_the_way_out(tmp_path):
    # As the first Molmo is published: transformers does not know it, its code comes along.
    config = {
        "model_type": "molmo", "architectures": ["MolmoForCausalLM"],
        "auto_map": {"AutoConfig": "config_molmo.MolmoConfig"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    says = r"must need no code of its own.*'molmo'.*take Molmo 2"
    with pytest.raises(ValueError, match=says):
        load(tmp_path, device="cpu")
    config = json.loads(json.dumps(config).replace('"molmo"', '"some_other"'))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"must need no code of its own.*'some_other'.*wrap"):
        load(tmp_path, device="cpu")


def test_the_first_molmo_in_hand_is_refused_too():
    class Config:
        model_type, name_or_path = "molmo", "Molmo-7B-D-0924"

    class Model:
        config, training = Config(), False

    with pytest.raises(ValueError, match=r"'molmo' .*take Molmo 2"):
        models.wrap(Model(), None)
