"""Models that `device_map` has split: some weights on the device, others on disk, hooks between.

accelerate's own hooks run here, those that also carry tensors from one GPU to the next: they load a
part's weights before its forward and drop them after it, which an early end leaves out.
"""

import json

import numpy as np
import pytest
import small_world
import torch
from families import all_families
from fastground import Grounder, models
from fastground.attention import answers, attention_maps
from fastground.capture import capture
from fastground.discovery import collect
from fastground.types import Recipe
from random_llava import random_llava
from test_adapters import FAMILIES, TEXTS, asked, made, picture
from transformers.utils import logging

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def quiet():
    """Without transformers' word on every loading that some weights are offloaded."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def waiting(model):
    """The names of weights that are not there until their part's forward."""
    return {name for name, weight in model.named_parameters() if weight.is_meta}


def split(model, folder, **how):
    """The same model, loaded from a folder as `device_map` asks; what is left out is on disk."""
    model.save_pretrained(folder)
    how.setdefault("device_map", "auto")
    found = type(model).from_pretrained(
        folder, config=model.config, dtype=torch.float32, offload_folder=folder / "waiting", **how
    )
    assert 0 < len(waiting(found)) < len(list(found.parameters()))
    return found.eval()


def by_hand(model, on_disk):
    """A device_map of the smallest parts: on disk those whose names begin with one of these."""
    parts = [
        n for n, part in model.named_modules() if next(part.parameters(False), None) is not None
    ]
    return {name: "disk" if name.startswith(on_disk) else "cpu" for name in parts}


PARTS = {
    "the image's tower": ("model.vision_tower", "model.multi_modal_projector", "model.visual"),
    "the last layers": (
        "model.language_model.layers.1", "model.language_model.layers.2", "lm_head",
    ),
    "all but the words": (
        "model.vision_tower", "model.multi_modal_projector", "model.visual", "lm_head",
        "model.language_model.layers", "model.language_model.norm",
    ),
}  # fmt: skip
LLAVA, QWEN = "llava", "qwen2_5_vl"


def same(found, want):
    """Equal but for rounding: a weight read from disk may begin at another address."""
    torch.testing.assert_close(found, want, atol=2e-6, rtol=1e-5)


@pytest.fixture(params=[LLAVA, QWEN])
def plain(request):
    [family] = [family for family in all_families() if family.name == request.param]
    return made(family)


@pytest.mark.parametrize("part", PARTS)
def test_rows_early_ends_and_packs_are_those_of_the_plain_model(plain, part, tmp_path):
    model = split(plain.model, tmp_path, device_map=by_hand(plain.model, PARTS[part]))
    lvlm = models.wrap(model, plain.processor)
    assert lvlm.device.type == "cpu" and "cpu" in repr(lvlm)
    before = waiting(model)
    inputs, rows, layouts = asked(plain)
    asks = {"rows": rows, "layouts": layouts}
    with torch.no_grad():
        logits = plain.model(**inputs).logits
        same(model(**inputs).logits, logits)
        with capture(plain.model, **asks) as want:
            plain.model(**inputs)
        with capture(model, **asks) as whole:
            same(model(**inputs).logits, logits)
        same(whole.maps.maps, want.maps.maps)
        for last in range(3):
            with capture(model, **asks, stop_after=last) as ended:
                model(**inputs)
                raise AssertionError("the forward must have ended the block")
            assert waiting(model) == before
            same(ended.maps.maps, want.maps.select(ended.maps.heads).maps)
            same(model(**inputs).logits, logits)
    for packed in (True, False):
        found, maps = (
            attention_maps(each, picture(), TEXTS, recipe=Recipe(), packed=packed)
            for each in (lvlm, plain)
        )
        same(found.maps, maps.maps)


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_by_what_the_device_has_room_for(family, tmp_path):
    lvlm = made(family)
    if family.name in ("deepseek_vl_hybrid", "phi4_multimodal", "nemotron_h_omni"):
        pytest.skip("transformers cannot split it itself: its model has a weight of its own")
    if family.name.startswith(("chameleon", "emu3", "hunyuan_vl")):
        pytest.skip("transformers cannot split it itself: it reads the weight of a part uncalled")
    room = int(0.6 * accelerate.utils.compute_module_sizes(lvlm.model)[""])
    own = lvlm.model.config.get_text_config(decoder=True)._attn_implementation
    model = split(
        lvlm.model, tmp_path, max_memory={"cpu": room}, attn_implementation={"text_config": own}
    )
    found = models.wrap(model, lvlm.processor)
    attention_maps(found, picture(), TEXTS, recipe=Recipe())  # tied weights go with the first
    before = waiting(model)
    heads = [(lvlm.layers_with_heads[0], head) for head in (1, 0)]
    for asked_for in (None, heads):
        here, there = (
            attention_maps(each, picture(), TEXTS, recipe=Recipe(), heads=asked_for)
            for each in (lvlm, found)
        )
        same(there.maps, here.maps)
        same(there.sums, here.sums)
    assert waiting(model) == before


