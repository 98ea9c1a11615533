"""Every family under flash attention, as transformers calls it: its masks, its unpadding.

flash-attn's kernels alone are by PyTorch (see flash_kernels.py). A family whose image's tokens see
what comes after them needs a mask that flash attention does not take, and is refused.
"""

import flash_kernels
import pytest
import torch
from families import all_families
from fastground.attention import answers, attention_maps
from fastground.capture import capture
from fastground.models import wrap
from fastground.types import Recipe
from test_adapters import FAMILIES, TEXTS, asked, counted, eager_rows, made, picture

CAPS = ("paligemma2",)
CHOOSING = ("dots3_note", "glm5_next", "minimax_m3_vl", "mistral_large4", "qwen4_exp")


@pytest.fixture(scope="module", autouse=True)
def kernels():
    with flash_kernels.installed():
        yield


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_equal_eager_attention(family, monkeypatch):
    lvlm = made(family)
    if lvlm.needs_mask or family.name in CAPS:
        pytest.skip("refused: see below")
    if family.name in CHOOSING:
        pytest.skip("transformers refuses flash attention for layers that choose keys")
    inputs, rows, layouts = asked(lvlm)
    want, sums = eager_rows(lvlm, inputs, rows, layouts)
    recipe = Recipe(query="phrase_mean")
    mean = attention_maps(lvlm, picture(), TEXTS, recipe=recipe)
    alone = attention_maps(lvlm, picture(), TEXTS[:1], recipe=recipe)
    text = lvlm.model.config.get_text_config(decoder=True)
    monkeypatch.setattr(text, "_attn_implementation_internal", "flash_attention_2")
    with torch.no_grad(), capture(lvlm.model, rows=rows, layouts=layouts) as captured:
        lvlm.model(**inputs, use_cache=False)
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)
    torch.testing.assert_close(captured.sums, sums, atol=2e-6, rtol=0)
    with counted(lvlm) as tokens:
        found = attention_maps(lvlm, picture(), TEXTS, recipe=recipe)
    torch.testing.assert_close(found.maps, mean.maps, atol=1e-5, rtol=0)
    assert (len(tokens) == 2) == family.caches  # of the image, and of what is behind it
    found = attention_maps(lvlm, picture(), TEXTS[:1], recipe=recipe)
    torch.testing.assert_close(found.maps, alone.maps, atol=1e-5, rtol=0)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_model_says_is_the_same(family, packed, monkeypatch):
    lvlm, recipe = made(family), Recipe(query="first_generated")
    if lvlm.needs_mask or family.name in (*CAPS, *CHOOSING):
        pytest.skip("refused: see above")
    want = attention_maps(lvlm, picture(), TEXTS, recipe=recipe)
    said = answers(lvlm, picture(), TEXTS)
    text = lvlm.model.config.get_text_config(decoder=True)
    monkeypatch.setattr(text, "_attn_implementation_internal", "flash_attention_2")
    assert answers(lvlm, picture(), TEXTS, packed=packed) == said
    if family.name == "paligemma":
        with pytest.raises(ValueError, match=r"'first_generated' needs attention that takes a mas"):
            attention_maps(lvlm, picture(), TEXTS, recipe=recipe, packed=packed)
        return
    found = attention_maps(lvlm, picture(), TEXTS, recipe=recipe, packed=packed)
    torch.testing.assert_close(found.maps, want.maps, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", [f for f in all_families() if not f.packs], ids=str)
def test_what_needs_a_mask_is_refused_with_the_way_out(family, monkeypatch):
    lvlm = made(family)
    text = lvlm.model.config.get_text_config(decoder=True)
    monkeypatch.setattr(text, "_attn_implementation_internal", "flash_attention_2")
    if not lvlm.needs_mask and family.name not in CAPS:
        assert type(wrap(lvlm.model, lvlm.processor)) is type(lvlm)
        return
    says = "attention that takes a mask.*but uses 'flash_attention_2'; call|caps its logits"
    with pytest.raises(ValueError, match=says):
        wrap(lvlm.model, lvlm.processor)


def test_texts_told_apart_by_the_first_of_four_rows_of_positions_are_noticed(monkeypatch):
    # Qwen-VL's three axes may come after the text's own positions, by which flash attention parts.
    [family] = [family for family in all_families() if family.name == "qwen2_5_vl"]
    lvlm = made(family)
    inputs, rows, layouts = asked(lvlm, texts=TEXTS[:1])
    inputs.pop("attention_mask")
    text = lvlm.model.config.get_text_config(decoder=True)
    monkeypatch.setattr(text, "_attn_implementation_internal", "flash_attention_2")
    usual = torch.arange(inputs["input_ids"].shape[1])[None, None]
    inputs["position_ids"] = torch.cat([usual, inputs["position_ids"]])
    with torch.no_grad(), capture(lvlm.model, rows=rows, layouts=layouts) as captured:
        lvlm.model(**inputs, use_cache=False)
    assert captured.sums.min() > 0
    inputs["position_ids"][0] = torch.cat([usual[0, :, :-3], usual[0, :, :3]], dim=-1)
    says = "in layer 0 its output is off"
    with (
        pytest.raises(RuntimeError, match=says),
        torch.no_grad(),
        capture(lvlm.model, rows=rows, layouts=layouts),
    ):
        lvlm.model(**inputs, use_cache=False)
