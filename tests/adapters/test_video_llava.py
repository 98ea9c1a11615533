"""Video-LLaVA: an image as LLaVA has it, whatever its own processor would crop."""

from fastground.models import wrap
from fastground.types import Recipe
from PIL import Image
from test_adapters import TEXTS, assert_answers_are_those_of_generate, picture
from tiny_llava import video_llava


def test_answers_are_those_of_generate():
    assert_answers_are_those_of_generate(wrap(*video_llava(0)), picture(), TEXTS[:2])


def test_what_its_published_processor_would_crop_is_padded():
    model, processor = video_llava(0)
    processor.image_processor = type(processor.image_processor)(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )  # fmt: skip
    encoded = wrap(model, processor).encode(
        Image.new("RGB", (100, 50), "white"), TEXTS[:1], Recipe()
    )
    layout, pixels = encoded.layout, encoded.image_inputs["pixel_values_images"][0, 0]
    assert layout.grid == (4, 4) and layout.cell_size == (25, 25) and layout.origin == (0, -25)
    assert pixels.shape == (16, 16) and pixels[0, 0] == 0 and pixels[8, 0] == 1
