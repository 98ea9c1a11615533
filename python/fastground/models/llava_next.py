"""LLaVA-NeXT, LLaVA-OneVision, Granite 4 Vision: the whole image, then its tiles without padding.

The module tree it expects:

    model.vision_tower            CLIPVisionModel or SiglipVisionModel
    model.multi_modal_projector   one image token a patch; Granite has layerwise_projectors and
                                  spatial_projectors, one token 2 x 2 patches
    model.image_newline           the token after each line of the tiles
    model.language_model          causal
    lm_head

The image is squeezed to one square, the base. Then it is resized, its aspect kept, into the best of
a list of canvases, centred on it, and cut into tiles of the base's size. The model lays the tiles'
tokens side by side again and drops the lines that hold padding only:

    . . . . . . . .                                    0000   the base, line by line
    a a a a a a a a    canvas of 1 x 2 tiles           aaaaaaaa|   a line of all tiles and its
    b b b b b b b b    of 4 x 4 cells                  bbbbbbbb|   newline token
    . . . . . . . .
                       tokens:  0000 0000 0000 0000 aaaaaaaa| bbbbbbbb|

LLaVA-OneVision averages the lines and columns where the canvas holds far more than nine bases
("anyres_max_9"), so that cells are larger then. Granite's projectors have queries of their own, but
each begins as its own 2 x 2 patches and looks no further than a window of 8 x 8; what they see is
added to the image's tokens, which begin as zeros, before some of the layers, each its own.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, sqrt
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from fastground.models.lvlm import LVLM
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class LlavaNext(LVLM):
    """The base in raster order, then the tiles' lines, each with a newline token."""

    model_types: ClassVar[tuple[str, ...]] = (
        "llava_next", "llava_next_video", "llava_onevision",
    )  # fmt: skip
    sees_tiles = True

    @property
    def cell(self) -> int:
        """Side of a cell of the base in pixels."""
        return int(self.model.config.vision_config.patch_size)

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a patch of the base, or one a token of the tiles.

        Raises:
            ValueError: the processor does not tile as its configuration says, or the image is so
                thin that the model drops all of its tiles' lines.
        """
        vision, size = self.model.config.vision_config, (image.height, image.width)
        tile, patch = vision.image_size, self.cell
        side = tile // patch
        canvas = self._canvas(size, inputs["pixel_values"])
        down, across = _kept(size, canvas, tile, patch)
        lines, columns = down.cells, across.cells
        most = getattr(self.model.config, "vision_aspect_ratio", None)
        if most is not None:
            excess = sqrt(lines * columns / (int(most.rpartition("_")[2]) * side**2))
            if excess > 1.1:
                lines, columns = int(lines // excess), int(columns // excess)
        base, image_id = side * side, self.model.config.image_token_id
        if len(ids) != base + lines * (columns + 1) or set(ids) != {image_id}:
            raise ValueError(
                f"processor must make {base} tokens of the base and {lines} lines of {columns} and "
                f"a newline, but made {len(ids)}; its patch_size, image_grid_pinpoints and "
                "feature selection must be the model's"
            )
        if recipe.blocks == "base":
            return ImageLayout(
                grid=(side, side),
                tokens=tuple(range(base)),
                all_tokens=tuple(range(len(ids))),
                image_size=size,
                cell_size=(image.width * patch / tile, image.height * patch / tile),
            )
        if not lines * columns:
            raise ValueError(
                f"image must not be so thin that the model drops its tiles, but got {image.size} "
                "pixels; use recipe.blocks='base'"
            )
        return ImageLayout(
            grid=(lines, columns),
            tokens=tuple(
                base + line * (columns + 1) + i for line in range(lines) for i in range(columns)
            ),
            all_tokens=tuple(range(len(ids))),
            image_size=size,
            cell_size=(across.extent / columns, down.extent / lines),
            origin=(across.origin, down.origin),
        )

    def _canvas(self, size: tuple[int, int], pixels: torch.Tensor) -> tuple[int, int]:
        """(height, width) of the tiles side by side, by the image processor's own rule."""
        from transformers.image_processing_utils import select_best_resolution

        processor, tile = self.processor.image_processor, self.model.config.vision_config.image_size
        height, width = select_best_resolution(size, processor.image_grid_pinpoints)
        sides = {
            side
            for rule in (processor.size, processor.crop_size or {})
            for side in dict(rule).values()
            if side
        }
        shape = (1, 1 + (height // tile) * (width // tile))
        if sides != {tile} or height % tile or width % tile or pixels.shape[:2] != shape:
            raise ValueError(
                f"image_processor must cut a canvas of {height} x {width} pixels into tiles of "
                f"{tile}, the model's image_size, but its size and crop_size are {sorted(sides)} "
                f"and it made {pixels.shape[1]} tiles with the base; set them to the model's"
            )
        return height, width


class Granite(LlavaNext):
    """As LLaVA-NeXT, its cells of 2 x 2 patches; layers are given what they see one by one."""

    model_types = ("granite4_vision",)

    @property
    def cell(self) -> int:
        """Side of a cell of the base in pixels."""
        return int(super().cell / Fraction(self.model.config.downsample_rate))


class _Kept(NamedTuple):
    """What the model keeps of the canvas along one axis."""

    cells: int
    origin: float
    """Of the first cell's edge, in original pixels."""
    extent: float
    """Of all cells, in original pixels."""


def _kept(size: tuple[int, int], canvas: tuple[int, int], tile: int, patch: int) -> list[_Kept]:
    """Down and across: tiles of patches of so many pixels, without the padding at two ends.

    Cells are taken to divide a tile evenly. Where patches do not (384 pixels, patches of 14), the
    remainder at a tile's end is seen by none, and no cell lies further off than half of that.
    """
    (height, width), side = size, tile // patch
    resized, tall, wide = list(canvas), canvas[0] / height, canvas[1] / width
    if wide < tall:
        resized[0] = min(ceil(height * wide), canvas[0])
    else:
        resized[1] = min(ceil(width * tall), canvas[1])
    # What the model cuts it reckons anew, in cells, and rounds to an even number.
    whole, cut = [pixels // tile * side for pixels in canvas], [0, 0]
    axis = 0 if width / height > whole[1] / whole[0] else 1
    other = 1 - axis
    left = int(round(size[axis] * (whole[other] / size[other]), 7))
    cut[axis] = (whole[axis] - left) // 2
    kept = []
    for i in (0, 1):
        scale, pitch, cells = size[i] / resized[i], tile / side, whole[i] - 2 * cut[i]
        padding = (canvas[i] - resized[i]) // 2
        first = cut[i] * pitch - tile % patch / 2 - padding
        kept.append(_Kept(cells, first * scale, cells * pitch * scale))
    return kept
