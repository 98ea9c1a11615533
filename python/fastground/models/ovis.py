"""Ovis2: the whole image first, then its tiles, with words that end rows and columns of tiles.

The module tree it expects:

    model.vision_tower                Ovis2VisionModel: hidden_stride x hidden_stride patches to
                                      one token, a mixture of the visual vocabulary
    model.visual_embeddings_table     the visual vocabulary, and the words between the tiles
    model.language_model              Qwen2Model, causal
    lm_head

The tokens of an image in 2 x 2 tiles (# is <IMG_ATOM>, an image token):

    <IMG_START> ####   <IMG_GRID>
    #### <IMG_COL> #### <IMG_ROW>
    #### <IMG_COL> ####   <IMG_END>

The image is stretched to whole tiles, and once to a single one, so cells lie evenly over it. An
image in one tile has the first line and <IMG_END> only, for both values of `recipe.blocks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastground.models.lvlm import LVLM
from fastground.models.tiles import stitched, stretched
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Ovis(LVLM):
    """The whole image, then tiles in rows."""

    model_types = ("ovis2",)
    sees_tiles = True

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a token of the whole image, or of the stitched tiles."""
        config = self.model.config
        every = [i for i, token in enumerate(ids) if token == config.image_token_id]
        # The processor keeps the numbers of rows and columns to itself but for these words.
        number = self.processor.tokenizer.convert_tokens_to_ids
        rows = ids.count(number("<IMG_ROW>")) + 1
        columns = ids.count(number("<IMG_COL>")) // rows + 1
        count, _, height, width = inputs["pixel_values"].shape
        cell = config.vision_config.patch_size * config.vision_config.hidden_stride
        side = (height // cell, width // cell)
        cells = side[0] * side[1]
        tiles = rows * columns if rows * columns > 1 else 0
        if (len(every), count) != ((tiles + 1) * cells, tiles + 1) or height % cell or width % cell:
            raise ValueError(
                f"processor must make whole cells of {cell} pixels and {cells} image tokens a tile "
                f"of {height} x {width}, {tiles + 1} tiles for {rows} rows of {columns}, but made "
                f"{len(every)} for {count} tiles; its size and image_seq_length are not the model's"
            )
        if recipe.blocks == "stitch" and tiles:
            tokens = stitched(every[cells:], (rows, columns), side)
            return stretched(image, tokens, (rows * side[0], columns * side[1]), every)
        return stretched(image, every[:cells], side, every)
