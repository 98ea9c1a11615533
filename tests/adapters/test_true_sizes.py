"""The geometry at the sizes of published checkpoints, whose weights no rule of it asks for.

A tiny model whose configuration and processor are given the published numbers is shown an image
that brightens to the right (red) and downwards (green). So every cell's mean colour, read off the
pixels that the model would get, says where the cell's middle lies.
"""

from functools import cache

import pytest
import torch
from families import all_families
from fastground.models import wrap
from fastground.types import Recipe
from PIL import Image
from transformers import ChameleonVQVAEConfig

BUILD = {family.name: family.build for family in all_families()}
SIZES = [(640, 480), (480, 640), (1920, 1080), (333, 500), (1000, 250)]


def square(side):
    return {"size": {"height": side, "width": side}}


def cropped(side):
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def edges(tile, count):
    return {"size": {"longest_edge": tile * count}, "max_image_size": {"longest_edge": tile}}


NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
GRANITE = [[384 * rows, 384 * columns] for rows in range(1, 5) for columns in range(1, 5)]
QWEN = {"size": {"shortest_edge": 56 * 56, "longest_edge": 12845056}, "patch_size": 14}
TRUE = {  # family: side of a cell, vision configuration, image processor, configuration, processor
    "llava": (14, {"image_size": 336, "patch_size": 14}, cropped(336), {}, {}),
    "chameleon": (16, {}, cropped(512), {"vq_config": ChameleonVQVAEConfig()}, {}),
    "apertus1p5": (
        16, {"channel_multiplier": (1, 1, 2, 2, 4)},
        {"size": {"min_pixels": 128 * 128, "max_pixels": 1400 * 1400}, "spatial_factor": 16},
        {}, {},
    ),
    "nemotron_h_omni": (
        32, {"patch_size": 16},
        {"patch_size": 16, "min_num_patches": 1024, "max_num_patches": 13312}, {}, {},
    ),
    "video_llava": (14, {"image_size": 224, "patch_size": 14}, cropped(224), {}, {}),
    "deepseek_vl": (
        16, {"image_size": 384, "patch_size": 16}, square(384) | {"min_size": 14}, {},
        {"num_image_tokens": 576},
    ),
    "gemma3": (
        56, {"image_size": 896, "patch_size": 14}, square(896), {"mm_tokens_per_image": 256},
        {"full_image_sequence": "\n\n<start>" + "<image>" * 256 + "<end>\n\n"},
    ),
    "gemma3n": (
        48, {}, square(768), {"vision_soft_tokens_per_image": 256},
        {"full_image_sequence": "\n\n<start>" + "<image>" * 256 + "<end>\n\n"},
    ),
    "fast_vlm": (64, {}, cropped(1024), {}, {"patch_size": 64}),
    "perception_lm": (
        28, {}, square(448) | {"tile_size": 448, "max_num_tiles": 36}, {}, {"patch_size": 14}
    ),
    "paligemma": (
        14, {"image_size": 448, "patch_size": 14}, square(448), {}, {"image_seq_length": 1024}
    ),
    "idefics3": (
        28, {"image_size": 364, "patch_size": 14}, edges(364, 4), {"scale_factor": 2},
        {"image_seq_len": 169},
    ),
    "smolvlm": (
        64, {"image_size": 512, "patch_size": 16}, edges(512, 4), {"scale_factor": 4},
        {"image_seq_len": 64},
    ),
    "internvl": (
        28, {"image_size": [448, 448], "patch_size": [14, 14]}, square(448) | {"max_patches": 12},
        {}, {"image_seq_length": 256},
    ),
    "qianfan_ocr": (
        28, {"image_size": [448, 448], "patch_size": [14, 14]}, square(448) | {"max_patches": 12},
        {}, {"image_seq_length": 256},
    ),
    "ovis2": (
        28, {"image_size": 448, "patch_size": 14, "hidden_stride": 2},
        square(448) | {"max_patches": 9}, {}, {"image_seq_length": 256},
    ),
    "llava_next": (
        14, {"image_size": 336, "patch_size": 14}, cropped(336) | {"image_grid_pinpoints": NEXT},
        {}, {"patch_size": 14},
    ),
    "llava_onevision": (
        14, {"image_size": 384, "patch_size": 14},
        square(384) | {"image_grid_pinpoints": ONEVISION},
        {"vision_aspect_ratio": "anyres_max_9"},
        {"vision_aspect_ratio": "anyres_max_9", "num_image_tokens": 729},
    ),
    "granite4_vision": (
        32, {"image_size": 384, "patch_size": 16},
        cropped(384) | {"image_grid_pinpoints": GRANITE}, {"downsample_rate": "4/8"},
        {"downsample_rate": "4/8", "patch_size": 16},
    ),
    "janus": (
        16, {"image_size": 384, "patch_size": 16}, square(384) | {"min_size": 14}, {},
        {"num_image_tokens": 576},
    ),
    "aya_vision": (
        28, {"image_size": 364, "patch_size": 14}, square(364) | {"max_patches": 12}, {},
        {"patch_size": 28, "img_size": 364},
    ),
    "cohere2_vision": (
        32, {"image_size": 512, "patch_size": 16},
        square(512) | {"max_patches": 12, "patch_size": 16}, {}, {"patch_size": 16},
    ),
    "llama4": (
        28, {"image_size": 336, "patch_size": 14}, square(336) | {"max_patches": 16}, {},
        {"patch_size": 14},
    ),
    "lighton_ocr": (
        28, {"patch_size": 14}, {"size": {"longest_edge": 1540}, "patch_size": 28}, {},
        {"effective_patch_size": 28},
    ),
    "mistral3": (
        28, {"patch_size": 14}, {"size": {"longest_edge": 1540}, "patch_size": 28}, {},
        {"patch_size": 14},
    ),
    "llava+pixtral": (
        16, {"patch_size": 16}, {"size": {"longest_edge": 1024}, "patch_size": 16}, {},
        {"patch_size": 16},
    ),
    "molmo2": (
        28, {"image_size": [378, 378], "patch_size": 14},
        square(378) | {"patch_size": 14, "max_crops": 8, "overlap_margins": [4, 4]}, {}, {},
    ),
    "ernie4_5_vl_moe": (28, {"patch_size": 14}, QWEN, {}, {}),
    "exaone4_5": (28, {"patch_size": 14}, QWEN, {}, {}),
    "glm5_next": (
        28, {"patch_size": 14},
        {"patch_size": 14, "min_image_tokens": 16, "max_image_tokens": 8000}, {}, {},
    ),
    "phi4_multimodal": (
        28, {"patch_size": 14, "crop_size": 448},
        square(448) | {"patch_size": 14, "dynamic_hd": 36}, {}, {},
    ),
    "step3p7": (
        56, {"patch_size": 14},
        square(728) | {"patch_size": 504, "vision_patch_size": 14, "max_image_size": 3024}, {},
        {
            "image_feature_placeholder": "<im_patch>" * 169,
            "patch_feature_placeholder": "<im_patch>" * 81,
        },
    ),
    "glm4v": (28, {"patch_size": 14}, QWEN, {}, {}),
    "qwen2_5_vl": (28, {"patch_size": 14}, QWEN, {}, {}),
    "cohere_compass": (32, {"patch_size": 16}, QWEN | {"patch_size": 16}, {}, {}),
    "qwen3_vl": (32, {"patch_size": 16}, QWEN | {"patch_size": 16}, {}, {}),
}  # fmt: skip
PREPARED = [
    pytest.param(name, blocks, id=f"{name}-{blocks}")
    for name in TRUE
    for blocks in next(f for f in all_families() if f.name == name).blocks
]