def llava(folder):
    model, _ = random_llava(seed=1, grid=6)
    return split(model, folder, device_map=by_hand(model, PARTS["all but the words"]))


@pytest.mark.parametrize("selection", ["fixed", "greedy"])
def test_the_grounder_grounds_as_with_the_plain_model(selection, tmp_path):
    plain = small_world.lvlm()
    lvlm = models.wrap(llava(tmp_path), plain.processor)
    recipe = small_world.RECIPE.replace(selection=selection)
    found, want = (
        Grounder(each, small_world.ranking(), recipe=recipe)(small_world.samples()[0].image, TEXTS)
        for each in (lvlm, plain)
    )
    for one, other in zip(found, want, strict=True):
        same(one.map, other.map)
        same(one.box, other.box)
        assert one.heads == other.heads


def test_its_heads_are_discovered_and_its_answers_read(tmp_path):
    plain = small_world.lvlm()
    lvlm = models.wrap(llava(tmp_path), plain.processor)
    table, want = (
        collect(each, small_world.samples(), recipe=small_world.RECIPE, dataset="a", split="b")
        for each in (lvlm, plain)
    )
    for column in ("sums", "entropies", "ious"):
        np.testing.assert_allclose(getattr(table, column), getattr(want, column), atol=1e-5)
    image = small_world.samples()[0].image
    for packed in (True, False):
        assert answers(lvlm, image, TEXTS, packed=packed) == answers(plain, image, TEXTS)


def test_maps_of_each_said_token(tmp_path):
    plain = small_world.lvlm()
    model, _ = random_llava(seed=1, grid=6)
    model = split(model, tmp_path, device_map=by_hand(model, PARTS["the last layers"]))
    image = small_world.samples()[0].image
    inputs = plain.processor(images=[image], text=["<image>\nthe mug."], return_tensors="pt")
    steps = []
    for each in (plain.model, model):
        with torch.no_grad(), capture(each, rows="steps") as captured:
            each.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        steps.append(captured.maps.maps)
    assert len(steps[0]) == 4
    same(*steps)


def test_a_model_of_which_nothing_is_there(tmp_path):
    plain = small_world.lvlm()
    model, processor = random_llava(seed=1, grid=6)
    accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    assert len(waiting(model)) == len(list(model.parameters()))
    assert len(json.loads((tmp_path / "index.json").read_text())) == len(waiting(model))
    lvlm = models.wrap(model, processor)
    assert lvlm.device == torch.device("cpu")
    found, want = (
        attention_maps(each, picture(), TEXTS, recipe=Recipe()).maps for each in (lvlm, plain)
    )
    same(found, want)
    assert len(waiting(model)) == len(list(model.parameters()))


def test_parts_that_are_loaded_as_a_whole_are_sound_after_an_early_end(tmp_path):
    # The weights of the layer that did not end stay, as after any error in it; its next forward
    # loads them again.
    plain = small_world.lvlm()
    model, processor = random_llava(seed=1, grid=6)
    accelerate.disk_offload(
        model, tmp_path, execution_device="cpu", preload_module_classes=["LlamaDecoderLayer"]
    )
    before = waiting(model)
    lvlm = models.wrap(model, processor)
    for heads in ([(1, 0)], None, [(0, 2), (2, 1)]):
        found, want = (
            attention_maps(each, picture(), TEXTS, recipe=Recipe(), heads=heads).maps
            for each in (lvlm, plain)
        )
        same(found, want)
        inputs = asked(lvlm)[0]
        with torch.no_grad():
            same(model(**inputs).logits, plain.model(**inputs).logits)
        assert waiting(model) == before
