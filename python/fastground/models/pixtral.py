"""Pixtral's vision tower in Mistral 3, LLaVA and LightOnOCR: an image keeps its own shape.

The module tree it expects:

    model.vision_tower            PixtralVisionModel (vision_encoder in LightOnOCR)
    model.multi_modal_projector   spatial_merge_size x spatial_merge_size patches to one token; one
                                  in LLaVA
    model.language_model          MistralModel, MistralLarge4TextModel or Qwen3Model, causal
    lm_head

The tokens of an image of 2 x 4 cells (# is an image token):

    # # # # [IMG_BREAK]
    # # # # [IMG_END]          LightOnOCR has # alone

The image is made smaller where it must be, keeps its ratio of sides, and is then stretched to whole
cells. Words that end a row are the language's and no image tokens. transformers' PixtralProcessor
needs torchvision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastground.models.lvlm import LVLM
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Pixtral(LVLM):
    """One row of tokens a row of cells, of an image in its own shape."""

    model_types = ("mistral3", "mistral_large4", "llava+pixtral", "lighton_ocr")

    def __init__(self, model: Any, processor: Any, checkpoint: str) -> None:
        super().__init__(model, processor, checkpoint)
        if getattr(model.config, "vision_feature_select_strategy", "full") != "full":
            raise ValueError(
                "model must have vision_feature_select_strategy 'full' with a Pixtral tower, which "
                f"has no class token, but got {model.config.vision_feature_select_strategy!r}"
            )
        if getattr(processor.image_processor, "do_center_crop", False):
            raise ValueError(
                "image_processor must show the model the whole image, but do_center_crop is set; "
                "set processor.image_processor.do_center_crop = False"
            )
        merge = getattr(model.config, "spatial_merge_size", 1)
        self.cell = model.config.vision_config.patch_size * merge
        """Side of a cell in pixels of the model's input."""

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell an image token, of the size that the processor resized to."""
        tokens = [i for i, token in enumerate(ids) if token == self.model.config.image_token_id]
        [(height, width)] = inputs["image_sizes"].tolist()
        grid = (height // self.cell, width // self.cell)
        if len(tokens) != grid[0] * grid[1]:
            raise ValueError(
                f"processor must make one image token for {self.cell} x {self.cell} pixels, so "
                f"{grid[0]} x {grid[1]} of {height} x {width}, but made {len(tokens)}; its "
                "patch_size and spatial_merge_size are not the model's"
            )
        if grid == (1, 1) and self.model.config.model_type.startswith("mistral"):
            raise ValueError(  # its projector would take the one token's width for tokens
                f"image must fill two cells at least of {self.cell} pixels a side, but is "
                f"{image.width} x {image.height}; enlarge it"
            )
        return ImageLayout(
            grid=grid,
            tokens=tuple(tokens),
            image_size=(image.height, image.width),
            cell_size=(self.cell * image.width / width, self.cell * image.height / height),
        )
