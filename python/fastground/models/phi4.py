"""Phi-4 multimodal: an image is seen in tiles, put together again, and then whole.

The module tree it expects:

    model.embed_tokens_extend.image_embed   Phi4MultimodalVisionModel; the mean of 2 x 2 patches to
                                            one token, and a learned one after every row of them
    model.layers                            causal
    lm_head

The tokens of an image, all the same (# a cell of the tiles together, o of the whole, | a row's end,
+ one between):

    # # # |  # # # |   +   o o |  o o |

The image is made as large as its tiles, of 448 pixels a side, allow, and filled up with white at
its right or below. Of the tiles together, cells that only fill up are left out; of the whole, which
is that stretched to one square, they are there. Where rotation changes with the length, at 4,096
tokens, all expressions of a forward go by the longest. transformers' image processor needs
torchvision.

The published checkpoint keeps what it learned of images in weights of their own, which
transformers loads apart: model.load_adapter(..., adapter_kwargs={"subfolder": "vision-lora"}).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastground.models.lvlm import LVLM
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Phi4(LVLM):
    """Tiles put together, then the whole; load its vision-lora into it and hand it to wrap."""

    model_types = ("phi4_multimodal",)
    auto = "AutoModelForMultimodalLM"
    sees_tiles = True

    @property
    def image_token_id(self) -> int:
        """As every family; this one's configuration names it beside the tower."""
        return int(self.model.config.vision_config.image_token_id)

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a token of the whole image, or of its tiles together."""
        vision = self.model.config.vision_config
        every = [i for i, token in enumerate(ids) if token == self.image_token_id]
        [[made_h, made_w]] = inputs["image_sizes"].tolist()
        side, patch = vision.crop_size, vision.patch_size
        whole = side // (2 * patch)
        tiles_h, tiles_w = made_h // side, made_w // side
        # Every other patch of a tile, to the right and below, that is not all filling.
        seen = inputs["image_attention_mask"][0, 1:, ::2, ::2].unflatten(0, (tiles_h, tiles_w))
        rows, columns = (int(line.sum()) for line in (seen[:, 0, :, 0], seen[0, :, 0]))
        tokens_made = rows * (columns + 1) + 1 + whole * (whole + 1)
        if side % (2 * patch) or len(every) != tokens_made:
            raise ValueError(
                f"processor must make {rows} x {columns} image tokens of the tiles and {whole} x "
                f"{whole} of the whole image, one after each row and one between, but made "
                f"{len(every)} for tiles of {side} pixels, {patch} a patch; its image processor's "
                "size and patch_size are not the model's"
            )
        scale = max(image.width / made_w, image.height / made_h)
        if recipe.blocks == "stitch":
            first, grid, cell = 0, (rows, columns), (2 * patch * scale,) * 2
        else:
            first, grid = rows * (columns + 1) + 1, (whole, whole)
            cell = made_w * scale / whole, made_h * scale / whole
        line = grid[1] + 1
        tokens = [every[first + r * line + c] for r in range(grid[0]) for c in range(grid[1])]
        return ImageLayout(
            grid=grid,
            tokens=tuple(tokens),
            all_tokens=tuple(every),
            image_size=(image.height, image.width),
            cell_size=cell,
        )
