"""Gemma 3 and PaliGemma: the words their processors write, who sees what, capped logits."""

import pytest
import torch
from fastground import packing
from fastground.attention import attention_maps
from fastground.capture import capture
from fastground.models import load, wrap
from fastground.types import Recipe
from PIL import Image
from test_adapters import assert_answers_are_those_of_generate
from tiny_gemma import gemma3, gemma4, gemma4_unified, paligemma

TEXTS = ["the red mug", "a dog on the left of the small blue mug"]


def picture():
    colours = torch.randint(0, 256, (20, 31, 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(colours.to(torch.uint8).numpy())


def test_a_cell_of_gemma_3_is_its_patches_together():
    lvlm = wrap(*gemma3(0))
    layout = lvlm.encode(Image.new("RGB", (64, 16)), TEXTS, Recipe()).layout
    assert layout.grid == (4, 4)  # of 32 pixels: 8 patches of 4 a side, two by two
    assert layout.cell_size == (16.0, 4.0)
    assert layout.origin == (0.0, 0.0)


def test_new_lines_around_an_image_join_those_of_the_chat():
    lvlm = wrap(*gemma3(0))
    recipe = Recipe(template="chat")
    encoded = lvlm.encode(picture(), TEXTS, recipe)
    before, after = lvlm.words(recipe)
    own = lvlm.processor(
        images=[picture()], text=[f"{before}the red mug.{after}"], add_special_tokens=False,
        return_tensors="pt",
    )  # fmt: skip
    assert encoded.token_ids[0].tolist() == own["input_ids"][0].tolist()
    three = lvlm.processor.tokenizer.convert_tokens_to_ids("\n\n\n")
    assert three in own["input_ids"][0]
    said = lvlm.token_inputs(own["input_ids"])["token_type_ids"]
    assert torch.equal(said, own["token_type_ids"])


def test_the_words_of_paligemma_see_what_follows_them():
    lvlm = wrap(*paligemma(0))
    encoded = lvlm.encode(picture(), TEXTS, Recipe())
    ids = encoded.token_ids[0][None]
    types = lvlm.token_inputs(torch.cat([ids, ids[:, 3:5]], dim=1))["token_type_ids"]
    assert types[0].tolist() == [0] * ids.shape[1] + [1, 1]
    model = lvlm.model.model
    seen = []
    for last in (ids[0, -2], ids[0, -3]):  # the new line's predecessor, exchanged
        changed = ids.clone()
        changed[0, -2] = last
        with torch.no_grad():
            out = model(
                input_ids=changed, **encoded.image_inputs, **lvlm.token_inputs(changed)
            ).last_hidden_state
        seen.append(out[0, encoded.layout.tokens[0]])
    assert (seen[0] - seen[1]).abs().max() > 1e-3


def test_paligemma_counts_from_one():
    lvlm = wrap(*paligemma(0))
    encoded = lvlm.encode(picture(), TEXTS, Recipe())
    inputs = {"input_ids": encoded.token_ids[0][None], **encoded.image_inputs}
    inputs |= lvlm.token_inputs(inputs["input_ids"])
    with torch.no_grad():
        own = lvlm.model(**inputs).logits
        count = torch.arange(1, 1 + inputs["input_ids"].shape[1])[None]
        assert torch.equal(lvlm.model(**inputs, position_ids=count).logits, own)
    assert encoded.prefix_positions.tolist() == [list(range(1, 26))]


@pytest.mark.parametrize("build", [gemma4, gemma4_unified])
def test_a_cell_of_gemma_4_is_where_its_processor_says(build):
    lvlm = wrap(*build(0))
    layout = lvlm.encode(Image.new("RGB", (160, 24)), TEXTS, Recipe()).layout
    # 70 cells of 8 x 8 pixels hold 4480: 160 x 24 grows by sqrt(4480 / 3840) to 172 x 25.9.
    assert layout.grid == (3, 21)
    assert layout.cell_size == pytest.approx((160 / 21, 24 / 3))
    assert layout.origin == (0.0, 0.0)


@pytest.mark.parametrize(
    "build", [gemma3, gemma4, gemma4_unified, paligemma, lambda seed: paligemma(seed, capped=True)]
)
def test_answers_are_those_of_generate(build):
    assert_answers_are_those_of_generate(wrap(*build(0)), picture(), TEXTS)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("build", [gemma4, gemma4_unified])
def test_later_layers_may_compute_the_last_token_alone(build, implementation):
    """As transformers 5.24 has it where of the last alone logits are kept, as generate does."""
    lvlm = wrap(*build(0))
    lvlm.model.set_attn_implementation({"text_config": implementation})
    encoded = lvlm.encode(picture(), ["the red mug", "the blue mug"], Recipe())
    inputs, _ = packing.separate(encoded)
    inputs |= lvlm.token_inputs(inputs["input_ids"])
    found = []
    for kept in (0, 1):
        with torch.no_grad(), capture(lvlm.model, layouts=encoded.layout) as captured:
            lvlm.model(**inputs, use_cache=False, logits_to_keep=kept)
        found.append(captured.maps)
    torch.testing.assert_close(found[1].maps, found[0].maps, atol=5e-6, rtol=0)
    torch.testing.assert_close(found[1].sums, found[0].sums, atol=5e-6, rtol=0)


@pytest.mark.parametrize("query", ["first_generated", "last_prompt", "phrase_mean"])
@pytest.mark.parametrize("build", [gemma3, gemma4, gemma4_unified, paligemma])
def test_expressions_do_not_see_each_other(build, query):
    lvlm = wrap(*build(0))
    recipe = Recipe(query=query)
    both = attention_maps(lvlm, picture(), TEXTS, recipe=recipe)
    for i, text in enumerate(TEXTS):
        alone = attention_maps(lvlm, picture(), [text], recipe=recipe)
        torch.testing.assert_close(both.maps[i : i + 1], alone.maps, atol=1e-5, rtol=0)


def test_capped_logits_need_eager_attention(tmp_path, monkeypatch):
    model, processor = paligemma(0, capped=True)
    text = model.config.text_config
    monkeypatch.setattr(text, "_attn_implementation_internal", "sdpa")
    with pytest.raises(ValueError, match=r"must use eager attention, .* but uses 'sdpa'; call"):
        wrap(model, processor)
    monkeypatch.undo()
    wrap(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load(tmp_path, device="cpu").model.config
    assert loaded.text_config._attn_implementation == "eager"
    assert loaded.vision_config._attn_implementation == "sdpa"


def test_a_chat_and_a_new_line_are_refused_by_paligemma():
    lvlm = wrap(*paligemma(0))
    with pytest.raises(ValueError, match="template must be 'plain' for PaliGemma"):
        lvlm.encode(picture(), TEXTS, Recipe(template="chat"))
    with pytest.raises(ValueError, match="must be one line for PaliGemma"):
        lvlm.encode(picture(), ["the red\nmug"], Recipe())
