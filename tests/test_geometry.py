"""Cells and pixels: coloured blocks go through the real image processors and are found again."""

import numpy as np
import pytest
import torch
from fastground.models import wrap
from fastground.models.geometry import frame, pads_to_square, read_image
from fastground.types import ImageLayout, Recipe
from PIL import Image
from random_llava import image_processor, random_llava

SIZES = [(20, 31), (31, 20), (33, 33), (57, 101), (101, 58), (7, 64), (200, 37), (480, 641)]
SQUASH = {"size": {"height": 48, "width": 48}}
MODES = {
    "pad": ("LlavaImageProcessorPil", {}),
    "pad, then crop": ("LlavaImageProcessorPil", {"size": {"shortest_edge": 57}}),
    "pad, crop pads too": ("LlavaImageProcessorPil", {"size": {"shortest_edge": 33}}),
    "crop (LLaVA)": ("LlavaImageProcessorPil", {"do_pad": False}),
    "crop (CLIP)": ("CLIPImageProcessorPil", {}),
    "crop less than all": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 59}}),
    "squash": ("CLIPImageProcessorPil", {**SQUASH, "do_center_crop": False}),
    "squash, then crop": ("CLIPImageProcessorPil", {"size": {"height": 61, "width": 52}}),
    "squash (SigLIP)": ("SiglipImageProcessorPil", SQUASH),
}


def make(mode, **more):
    kind, settings = MODES[mode]
    return image_processor(48, kind, **settings, **more)


def block(size, x, y, width, height):
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[y : y + height, x : x + width] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_frame_agrees_with_the_processor_to_a_fraction_of_a_pixel(mode, size):
    # A white stripe on black: resampling keeps its centre of mass, so it must lie where the frame
    # says. Black is also what is padded, by a mean of 0.
    processor = make(mode, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    lies = frame(processor, size)
    for axis in (0, 1):
        scale, origin = lies.scale[1 - axis], lies.origin[1 - axis]
        stripes = list(stripes_in_view(processor, size, axis))
        assert stripes
        for start, thick in stripes:
            box = [0, 0, size[1], size[0]]
            box[1 - axis], box[3 - axis] = start, thick
            pixels = processor(images=block(size, *box), return_tensors="np")["pixel_values"]
            light = np.asarray(pixels)[0].mean(0)
            assert light.shape == lies.size
            light = light.sum(1 - axis)
            found = (light * (np.arange(len(light)) + 0.5)).sum() / light.sum()
            error = origin + scale * found - (start + thick / 2)
            assert abs(error) < 0.1 * max(1, scale)


def stripes_in_view(processor, size, axis):
    """Stripes that the model sees whole, away from edges where the filter's window is cut."""
    lies = frame(processor, size)
    scale, origin, side = lies.scale[1 - axis], lies.origin[1 - axis], size[axis]
    padded = pads_to_square(processor) and side < max(size)
    thick, room = max(1, round(2 * scale)), 3.5 * scale
    low = max(origin + room, 0 if padded else room)
    high = min(origin + scale * lies.size[axis] - room, side if padded else side - room) - thick
    for start in sorted({round(low + (high - low) * part) for part in (0, 0.37, 0.5, 1)}):
        if low <= start <= high:
            yield start, thick


@pytest.mark.parametrize("size", [(20, 31), (101, 57), (64, 65), (480, 641)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_painted_cell_is_the_brightest_cell(mode, size):
    # A white square under one cell of the layout: of all patches that the model gets, this is the
    # brightest. `wrap` pads where the processor would crop the sides away.
    model, processor = random_llava(grid=12)
    processor.image_processor = make(mode, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    lvlm = wrap(model, processor)
    layout = lvlm.encode(Image.new("RGB", size[::-1]), ["the mug"], Recipe()).layout
    assert layout.image_size == size
    seen = layout.valid()
    for i, j in [(0, 0), (5, 5), (6, 6), (3, 8), (11, 11), (7, 2)]:
        if not seen[i, j]:
            continue
        box = layout.to_pixels(torch.tensor([j, i, j + 1.0, i + 1.0])).round().int().tolist()
        image = block(size, box[0], box[1], max(1, box[2] - box[0]), max(1, box[3] - box[1]))
        pixels = lvlm.encode(image, ["the mug"], Recipe()).image_inputs["pixel_values"]
        cells = torch.nn.functional.avg_pool2d(pixels.mean(1), 4)[0]
        assert cells.argmax().item() == i * 12 + j, (i, j)


def test_wrap_pads_where_the_processor_would_crop_the_sides():
    model, processor = random_llava(grid=12)
    processor.image_processor = make("crop (CLIP)")
    layout = wrap(model, processor).encode(Image.new("RGB", (96, 48)), ["x"], Recipe()).layout
    assert layout.cell_size == (8, 8)
    assert layout.origin == (0, -24)
    assert not processor.image_processor.do_pad  # the user's own processor is left alone
    corners = layout.to_pixels(torch.tensor([0.0, 0.0, 12.0, 12.0]))
    assert corners.tolist() == [0, 0, 96, 48]
    valid = layout.valid()
    assert valid[3:9].all()
    assert valid.sum() == 6 * 12


def test_odd_padding_goes_after():
    # 31 x 20: 11 rows of padding, 5 above and 6 below.
    lies = frame(make("pad"), (20, 31))
    assert lies.origin == (0, -5)
    assert lies.scale == (31 / 48, 31 / 48)


def test_squash_has_a_scale_for_each_axis():
    lies = frame(make("squash"), (24, 96))
    assert (lies.origin, lies.scale, lies.size) == ((0, 0), (2, 0.5), (48, 48))


def test_unknown_resizing_is_refused():
    processor = make("pad")
    processor.size = {"shortest_edge": 48, "longest_edge": 96}
    with pytest.raises(ValueError, match="shortest_edge, or height and width"):
        frame(processor, (20, 31))


def test_layout_without_an_image_has_no_pixels():
    layout = ImageLayout((1, 2), (4, 5))
    assert layout.valid().all()
    with pytest.raises(ValueError, match="layout knows no image"):
        layout.to_pixels(torch.zeros(4))


def test_a_photo_that_lies_on_its_side_is_read_upright(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned clockwise
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    upright = read_image(tmp_path / "photo.png")
    assert upright.size == (2, 3)
    assert np.array(upright)[0, 1].tolist() == [255, 255, 255]
