"""Kimi K2.5 and GLM-5: an image keeps its own shape and is filled up to whole cells.

The module trees they expect:

    model.vision_tower        Kimi_K25VisionModel
    model.mm_projector        merge_kernel_size patches to one token
    model.language_model      DeepseekV3Model, causal
    lm_head

    model.visual              Glm5NextVisionModel; merge x merge patches become one token
    model.language_model      Glm5NextTextModel: recurrent layers, and between them some where an
    lm_head                   index chooses what each token sees; none counts positions

The tokens of an image of 2 x 4 cells (# is an image token, . a cell that may be partly black):

    # # # .
    . . . .

It is filled up at its right and below. How much smaller it is made before, or in GLM-5 larger,
follows from its size and the limits of the image processor; what the processor returns is the size
with the filling. Kimi's image processor needs torchvision.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastground.models.lvlm import LVLM
from fastground.models.qwen_vl import QwenVL
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Kimi(LVLM):
    """One raster of cells, filled up at the right and below."""

    model_types = ("kimi_k25",)

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell an image token; those that only fill up lie beyond the image."""
        vision = self.model.config.vision_config
        tokens = [i for i, token in enumerate(ids) if token == self.model.config.image_token_id]
        [(_, patches_h, patches_w)] = inputs["image_grid_thw"].tolist()
        merge_h, merge_w = vision.merge_kernel_size
        grid = (patches_h // merge_h, patches_w // merge_w)
        cell_h, cell_w = merge_h * vision.patch_size, merge_w * vision.patch_size
        height, width = _resized(self.processor.image_processor, image.height, image.width)
        if len(tokens) != grid[0] * grid[1] or grid != (-(-height // cell_h), -(-width // cell_w)):
            raise ValueError(
                f"processor must resize {image.height} x {image.width} to {height} x {width} and "
                f"make one image token for {cell_h} x {cell_w} pixels, but made {len(tokens)} in "
                f"{grid[0]} rows of {grid[1]}; its patch_size and merge_size are not the model's"
            )
        return ImageLayout(
            grid=grid,
            tokens=tuple(tokens),
            image_size=(image.height, image.width),
            cell_size=(cell_w * image.width / width, cell_h * image.height / height),
        )


class Glm5(QwenVL):
    """One run of image tokens, filled up at the right and below; recurrent layers between."""

    model_types = ("glm5_next",)
    shares_prefix = False

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a square of merged patches; those that only fill up lie beyond the image."""
        whole = super().layout(image, ids, inputs, recipe)
        images = self.processor.image_processor
        cell = images.patch_size * images.merge_size
        made = whole.grid[0] * cell, whole.grid[1] * cell
        height, width = _fitted(images, (image.height, image.width), made)
        return replace(whole, cell_size=(cell * image.width / width, cell * image.height / height))


def _fitted(images: Any, size: tuple[int, int], made: tuple[int, int]) -> tuple[int, int]:
    """(height, width) before it is filled up to `made`: larger only below the least of tokens."""
    if not images.do_resize:
        return size
    scale = min(made[0] / size[0], made[1] / size[1])
    if size[0] * size[1] >= images.min_image_tokens * (images.patch_size * images.merge_size) ** 2:
        scale = min(1.0, scale)
    height, width = (
        max(1, min(most, math.floor(length * scale)))
        for length, most in zip(size, made, strict=True)
    )
    return height, width


def _resized(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    """(height, width) before it is filled up: the limits are on all patches and on each side's."""
    if not image_processor.do_resize:
        return height, width
    patch, side = image_processor.patch_size, image_processor.size["max_height"]
    patches = max(1, height // patch) * max(1, width // patch)
    scale = min(
        1.0,
        math.sqrt(image_processor.max_patches / patches),
        side * patch / height,
        side * patch / width,
    )
    most = side * patch
    return min(most, max(1, int(height * scale))), min(most, max(1, int(width * scale)))
