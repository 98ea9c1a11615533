"""DeepSeek-VL and Janus: the longer side resized, the shorter one padded, one square of patches.

The module tree it expects:

    model.vision_model                       SiglipVisionModel, or Janus' own like it
    model.high_res_vision_model, _neck, ...  SamVisionModel beside it (hybrid), brought to its grid
    model.aligner                            one image token a patch, nothing merged
    model.language_model                     LlamaModel, causal
    lm_head

    DeepSeek-VL    # # # # # #                            one token a patch, in raster order
    Janus          <begin_of_image> # # # # # # <end_of_image>

`Square` also holds what families with other frames (gemma.py) share: one square grid that the
processor's own tokens must fill.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastground.models.geometry import Frame, letterbox
from fastground.models.lvlm import LVLM
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Square(LVLM):
    """One grid of image tokens in raster order, of one size for every image."""

    frills = 0
    """Tokens on each side of the image's own that stand in the mark's place with them."""

    @property
    def cell(self) -> int:
        """Side of a cell in pixels of the model's input."""
        return int(self.model.config.vision_config.patch_size)

    def frame(self, size: tuple[int, int]) -> Frame:
        """Where the model's input lies in an image of this (height, width)."""
        return letterbox(self.processor.image_processor, size)

    def read(self, image: Image) -> tuple[list[int], dict[str, torch.Tensor]]:
        """As the processor makes them, without the words that it writes around: see `spelled`."""
        ids, inputs = super().read(image)
        image_id = self.model.config.image_token_id
        if image_id in ids:
            first, past = ids.index(image_id), len(ids) - ids[::-1].index(image_id)
            ids = ids[first - self.frills : past + self.frills]
        return ids, inputs

    def cells(self, ids: list[int], grid: tuple[int, int]) -> tuple[int, ...]:
        """Which of `ids` are the grid's.

        Raises:
            ValueError: there are more or fewer.
        """
        tokens = tuple(i for i, t in enumerate(ids) if t == self.model.config.image_token_id)
        if len(tokens) != grid[0] * grid[1]:
            raise ValueError(
                f"processor must make one image token a cell of {grid[0]} x {grid[1]}, but made "
                f"{len(tokens)}; use the processor that comes with the model"
            )
        return tokens

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell an image token."""
        size, cell = (image.height, image.width), self.cell
        lies = self.frame(size)
        made = tuple(inputs["pixel_values"].shape[-2:])
        if made != lies.size or len(inputs["pixel_values"]) != 1:
            raise ValueError(
                f"image_processor must make one view of the {lies.size} pixels that its "
                f"configuration says, but made {len(inputs['pixel_values'])} of {made}; use the "
                "image processor that comes with the model"
            )
        grid = lies.size[0] // cell, lies.size[1] // cell
        return ImageLayout(
            grid=grid,
            tokens=self.cells(ids, grid),
            image_size=size,
            cell_size=(lies.scale[0] * cell, lies.scale[1] * cell),
            origin=lies.origin,
        )


class DeepseekVL(Square):
    """One square of image tokens alone; the hybrid's two towers make one grid all the same."""

    model_types = ("deepseek_vl", "deepseek_vl_hybrid")


class Janus(Square):
    """One square, two marks around it; some processors put a system prompt before everything."""

    model_types = ("janus",)
    frills = 1

    def spelled(self, before: str, after: str) -> tuple[str, str]:
        """With the system prompt, where the processor writes it."""
        if getattr(self.processor, "use_default_system_prompt", False):
            from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

            before = DEFAULT_SYSTEM_PROMPT + before
        return before, after
