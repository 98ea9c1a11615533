"""Unlimited-OCR: its cells by hand, no tiles, its window that keeps the prompt, what is refused."""

import pytest
import torch
from fastground.attention import answers
from fastground.capture import capture
from fastground.models import wrap
from fastground.types import Recipe
from test_adapters import TEXTS, asked, picture
from tiny_unlimited import WINDOW, unlimited_ocr


@pytest.mark.parametrize(
    ("size", "most", "cell", "origin"),
    [
        ((64, 40), 32, (8, 8), (-3, -3 - 12)),  # 12 pixels of padding above
        ((20, 32), 32, (4, 4), (-1.5 - 6, -1.5)),  # twice as large, then 12 at the left
        ((97, 61), 64, (97 / 8, 61 / 8), (-97 * 3 / 64, -61 * 3 / 64)),  # each side for itself
    ],
)
def test_cells_begin_before_the_patches_that_they_take(size, most, cell, origin):
    lvlm = wrap(*unlimited_ocr(maximum_pad_value=most))
    layout = lvlm.encode(picture(size), TEXTS[:1], Recipe()).layout
    first = layout.tokens[0]
    assert layout.grid == (8, 8) and layout.cell_size == cell
    assert layout.origin == pytest.approx(origin)
    assert layout.tokens == tuple(first + line * 9 + i for line in range(8) for i in range(8))
    assert layout.all_tokens == tuple(range(first, first + 8 * 9 + 1))


def test_the_tiles_of_a_larger_image_are_left_out():
    lvlm = wrap(*unlimited_ocr())
    image = picture((97, 61))
    encoded = lvlm.encode(image, TEXTS[:1], Recipe())
    prompt = {"images": [image], "text": [f"<image>\n{TEXTS[0]}."], "return_tensors": "pt"}
    own = lvlm.processor(**prompt, crop_to_patches=False)
    assert encoded.token_ids[0].tolist() == own["input_ids"][0].tolist()
    assert torch.equal(encoded.image_inputs["pixel_values"], own["pixel_values"])
    assert len(lvlm.processor(**prompt)["input_ids"][0]) > len(encoded.token_ids[0])


def said(lvlm, tokens, implementation="sdpa", **settings):
    """What is captured beside generate, what it says with eager attention, the image's layout."""
    inputs, _, layouts = asked(lvlm, texts=TEXTS[1:2])
    lvlm.model.generation_config.eos_token_id = None
    lvlm.model.set_attn_implementation(implementation)
    with torch.no_grad(), capture(lvlm.model, rows="steps", layouts=layouts) as captured:
        lvlm.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    lvlm.model.set_attn_implementation("eager")
    with torch.no_grad():
        whole = lvlm.model.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, output_attentions=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    return captured, whole, layouts[0]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_what_it_says_has_its_maps_when_earlier_words_are_gone(implementation):
    tokens = 3 * WINDOW
    captured, whole, layout = said(wrap(*unlimited_ocr()), tokens, implementation)
    widths = [step[0].shape[-1] for step in whole.attentions]
    assert widths[-1] == widths[0] + WINDOW  # the prompt, and the last said
    found = captured.maps.maps.flatten(2)
    assert found.shape[0] == tokens
    for step, got in zip(whole.attentions, found, strict=True):
        want = torch.cat(step)[:, :, -1].flatten(0, 1)[:, list(layout.tokens)]
        torch.testing.assert_close(got, want, atol=2e-6, rtol=0)


def test_answers_longer_than_the_window_are_those_of_generate():
    lvlm = wrap(*unlimited_ocr())
    _, whole, _ = said(lvlm, 3 * WINDOW)
    tokenizer = lvlm.processor.tokenizer
    tokenizer.decode = lambda ids, **_: " ".join(map(str, ids))  # all of them are seen
    ids = whole.sequences[0, -3 * WINDOW :].tolist()
    assert tokenizer.eos_token_id not in ids
    found = answers(lvlm, picture(), TEXTS[1:2], max_new_tokens=3 * WINDOW)
    assert found == [tuple(map(str, ids))]


def test_an_image_that_is_no_part_of_the_prompt_is_refused_when_words_are_gone():
    lvlm = wrap(*unlimited_ocr())
    inputs, _, layouts = asked(lvlm, texts=TEXTS[1:2])
    cache = lvlm.model(input_ids=torch.tensor([[1, 9]]), use_cache=True).cache
    inputs.pop("attention_mask")
    says = r"layouts must lie in the prompt's 2 tokens, all that the model keeps, but .* is at 73"
    with torch.no_grad(), pytest.raises(ValueError, match=says):
        lvlm.model(**inputs, cache=cache)
        with capture(lvlm.model, layouts=layouts):
            lvlm.model(input_ids=torch.tensor([[9]]), cache=cache)


def test_another_tower_than_the_processors_is_refused():
    model, processor = unlimited_ocr()
    processor.patch_size = 4
    with pytest.raises(ValueError, match=r"8 lines of 8 image tokens and one more, and one at the"):
        wrap(model, processor).encode(picture(), TEXTS[:1], Recipe())
