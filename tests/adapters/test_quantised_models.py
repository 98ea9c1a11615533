"""Models whose weights are truly quantised, by bitsandbytes on the CPU: 8 and 4 bits a weight."""

import logging

import pytest
import small_world
import torch
from fastground import Grounder, models
from fastground.attention import answers, attention_maps
from fastground.capture import capture
from fastground.discovery import collect
from fastground.types import Recipe
from random_llava import random_llava
from test_adapters import TEXTS, asked, eager_rows, picture
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

pytest.importorskip("bitsandbytes")

BITS = {
    "int8": {"load_in_8bit": True},
    "nf4": {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        # The CPU takes rows of whole blocks of 64 weights, which these have not.
        "llm_int8_skip_modules": [
            "model.vision_tower", "model.multi_modal_projector", "down_proj", "lm_head"
        ],
    },
}  # fmt: skip
KINDS = {"int8": "Int8Params", "nf4": "Params4bit"}


@pytest.fixture(params=BITS)
def quantised(request, tmp_path):
    """(model, processor), of which as good as all weights of the decoder are whole numbers."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # has a word on every cast
    model, processor = random_llava(seed=1, grid=6)
    model.save_pretrained(tmp_path)
    found = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**BITS[request.param]),
        device_map={"": "cpu"}, dtype=torch.float32,
    )  # fmt: skip
    weight = found.model.language_model.layers[0].self_attn.q_proj.weight
    assert type(weight).__name__ == KINDS[request.param]
    assert weight.dtype in (torch.int8, torch.uint8)
    return found.eval(), processor


def test_rows_are_those_of_its_own_eager_attention(quantised):
    lvlm = models.wrap(*quantised)
    assert lvlm.model.dtype == torch.float32 and lvlm.device.type == "cpu"
    inputs, rows, layouts = asked(lvlm)
    want, sums = eager_rows(lvlm, inputs, rows, layouts)
    assert want.max() > 0.1
    with torch.no_grad():
        plain = lvlm.model(**inputs).logits
        with capture(lvlm.model, rows=rows, layouts=layouts) as captured:
            logits = lvlm.model(**inputs).logits
        with capture(lvlm.model, rows=rows, layouts=layouts, stop_after=1) as ended:
            lvlm.model(**inputs)
            raise AssertionError("the forward must have ended the block")
        again = lvlm.model(**inputs).logits
    assert torch.equal(logits, plain) and torch.equal(again, plain)
    assert torch.equal(ended.maps.maps, captured.maps.select(ended.maps.heads).maps)
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)
    torch.testing.assert_close(captured.sums, sums, atol=2e-6, rtol=0)


def test_packs_are_its_own_separate_forwards_but_not_the_plain_model(quantised):
    lvlm = models.wrap(*quantised)
    together, apart, plain = (
        attention_maps(each, picture(), TEXTS, recipe=Recipe(), packed=packed).maps
        for each, packed in ((lvlm, True), (lvlm, False), (small_world.lvlm(), True))
    )
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    assert (together - plain).abs().max() > 1e-3


def test_it_grounds_answers_and_is_discovered_as_it_was_saved(quantised, tmp_path):
    model, processor = quantised
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    lvlm, loaded = models.wrap(model, processor), models.load(folder, device="cpu")
    weights = [
        each.model.get_decoder().layers[0].self_attn.q_proj.weight for each in (lvlm, loaded)
    ]
    assert type(weights[0]) is type(weights[1])
    image = small_world.samples()[0].image
    found, want = (Grounder(each, small_world.ranking())(image, TEXTS) for each in (loaded, lvlm))
    for one, other in zip(found, want, strict=True):
        assert torch.equal(one.map, other.map) and torch.equal(one.box, other.box)
    assert answers(loaded, image, TEXTS) == answers(lvlm, image, TEXTS, packed=False)
    recipe = small_world.RECIPE
    table = collect(loaded, small_world.samples(), recipe=recipe, dataset="a", split="b")
    assert table.sums.shape == (11, 3, 4) and (table.sums > 0).all()
    assert (abs(table.sums - small_world.table().sums)).max() > 1e-3
