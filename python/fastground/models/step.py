"""Step 3.7: an image is seen in tiles of its own, and then whole.

The module tree it expects:

    model.vision_model             Step3p7VisionModel: after its layers two convolutions, each of
                                   which takes every other patch of a side, so 4 x 4 a token
    model.multi_modal_projector    one linear layer
    model.language_model           Step3p7TextModel: layers with a window, which have another number
    lm_head                        of heads, between those with all; the latter's heads are read

A convolution takes what lies around every other patch, so that the middle of what a token sees is
the first of its four patches a side, and a cell begins one and a half patches before it.

The tokens of an image in 2 x 2 tiles (# is an image token):

    <patch_start> #### <patch_end> <patch_start> #### <patch_end> <patch_newline>
    <patch_start> #### <patch_end> <patch_start> #### <patch_end>
    <im_start> ######### <im_end>

How large a tile of the image is follows from the image's shape. Tiles and the whole are stretched
to squares, each of its own size, and nothing is cut away. An image that fits the whole view and is
not long has no tiles, for both values of `recipe.blocks`. What is less than 32 pixels wide and more
than four times as long is filled up to a square at its right or below first.

transformers' image processor needs torchvision.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastground.models.lvlm import LVLM
from fastground.models.tiles import stitched, stretched
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Step(LVLM):
    """Tiles in rows, then the whole image; heads of the layers without a window are read."""

    model_types = ("step3p7",)
    sees_tiles = True

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a token of the whole image, or of its tiles."""
        tokenizer, images = self.processor.tokenizer, self.processor.image_processor
        every = [i for i, token in enumerate(ids) if token == self.image_token_id]
        end, newline = tokenizer.convert_tokens_to_ids(["<patch_end>", "<patch_newline>"])
        rows, count = 1 + ids.count(newline), ids.count(end)
        stride = self.model.config.vision_config.patch_size * 4
        whole, tile = images.size["height"] // stride, images.patch_size // stride
        if count % rows or len(every) != whole**2 + count * tile**2:
            raise ValueError(
                f"processor must make {whole} x {whole} image tokens of the whole image and {tile} "
                f"x {tile} of each tile, as the model does with {stride} pixels a token, but made "
                f"{len(every)} for {count} tiles in {rows} rows; its image processor's sizes and "
                "vision_patch_size are not the model's"
            )
        if recipe.blocks == "stitch" and count:
            tokens = stitched(every[: count * tile**2], (rows, count // rows), (tile, tile))
            grid = rows * tile, count // rows * tile
        else:
            tokens, grid = every[count * tile**2 :], (whole, whole)
        height, width = image.height, image.width
        if min(height, width) < 32 and max(height, width) > 4 * min(height, width):
            height = width = max(height, width)
        cell = width / grid[1], height / grid[0]
        return replace(
            stretched(image, tokens, grid, every), cell_size=cell,
            origin=(-1.5 / 4 * cell[0], -1.5 / 4 * cell[1]),
        )  # fmt: skip
