"""Unlimited-OCR: the whole image in a square of cells, each line with a token that ends it.

The module tree it expects:

    model.vision_tower       UnlimitedOcrVisionModel: SAM's, then two convolutions, each of which
                             takes every other patch of a side, so 4 x 4 a token; then CLIP's
    model.image_newline      the token after each line; model.view_separator ends the image
    model.language_model     UnlimitedOcrTextModel: what it says sees all of the prompt, but of what
    lm_head                  was said before only the last so many tokens

The tokens of an image of 2 x 2 cells: all are image tokens, of which # are cells.

    ##n ##n |                n: the token after a line, |: the separator

The longer side is resized and the shorter one padded to a square; where the square is small, both
are resized to it. A convolution takes what lies around every other patch, as in step.py, so that a
cell begins one and a half patches before its first. Of an image larger than a tile the processor
would put tiles before all this, which are left out, as the model reads several pages at once.

In a cache the prompt is what the first forward saw, so that expressions behind an image's keys
would be taken for words that the model said. The image processor needs torchvision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastground.models.lvlm import LVLM
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class UnlimitedOcr(LVLM):
    """Lines of cells of the whole image, each with a token that ends it; without its tiles."""

    model_types = ("unlimited_ocr",)
    shares_prefix = False
    caches_prefix = False

    def read(self, image: Image) -> tuple[list[int], dict[str, torch.Tensor]]:
        """As every family, in one view."""
        with self.reading(image):
            made = self.processor(
                images=[image], text=[self.alone], add_special_tokens=False,
                crop_to_patches=False, return_tensors="pt",
            )  # fmt: skip
        return made["input_ids"][0].tolist(), self.placed({"pixel_values": made["pixel_values"]})

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell 4 x 4 patches."""
        stride = 4 * self.model.config.vision_config.sam_config.patch_size
        height, width = made = tuple(inputs["pixel_values"].shape[-2:])
        side = -(-height // stride)
        if height != width or len(ids) != side * (side + 1) + 1:
            raise ValueError(
                f"processor must make {side} lines of {side} image tokens and one more, and one at "
                f"the end, of {height} x {width} pixels, but made {len(ids)}; its patch_size and "
                "downsample_ratio are not the model's"
            )
        if made[0] > self.processor.image_processor.maximum_pad_value:
            longer = max(image.height, image.width)
            height, width = (round(n * made[0] / longer) for n in (image.height, image.width))
        scale = image.width / width, image.height / height
        padding = (made[1] - width) // 2, (made[0] - height) // 2
        x, y = (-s * (before + 1.5 / 4 * stride) for s, before in zip(scale, padding, strict=True))
        return ImageLayout(
            grid=(side, side),
            tokens=tuple(line * (side + 1) + i for line in range(side) for i in range(side)),
            all_tokens=tuple(range(len(ids))),
            image_size=(image.height, image.width),
            cell_size=(stride * scale[0], stride * scale[1]),
            origin=(x, y),
        )
