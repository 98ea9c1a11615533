"""Idefics3, SmolVLM, Granite Docling: tiles named by row and column, the whole image last.

The module tree it expects:

    model.vision_model            SigLIP; square tiles
    model.connector               pixel shuffle: scale_factor x scale_factor patches to one token;
                                  in Granite Docling vision_model.connector
    model.text_model              LlamaModel or GraniteDoclingTextModel, causal
    lm_head

The tokens of an image in 2 x 2 tiles (# is an image token, F is <fake_token_around_image>):

    F <row_1_col_1> ####   F <row_1_col_2> ####   newline
    F <row_2_col_1> ####   F <row_2_col_2> ####   newline
    newline   F <global-img> ####   F

Image tokens are # alone; the words between them belong to the language. The image is stretched to
whole tiles, and once to a single one, so cells lie evenly over it. An image in one tile has the
last line only, for both values of `recipe.blocks`; in Granite Docling it has the first alone.

A tile may be no whole number of patches: in SmolVLM's 384 pixels are 27 patches of 14, and no token
sees the last 6. The whole image's cells are exact; stitched ones count as even over the tile and
lie at most that far off, a seventh of a cell. SmolVLM's processor needs the package num2words.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from fastground.models.lvlm import LVLM
from fastground.models.tiles import stitched, stretched
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_TILE = re.compile(r"<row_(\d+)_col_(\d+)>")


class Idefics(LVLM):
    """Tiles by row and column, then the whole image."""

    model_types: ClassVar[tuple[str, ...]] = ("idefics3", "smolvlm")
    sees_tiles = True

    def cell(self, inputs: dict[str, torch.Tensor]) -> int:
        """Side of a cell in pixels of a tile."""
        config = self.model.config
        return int(config.vision_config.patch_size * config.scale_factor)

    def split(self, named: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Row and column of the tiles beside the whole image, of all that are named."""
        return named

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a token of the whole image, or of the stitched tiles."""
        every = [i for i, token in enumerate(ids) if token == self.model.config.image_token_id]
        # The processor keeps the numbers of rows and columns to itself but for these words.
        named = [(int(r), int(c)) for r, c in _TILE.findall(self.processor.tokenizer.decode(ids))]
        named = self.split(named)
        rows, columns = max(named, default=(0, 0))
        count, height, width = (inputs["pixel_values"].shape[n] for n in (1, -2, -1))
        cell = self.cell(inputs)
        side = (height // cell, width // cell)
        cells = side[0] * side[1]
        if len(named) != rows * columns or (len(every), count) != (
            (len(named) + 1) * cells, len(named) + 1,
        ):  # fmt: skip
            raise ValueError(
                f"processor must make {cells} image tokens a tile of {height} x {width} pixels and "
                f"name every tile but the last, but made {len(every)} for {count} tiles, "
                f"{len(named)} of them named; its image_seq_len, image_processor and tokenizer do "
                "not belong to the model"
            )
        if recipe.blocks == "stitch" and named:
            tokens = stitched(every[:-cells], (rows, columns), side)
            return stretched(image, tokens, (rows * side[0], columns * side[1]), every)
        share = (side[0] * cell / height, side[1] * cell / width)
        return stretched(image, every[-cells:], side, every, share)


class GraniteDocling(Idefics):
    """As Idefics3, by tiles of twice the cells a side where its processor takes the fine route."""

    model_types = ("granite_docling",)

    def cell(self, inputs: dict[str, torch.Tensor]) -> int:
        """Side of a cell in pixels of a tile."""
        vision = self.model.config.vision_config
        return int(vision.patch_size * vision.scale_factor) // (1 + ("tile_fine_mask" in inputs))

    def split(self, named: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """None where the one that is named is the whole image."""
        return named if len(named) > 1 else []
