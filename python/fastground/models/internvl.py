"""InternVL and its kin: the image cut into square tiles, then the whole image once more.

The module tree it expects:

    model.vision_tower            any tower that sees one square tile at a time
    model.multi_modal_projector   merges neighbouring patches into one image token
    model.language_model          causal
    lm_head

The image is squeezed to rows x columns tiles, whichever shape its processor finds closest, and,
where that is more than one, to one tile more, the thumbnail. Its tokens, two rows of three tiles:

    <img> 1111 2222 3333 4444 5555 6666 0000 </img>         0: the thumbnail, last
                                                            1111: a tile, row by row
    1 2 3
    4 5 6      blocks="base":   the thumbnail's tokens as they stand
               blocks="stitch": line y of all tiles of a row one after the other, then line y + 1

Families differ in the words around a tile, which are the processor's own and no image tokens.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from math import floor, isqrt
from typing import TYPE_CHECKING, ClassVar

from fastground.models.lvlm import LVLM
from fastground.models.tiles import stitched, stretched
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class InternVL(LVLM):
    """Square tiles row by row, the thumbnail last, one square of tokens each."""

    model_types: ClassVar[tuple[str, ...]] = ("internvl", "cohere2_vision")
    sees_tiles: ClassVar[bool] = True

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell an image token: of the thumbnail, or of all tiles side by side.

        Raises:
            ValueError: the processor's tokens are not one square a tile, or it does not tile as its
                configuration says.
        """
        count, pixels = len(inputs["pixel_values"]), inputs["pixel_values"].shape[-1]
        places = [i for i, t in enumerate(ids) if t == self.model.config.image_token_id]
        side = isqrt(len(places) // count)
        if len(places) != count * side * side or not side or pixels % side:
            raise ValueError(
                f"processor must make one square of image tokens a tile, but made {len(places)} "
                f"tokens for {count} tiles of {pixels} pixels; its configuration and the model's "
                "do not belong together"
            )
        if recipe.blocks == "base" or count == 1:
            return stretched(image, places[-side * side :], (side, side), places)
        rows, columns = self.tiles(image, ids)
        if rows * columns != count - 1:
            raise ValueError(
                f"processor must cut {image.size} pixels into the {rows} x {columns} tiles that "
                f"its configuration says, but made {count - 1}; set min_patches and max_patches "
                "on processor.image_processor"
            )
        tokens = stitched(places[: -side * side], (rows, columns), (side, side))
        return stretched(image, tokens, (rows * side, columns * side), places)

    def tiles(self, image: Image, ids: list[int]) -> tuple[int, int]:
        """Rows and columns, by the image processor's own rule."""
        processor = self.processor.image_processor
        rules = [
            rule
            for kind in type(processor).__mro__
            if (rule := getattr(sys.modules[kind.__module__], "get_optimal_tiled_canvas", None))
        ]
        if not rules:
            raise ValueError(
                "processor.image_processor must say how it tiles an image (get_optimal_tiled_"
                f"canvas), but {type(processor).__name__} does not; use the family's own"
            )
        tile = (processor.size["height"], processor.size["width"])
        least, most = processor.min_patches, processor.max_patches
        columns, rows = rules[0]((image.height, image.width), tile, least, most)
        return int(rows), int(columns)


class AyaVision(InternVL):
    """Square tiles, a word before each: TILE_1 1111 TILE_2 2222 ... TILE_GLOBAL 0000."""

    model_types: ClassVar[tuple[str, ...]] = ("aya_vision",)

    @property
    def tokens(self) -> tuple[str, str]:
        """The image token of prompts, and that of a patch."""
        return str(self.processor.image_token), str(self.processor.img_patch_token)

    @property
    def mark(self) -> str:
        """The image token of prompts; a patch's, where the tokenizer does not know that as one."""
        prompts, patch = self.tokens
        return prompts if prompts in self.processor.tokenizer.get_vocab() else patch

    def words(self, recipe: Recipe) -> tuple[str, str]:
        """As everywhere, with the one mark."""
        before, after = super().words(recipe)
        return before.replace(self.tokens[0], self.mark), after

    @property
    def alone(self) -> str:
        """The image token of prompts."""
        return self.tokens[0]


class QianfanOCR(AyaVision):
    """InternVL's tiles, whose tokens are other ones than the image's in a prompt."""

    model_types = ("qianfan_ocr",)

    @property
    def tokens(self) -> tuple[str, str]:
        """The image token of prompts, and that of a patch."""
        return str(self.processor.image_placeholder_token), str(self.processor.image_token)


class GotOcr2(InternVL):
    """One square tile, and two words around the image in every prompt.

    Two convolutions of stride 2 merge 4 x 4 patches. Token j looks at patches 4 j - 3 to 4 j + 3,
    as far back as ahead, so that cells lie a patch and a half further up and left than squares.
    """

    model_types = ("got_ocr2",)
    sees_tiles = False

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell an image token, centred on what it sees."""
        layout = super().layout(image, ids, inputs, recipe)
        assert layout.cell_size is not None
        x, y = layout.cell_size
        return replace(layout, origin=(-1.5 / 4 * x, -1.5 / 4 * y))

    @property
    def marked(self) -> str:
        """The mark with what always stands around it."""
        return f"{self.processor.img_start_token}{self.mark}{self.processor.img_end_token}"


class Chart2Table(GotOcr2):
    """As GOT-OCR, but its processor writes no image tokens, and its chat none of the words."""

    model_types = ("pp_chart2table",)

    @property
    def mark(self) -> str:
        """One of the image's tokens."""
        return str(self.processor.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id))

    @property
    def marked(self) -> str:
        """All of them, with the two around them."""
        return f"<img>{self.mark * self.cells}</img>"

    @property
    def cells(self) -> int:
        """How many tokens the tower makes of an image."""
        vision = self.model.config.vision_config
        return int((vision.image_size // vision.patch_size // 4) ** 2)

    def spelled(self, before: str, after: str) -> tuple[str, str]:
        """One mark in the place of all."""
        return before.replace(self.mark * self.cells, self.mark), after

    def read(self, image: Image) -> tuple[list[int], dict[str, torch.Tensor]]:
        """As many tokens as the tower makes, and the image processor's pixels."""
        with self.reading(image):
            made = self.processor.image_processor(images=[image], return_tensors="pt")
        return [self.model.config.image_token_id] * self.cells, self.placed(made)


class Llama4(InternVL):
    """Tiles keep the aspect: what is left of them on the right and below is empty.

    A word stands between tiles, another after a row of them: 111 x 222 x 333 y 444 x 555 x 666 y.
    """

    model_types = ("llama4",)
    shares_prefix = False
    """Layers see chunks of the sequence, and count positions in it; a pack would move both."""

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """As everywhere, but cells of tiles reach beyond the image."""
        layout = super().layout(image, ids, inputs, recipe)
        count, pixels = len(inputs["pixel_values"]), inputs["pixel_values"].shape[-1]
        if recipe.blocks == "base" and count > 1:
            return layout
        rows, columns = self.tiles(image, ids)
        height, width = rows * pixels, columns * pixels
        processor = self.processor.image_processor
        if not processor.resize_to_max_canvas:  # enlarged to one tile's side at most
            height, width = (
                min(max(own, pixels), side)
                for own, side in zip((image.height, image.width), (height, width), strict=True)
            )
        tall, wide = height / image.height, width / image.width
        if wide < tall:
            height = max(1, min(floor(image.height * wide), height))
        else:
            width = max(1, min(floor(image.width * tall), width))
        side = layout.grid[0] // rows
        return replace(
            layout,
            cell_size=(pixels / side * image.width / width, pixels / side * image.height / height),
        )

    def tiles(self, image: Image, ids: list[int]) -> tuple[int, int]:
        """Rows and columns, counted off the words between them."""
        across, down = (
            ids.count(self.processor.tokenizer.convert_tokens_to_ids(word))
            for word in (self.processor.tile_token, self.processor.tile_global_token)
        )
        return max(1, down), across // max(1, down) + 1
