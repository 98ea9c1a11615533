"""LFM2-VL: tiles with their row and column written before them, then a thumbnail in its own shape.

The module tree it expects:

    model.vision_tower            Siglip2VisionModel
    model.multi_modal_projector   downsample_factor x downsample_factor patches to one token
    model.language_model          Lfm2Model: convolutions over the sequence between attention layers
    lm_head

The tokens of an image in 1 x 2 tiles (# is an image token):

    <|image_start|>
    <|img_row_1_col_1|> ####   <|img_row_1_col_2|> ####
    <|img_thumbnail|> ######
    <|image_end|>

Tiles are square and the image is stretched over them; the thumbnail nearly keeps its ratio of
sides. A small image is its thumbnail alone, without the word before it, for both values of
`recipe.blocks`; an image without thumbnail is its tiles, likewise. A convolution would look across
the branches of a pack, so expressions do not share the image. transformers' image processor needs
torchvision.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fastground.models.lvlm import LVLM
from fastground.models.tiles import stitched, stretched
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_TILE = re.compile(r"<\|img_row_(\d+)_col_(\d+)\|>")


class Lfm2Vl(LVLM):
    """Tiles by row and column, then a thumbnail."""

    model_types = ("lfm2_vl",)
    shares_prefix = False
    sees_tiles = True

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a token of the thumbnail, or of the stitched tiles."""
        config = self.model.config
        every = [i for i, token in enumerate(ids) if token == config.image_token_id]
        # The processor keeps the numbers of rows and columns to itself but for these words.
        named = [(int(r), int(c)) for r, c in _TILE.findall(self.processor.tokenizer.decode(ids))]
        rows, columns = max(named, default=(0, 0))
        shapes = [
            (height // config.downsample_factor, width // config.downsample_factor)
            for height, width in inputs["spatial_shapes"].tolist()
        ]
        tiles, rest = shapes[: rows * columns], shapes[rows * columns :]
        cells = sum(height * width for height, width in tiles)
        if (
            len(named) != rows * columns
            or len(set(tiles)) > 1
            or len(rest) > 1
            or len(every) != sum(height * width for height, width in shapes)
        ):
            raise ValueError(
                "processor must name every tile but the thumbnail and make one image token for "
                f"{config.downsample_factor} x {config.downsample_factor} patches, but made "
                f"{len(every)} and named {len(named)} tiles for grids of {shapes}; its "
                "image_processor and tokenizer do not belong to the model"
            )
        if tiles and (recipe.blocks == "stitch" or not rest):
            tokens = stitched(every[:cells], (rows, columns), tiles[0])
            return stretched(image, tokens, (rows * tiles[0][0], columns * tiles[0][1]), every)
        return stretched(image, every[cells:], rest[0], every)
