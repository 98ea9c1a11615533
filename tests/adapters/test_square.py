"""DeepSeek-VL and Janus: where their padded squares lie in an image, by hand."""

from types import SimpleNamespace

import pytest
import torch
from fastground import packing
from fastground.models import wrap
from fastground.models.geometry import letterbox
from fastground.types import Recipe
from PIL import Image
from tiny_square import deepseek, janus

TEXTS = ["the red mug", "x"]


def processes(side, *, least=14, **more):
    more = {name: {"height": n, "width": n} for name, n in more.items()}
    settings = {"do_resize": True, "do_pad": True, "min_size": least}
    return SimpleNamespace(size={"height": side, "width": side}, **settings, **more)


def test_a_landscape_is_padded_above_and_below():
    # 640 x 480 -> 384 x 288, (384 - 288) // 2 = 48 rows above.
    lies = letterbox(processes(384), (480, 640))
    assert lies.size == (384, 384)
    assert lies.scale == pytest.approx((640 / 384, 480 / 288))
    assert lies.origin == pytest.approx((0, -48 * 480 / 288))


def test_a_thin_image_is_stretched_to_the_least_side():
    # 1000 x 10 -> 384 x round(3.84) = 4, but at least 14: 185 rows above.
    lies = letterbox(processes(384), (10, 1000))
    assert lies.scale == pytest.approx((1000 / 384, 10 / 14))
    assert lies.origin == pytest.approx((0, -185 * 10 / 14))


def test_an_odd_remainder_is_padded_after():
    # 100 x 61 -> 24 x round(14.64) = 15: 9 rows of padding, 4 of them above.
    lies = letterbox(processes(24, least=3), (61, 100))
    assert lies.origin == pytest.approx((0, -4 * 61 / 15))


def test_the_small_view_of_a_hybrid_is_cut_from_the_large_one():
    # 100 x 61 -> 64 x round(39.04) = 39 in 64 x 64, 12 rows above -> 24 x 24.
    lies = letterbox(processes(24, least=3, high_res_size=64), (61, 100))
    assert lies.size == (24, 24)
    assert lies.scale == pytest.approx((100 / 64 * 64 / 24, 61 / 39 * 64 / 24))
    assert lies.origin == pytest.approx((0, -12 * 61 / 39))


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (9, 7), (160, 24), (3, 250)])
def test_the_processor_does_what_its_frame_says(hybrid, size):
    # White on what the processor pads with: its pixels are white where the frame says.
    _, processor = deepseek(0, hybrid=hybrid)
    images = processor.image_processor
    made = images(images=Image.new("RGB", size, "white"), return_tensors="pt")["pixel_values"][0, 0]
    lies = letterbox(images, size[::-1])
    assert tuple(made.shape) == lies.size
    # A model pixel's middle lies in the image, give or take the half pixel that resizing blurs.
    inside = [
        origin + scale * (torch.arange(24) + 0.5)
        for origin, scale in zip(lies.origin, lies.scale, strict=True)
    ]
    axes = list(zip(inside, lies.scale, size, strict=True))
    within = [(x > scale) & (x < n - scale) for x, scale, n in axes]
    without = [(x < -scale) | (x > n + scale) for x, scale, n in axes]
    white, padding = made.max(), made.min()
    assert (made[within[1]][:, within[0]] > white - 0.1).all()
    assert (made[without[1]] < padding + 0.1).all()
    assert (made[:, without[0]] < padding + 0.1).all()


@pytest.mark.parametrize("system", [False, True])
def test_janus_reads_what_its_processor_writes(system):
    lvlm = wrap(*janus(0, system=system))
    image = Image.new("RGB", (31, 20))
    encoded = lvlm.encode(image, TEXTS, Recipe())
    own = lvlm.processor(images=[image], text=["<image>\nthe red mug."], return_tensors="pt")
    assert encoded.token_ids[0].tolist() == own["input_ids"][0].tolist()
    start, *_, end = encoded.token_ids[0][encoded.layout.tokens[0] - 1 : encoded.prefix_length]
    assert lvlm.processor.tokenizer.decode([start, end]).split() == ["<start>", "<end>"]
    inputs, _ = packing.pack(encoded)
    assert (inputs["input_ids"] == lvlm.model.config.image_token_id).sum() == 36


def test_another_number_of_tokens_is_refused():
    model, processor = deepseek(0)
    processor.num_image_tokens = 35
    with pytest.raises(ValueError, match=r"one image token a cell of 6 x 6, but made 35"):
        wrap(model, processor).encode(Image.new("RGB", (31, 20)), TEXTS, Recipe())


def test_an_unpadded_image_is_refused():
    model, processor = deepseek(0)
    processor.image_processor.do_pad = False
    with pytest.raises(ValueError, match="one image token a cell of 3 x 6,"):
        wrap(model, processor).encode(Image.new("RGB", (31, 20)), TEXTS, Recipe())
    processor.image_processor.do_resize = False
    with pytest.raises(ValueError, match="must resize to a height and a width"):
        wrap(model, processor).encode(Image.new("RGB", (31, 20)), TEXTS, Recipe())
