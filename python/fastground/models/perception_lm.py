"""PerceptionLM: the whole image first, then its tiles, all in one run of tokens.

The module tree it expects:

    model.vision_tower            TimmWrapperModel, a token a patch, which sees one square tile
    model.multi_modal_projector   the mean of projector_pooling_ratio x as many patches to one token
    model.language_model          LlamaModel, causal
    lm_head

The tokens of an image in 1 x 2 tiles (# is an image token), no words between:

    ####   #### ####

The image is stretched to whole tiles, and once to a single one, so cells lie evenly over it; every
image has both, a small one twice the same. With vision_input_type "vanilla" it has the first only,
for both values of `recipe.blocks`. transformers' image processor needs torchvision, the tower timm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastground.models.lvlm import LVLM, Seen
from fastground.models.tiles import stitched, stretched
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class PerceptionLM(LVLM):
    """The whole image, then tiles in rows; tested around a stand-in for timm's tower."""

    model_types = ("perception_lm",)
    sees_tiles = True

    def look(self, image: Image, recipe: Recipe) -> Seen:
        """As every family; tiles of several images follow each other on the second axis."""
        return super().look(image, recipe)._replace(axes={"pixel_values": 1})

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a token of the whole image, or of the stitched tiles."""
        every = [i for i, token in enumerate(ids) if token == self.model.config.image_token_id]
        pooled = self.model.config.projector_pooling_ratio
        count, pixels = inputs["pixel_values"].shape[1], inputs["pixel_values"].shape[-1]
        side = pixels // (self.processor.patch_size * pooled)
        cells = side * side
        if len(every) != count * cells:
            raise ValueError(
                f"processor must make {side} x {side} image tokens a tile, as the model pools "
                f"{pooled} x {pooled} patches, but made {len(every)} for {count} tiles; its "
                "patch_size and pooling_ratio are not the model's"
            )
        if recipe.blocks == "base" or count == 1:
            return stretched(image, every[:cells], (side, side), every)
        rows, columns = self.tiles(image)
        if rows * columns != count - 1:
            raise ValueError(
                f"processor must cut {image.size} pixels into the {rows} x {columns} tiles that "
                f"its configuration says, but made {count - 1}; use the image processor that comes "
                "with the model"
            )
        tokens = stitched(every[cells:], (rows, columns), (side, side))
        return stretched(image, tokens, (rows * side, columns * side), every)

    def tiles(self, image: Image) -> tuple[int, int]:
        """Rows and columns, which the image processor tells where it resizes."""
        import torch

        images = self.processor.image_processor
        blank = torch.zeros(1, 1, image.height, image.width, dtype=torch.uint8)
        _, (columns, rows) = images.resize(
            blank, images.tile_size, images.max_num_tiles, resample=images.resample
        )
        return rows, columns