def given(part, values):
    for name, value in values.items():
        assert hasattr(part, name), name
        setattr(part, name, value)


@cache
def published(name):
    """The family's tiny model with the published sizes, and the side of a cell in pixels."""
    model, processor = BUILD[name](0)
    cell, vision, images, config, words = TRUE[name]
    processor.image_processor = type(processor.image_processor)(
        **{**processor.image_processor.to_dict(), **images}
    )
    given(getattr(model.config, "vision_config", None), vision)
    given(model.config, config)
    given(processor, words)
    model.config.get_text_config().max_position_embeddings = 1 << 20
    return wrap(model, processor), cell


def brightening(size):
    width, height = size
    shades = torch.zeros(height, width, 3)
    shades[..., 0] = ((torch.arange(width) + 0.5) * 255 / width).round()
    shades[..., 1] = (((torch.arange(height) + 0.5) * 255 / height).round())[:, None]
    return Image.fromarray(shades.byte().numpy())


def colours(lvlm, seen, cell):
    """(cells, 2) mean red and green of all image tokens, 0 to 1, in the processor's order."""
    images = getattr(lvlm, "image_processor", lvlm.processor.image_processor)
    mean, std = map(torch.tensor, (images.image_mean, images.image_std))
    names = [name for name in seen.inputs if name.startswith("pixel_values")]
    pixels = seen.inputs["pixel_values" if "pixel_values" in names else names[0]]
    if "image_grid_thw" in seen.inputs:  # patches of a cell follow each other
        means = pixels.view(len(pixels), 3, -1).mean(-1).unflatten(0, (-1, 4)).mean(1)
    elif "image_grid_hw" in seen.inputs:  # patches line by line
        [grid] = seen.inputs["image_grid_hw"].tolist()
        patches = pixels.view(*grid, 3, -1).mean(-1).permute(2, 0, 1)
        means = torch.nn.functional.avg_pool2d(patches, 2).flatten(1).T
    elif "image_token_pooling" in seen.inputs:  # a cell names its patches, whose colours come last
        patches, of_cell = pixels.unflatten(-1, (-1, 3)).mean(-2).flatten(0, 1), seen.inputs
        of_cell = of_cell["image_token_pooling"].long()
        there = (of_cell >= 0)[..., None]
        means = (patches[of_cell.clamp(min=0)] * there).sum(1) / there.sum(1)
    else:
        views = [pixels.flatten(0, -4)]
        if "pixel_values_local" in seen.inputs:  # of another size, before the whole
            views.insert(0, seen.inputs["pixel_values_local"])
        if lvlm.model.config.model_type == "step3p7":
            views = [before(tiles, cell * 3 // 8) for tiles in views]
        cells = [torch.nn.functional.avg_pool2d(tiles, cell) for tiles in views]
        means = torch.cat([c.permute(0, 2, 3, 1).reshape(-1, 3) for c in cells])
    return ((means * std + mean) / (255 * images.rescale_factor))[:, :2]


def before(tiles, pixels):
    """What lies so many pixels before, at the left and above; the edge goes on beyond it."""
    height, width = tiles.shape[-2:]
    more = torch.nn.functional.pad(tiles, (pixels, 0, pixels, 0), mode="replicate")
    return more[..., :height, :width]


def check(layout, found, size, share=0.1):
    """The colours (grid_h, grid_w, 2) are those of the cells' middles, but for a share of a cell
    and half a shade of 255."""
    for axis, line in ((0, found[..., 0]), (1, found[..., 1].T)):
        (middles, inner), (_, whole) = (_middles(layout, size, a) for a in (axis, 1 - axis))
        assert inner.any() and whole.any()
        off = (line * size[axis] - middles)[whole][:, inner].abs().max()
        assert off <= share * layout.cell_size[axis] + size[axis] / 510, (size, axis, float(off))


def _middles(layout, size, axis):
    """The cells' middles along an axis, and which lie a cell from the image's edges: there resizing
    has no neighbours, or padding for one."""
    pitch = layout.cell_size[axis]
    middles = layout.origin[axis] + (torch.arange(layout.grid[1 - axis]) + 0.5) * pitch
    return middles, (middles > pitch) & (middles < size[axis] - pitch)


def seen_colours(lvlm, image, blocks, cell):
    """The image's layout, and the mean red and green (grid_h, grid_w, 2) of its cells."""
    seen = lvlm.look(image, Recipe(blocks=blocks))
    if "image_grid_pinpoints" in lvlm.processor.image_processor.to_dict():
        tiles = seen.inputs["pixel_values"][0]
        tiles = tiles[:1] if blocks == "base" else tiles[1:]
        found = colours(lvlm, seen._replace(inputs={"pixel_values": tiles}), cell)
        found = unpadded(lvlm, image.size, found, cell) if blocks == "stitch" else found
        if found.shape[:2] != seen.layout.grid and blocks == "stitch":  # OneVision averages many
            assert lvlm.model.config.model_type == "llava_onevision"
            (found,) = torch.nn.functional.interpolate(
                found.permute(2, 0, 1)[None], seen.layout.grid, mode="bilinear"
            )
            found = found.permute(1, 2, 0)
        return seen.layout, found.view(*seen.layout.grid, 2)
    if "image_pixel_values" in seen.inputs:  # the whole before the tiles, which are put together
        views = seen.inputs["image_pixel_values"][0]
        if blocks == "stitch":
            height, width = seen.inputs["image_sizes"][0].tolist()
            side = views.shape[-1]
            tiles = views[1:].unflatten(0, (height // side, width // side))
            views = tiles.permute(2, 0, 3, 1, 4).reshape(1, 3, height, width)
        found = colours(lvlm, seen._replace(inputs={"pixel_values": views[:1]}), cell)
        grid = seen.layout.grid
        return seen.layout, found.unflatten(0, (-1, views.shape[-1] // cell))[: grid[0], : grid[1]]
    image_id = lvlm.image_token_id
    image_tokens = [i for i, token in enumerate(seen.ids) if token == image_id]
    places = {token: place for place, token in enumerate(image_tokens)}
    found = colours(lvlm, seen, cell)
    assert len(found) == len(places)
    found = found[[places[i] for i in seen.layout.tokens]]
    return seen.layout, found.view(*seen.layout.grid, 2)


def unpadded(lvlm, size, found, cell):
    """(rows, columns, 2): the tiles' cells side by side, the padding of their canvas taken off by
    the model's own rule."""
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    tile = lvlm.model.config.vision_config.image_size
    canvases = lvlm.processor.image_processor.image_grid_pinpoints
    height, width = select_best_resolution(size[::-1], canvases)
    rows, columns, side = height // tile, width // tile, tile // cell
    whole = found.view(rows, columns, side, side, 2).permute(4, 0, 2, 1, 3)
    whole = unpad_image(whole.reshape(2, rows * side, columns * side), size[::-1])
    return whole.permute(1, 2, 0)


@pytest.mark.parametrize(("name", "blocks"), PREPARED)
def test_cells_lie_where_their_colour_says(name, blocks):
    lvlm, cell = published(name)
    share = 0.1
    if name.startswith("llava_"):  # what is left over of a tile shifts cells by half of it at most
        share = 0.05 + lvlm.model.config.vision_config.image_size % cell / 2 / cell
    for size in SIZES:
        layout, found = seen_colours(lvlm, brightening(size), blocks, cell)
        check(layout, found, size, share)
