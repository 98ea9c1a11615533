"""HunYuan-VL, such as HunyuanOCR: lines of cells, each with a token that ends it.

The module tree it expects:

    model.vision_tower       HunYuanVLVisionTransformer; convolutions make a token of 2 x 2 patches
    model.language_model     HunYuanVLTextModel, causal; counts positions in several axes
    lm_head

The tokens of an image in 2 x 3 cells: all are image tokens, of which # are cells.

    <image_start>  begin  ###n ###n  end  <image_end>      n: a new line

    sequence   5 6789 ....   14        positions of a prompt, from its first token on; in
    column     5 0120 1201   14        models of three axes without the first
    row        5 0000 1111   14
    image      5 0000 0000   14

A cell's column and row are counted from 0, wherever the image stands, the new line's as a cell's;
words go on where the sequence does. The image is resized to whole cells; nothing is padded or cut.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastground.models.lvlm import LVLM
from fastground.models.tiles import stretched
from fastground.types import Encoded, ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class HunYuan(LVLM):
    """Lines of cells, each with a token that ends it, between two more."""

    model_types = ("hunyuan_vl",)

    @property
    def marked(self) -> str:
        """The mark between the two that its processor wants to see around it."""
        return f"{self.processor.image_start_token}{self.mark}{self.processor.image_end_token}"

    @property
    def alone(self) -> str:
        """The mark with them."""
        return self.marked

    def read(self, image: Image) -> tuple[list[int], dict[str, torch.Tensor]]:
        """As every family, without what stands around the mark."""
        ids, inputs = super().read(image)
        return ids[1:-1], inputs

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a square of merged patches."""
        grid_h, grid_w = self._grid(inputs)
        ends = len(ids) - grid_h * (grid_w + 1)
        if ends != 2:
            raise ValueError(
                f"processor must make one token a cell, one a line and two more, but for {grid_h} "
                f"x {grid_w} cells made {len(ids)}; use the processor that belongs to the model, "
                "with cat_extra_token=True"
            )
        cells = [1 + row * (grid_w + 1) + i for row in range(grid_h) for i in range(grid_w)]
        return stretched(image, cells, (grid_h, grid_w), range(len(ids)))

    def token_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """1 where a token is the image's, by which the model counts positions."""
        return {"mm_token_type_ids": (input_ids == self.model.config.image_token_id).int()}

    def _encode(self, image: Image, expressions: list[str], recipe: Recipe) -> Encoded:
        import torch

        encoded = super()._encode(image, expressions, recipe)
        grid_h, grid_w = self._grid(encoded.image_inputs)
        axes = len(self.model.config.text_config.rope_parameters["mrope_section"])
        positions = torch.arange(encoded.prefix_length).repeat(axes, 1)
        first = encoded.layout.tokens[0]
        lines = slice(first, first + grid_h * (grid_w + 1))
        positions[-3, lines] = torch.arange(grid_w + 1).repeat(grid_h)
        positions[-2, lines] = torch.arange(grid_h).repeat_interleave(grid_w + 1)
        positions[-1, lines] = 0
        return replace(encoded, prefix_positions=positions)

    def _grid(self, inputs: dict[str, torch.Tensor]) -> tuple[int, int]:
        [[_, patches_h, patches_w]] = inputs["image_grid_thw"].tolist()
        merge = self.processor.image_processor.merge_size
        return patches_h // merge, patches_w // merge
