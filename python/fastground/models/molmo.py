"""Molmo 2: the whole image at a low resolution, then all of it again at a higher one.

The module tree it expects:

    model.vision_tower            Molmo2VisionModel, which gets crops of patches
    model.multi_modal_projector   Molmo2Adapter: attention pools 2 x 2 patches to a token
    model.language_model          Molmo2TextModel
    lm_head

The tokens of an image (# is a token of its patches; every line ends with a mark of its own):

    <low_res_im_start> ###| ###| <im_end>   <im_start> #####| #####| #####| #####| <im_end>

Both views are the image stretched: the first over one crop, the second over a canvas of crops that
overlap, so that each sees beyond its edges; a patch that two crops hold is the token of one. Where
an odd number of patches is pooled in pairs the last cell of a line has one, and reaches beyond the
image with its other half. All of the image's tokens, those marks too, see each other, so that
expressions do not share them. transformers has Molmo 2 from 5.20 on, and its image processor needs
torchvision; the first Molmo attends by code of its own and is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastground.models.lvlm import LVLM, Seen
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


_HAIR = 1 - 1e-6
"""By so much is a cell less wide: one with as many patches as it lacks has its middle on the edge
of the image, and is the image's and no padding."""


class Molmo2(LVLM):
    """The whole image, then its overlapping crops, as one raster."""

    model_types = ("molmo2",)
    shares_prefix = False
    sees_tiles = True
    needs_mask = True

    def spelled(self, before: str, after: str) -> tuple[str, str]:
        """A first token, which the processor puts before every prompt that lacks it."""
        tokenizer = self.processor.tokenizer
        first = str(tokenizer.bos_token or tokenizer.eos_token)
        return before if before.startswith(first) else first + before, after

    def read(self, image: Image) -> tuple[list[int], dict[str, torch.Tensor]]:
        """As every family, without that first token."""
        ids, inputs = super().read(image)
        marks = set(self.processor.image_token_ids)
        return ids[next(i for i, token in enumerate(ids) if token in marks) :], inputs

    def look(self, image: Image, recipe: Recipe) -> Seen:
        """As every family; what is pooled is counted over all images of a forward."""
        seen = super().look(image, recipe)
        crops, patches = seen.inputs["pixel_values"].shape[:2]
        return seen._replace(counted={"image_token_pooling": crops * patches})

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a token of the whole image, or of its crops."""
        every = [i for i, token in enumerate(ids) if token == self.model.config.image_token_id]
        low_h, low_w, high_h, high_w = inputs["image_grids"][0].tolist()
        pooled, whole = inputs["image_token_pooling"], low_h * low_w
        tall, wide = self.processor.image_processor.pooling_size
        if not len(every) == len(pooled) == whole + high_h * high_w or tall * wide != len(pooled.T):
            raise ValueError(
                f"processor must make one image token for each of {low_h} x {low_w} and {high_h} x "
                f"{high_w} cells of {tall} x {wide} patches, but made {len(every)} for "
                f"{len(pooled)} of {len(pooled.T)}; its image_processor and tokenizer do not "
                "belong together"
            )
        grid, cells = ((low_h, low_w), range(whole))
        if recipe.blocks == "stitch":
            grid, cells = (high_h, high_w), range(whole, len(every))
        # Which of the patches that cells have room for are there; the rest pads them.
        there = (pooled[cells.start : cells.stop] >= 0).view(*grid, tall, wide).transpose(1, 2)
        there = there.reshape(grid[0] * tall, grid[1] * wide)
        down, across = there.any(1), there.any(0)
        patch_h, patch_w = image.height / int(down.sum()), image.width / int(across.sum())
        return ImageLayout(
            grid=grid,
            tokens=tuple(every[i] for i in cells),
            all_tokens=tuple(every),
            image_size=(image.height, image.width),
            cell_size=(wide * patch_w * _HAIR, tall * patch_h * _HAIR),
            origin=(-int(across.int().argmax()) * patch_w, -int(down.int().argmax()) * patch_h),
        )

    def token_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """1 where a token is the image's or marks its lines and ends: those see each other."""
        import torch

        marks = torch.tensor(self.processor.image_token_ids, device=input_ids.device)
        return {"mm_token_type_ids": torch.isin(input_ids, marks).long()}
