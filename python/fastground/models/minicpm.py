"""MiniCPM-V 4.6, 4.7 and OCR: the whole image in its own shape, then slices, a line of tokens each.

The module tree it expects:

    model.vision_tower       MiniCPMV4_6VisionModel; 2 x 2 patches become one after its layer 6
    model.merger             2 x 2 of these to a token: 4 x 4 patches a cell
    model.language_model     Qwen3_5TextModel: recurrent layers between those with attention
    lm_head

The tokens of an image in 2 x 2 slices (# is an image token):

    <image_id> 0 </image_id>  <image> ###### </image>
    <slice> #### </slice>  <slice> #### </slice>  newline
    <slice> #### </slice>  <slice> #### </slice>

Whole and slices are the image stretched to whole cells, so that nothing is cut or padded. A small
image has no slices, for both values of `recipe.blocks`. With `downsample_mode` "4x" the tower
merges nothing, and a cell is 2 x 2 patches.

The patches of all views follow each other on the last axis of the pixel values. Before 5.19
transformers took all views for as large as the first and mixed their patches up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from fastground.models.lvlm import LVLM, Seen, refuse_older
from fastground.models.tiles import stitched, stretched
from fastground.types import Encoded, ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class MiniCPM(LVLM):
    """The whole image in its own shape, then slices in rows; recurrent layers between."""

    model_types: ClassVar[tuple[str, ...]] = ("minicpmv4_6", "minicpm_ocr")
    shares_prefix = False
    sees_tiles = True

    def __init__(self, model: Any, processor: Any, checkpoint: str) -> None:
        super().__init__(model, processor, checkpoint)
        refuse_older(
            "5.19", "MiniCPM-V, since before it mixes up the patches of views that differ in size"
        )

    def look(self, image: Image, recipe: Recipe) -> Seen:
        """As every family; several images follow each other on the last axis of their patches."""
        return super().look(image, recipe)._replace(axes={"pixel_values": 3})

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a token of the whole image, or of its slices."""
        config, tokenizer = self.model.config, self.processor.tokenizer
        every = [i for i, token in enumerate(ids) if token == config.image_token_id]
        merged = 2 if config.downsample_mode == "4x" else 4
        whole, *slices = [(h // merged, w // merged) for h, w in inputs["target_sizes"].tolist()]
        start, end = tokenizer.convert_tokens_to_ids(
            [self.processor.slice_start_token, self.processor.slice_end_token]
        )
        # A row's last slice is the one that no other follows at once.
        rows = sum(a == end and b != start for a, b in zip(ids, [*ids[1:], None], strict=True))
        cells = whole[0] * whole[1]
        if (
            len(set(slices)) > 1
            or (len(slices) % rows if rows else slices)
            or len(every) != cells + sum(h * w for h, w in slices)
        ):
            raise ValueError(
                f"processor must make one image token for {merged} x {merged} patches and mark "
                f"{len(slices)} slices, but made {len(every)} in {rows} rows for grids of "
                f"{[whole, *slices]}; its image_processor (downsample_mode) and tokenizer do not "
                "belong to the model"
            )
        if recipe.blocks == "stitch" and slices:
            columns, side = len(slices) // rows, slices[0]
            tokens = stitched(every[cells:], (rows, columns), side)
            return stretched(image, tokens, (rows * side[0], columns * side[1]), every)
        return stretched(image, every[:cells], whole, every)


class MiniCPM47(MiniCPM):
    """As 4.6; the cells of whole image and slices are counted in three axes, over one canvas."""

    model_types = ("minicpmv4_7",)

    def _encode(self, image: Image, expressions: list[str], recipe: Recipe) -> Encoded:
        """With the model's own positions, which take new lines behind the image for its own."""
        encoded = super()._encode(image, expressions, recipe)
        ids, prefix = encoded.token_ids, encoded.prefix_length
        while all(row[prefix] == self.model.config.newline_id for row in ids):
            prefix += 1
        first = ids[0][None]
        positions, _ = self.count_positions(
            input_ids=first, target_sizes=encoded.image_inputs["target_sizes"],
            **self.token_inputs(first),
        )  # fmt: skip
        return replace(
            encoded, prefix_length=prefix, prefix_positions=positions[:, 0, :prefix].clone()
        )

    def token_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """1 where a token is the image's, by which the model finds its canvas."""
        return {"mm_token_type_ids": (input_ids == self.image_token_id).int()}
