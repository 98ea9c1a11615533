"""Gemma 3, 3n and 4 and PaliGemma: one view of the image, whose tokens mostly see what follows.

The module tree they expect:

    model.vision_tower            SiglipVisionModel; Gemma 4 its own, which also pools, or none in
                                  the unified kind (model.embed_vision); in Gemma 3n
                                  TimmWrapperModel, (batch, channels, grid_h, grid_w)
    model.multi_modal_projector   one token a patch; in Gemma 3 the mean of 4 x 4 patches; in
                                  Gemma 3n model.embed_vision
    model.language_model          GemmaModel or Gemma2Model; Gemma3TextModel; Gemma4TextModel;
    lm_head                       Gemma3nTextModel, whose last layers have earlier ones' keys

What the processors write, with the words:

    Gemma 4     <|image> # # # # # # <image|> the red mug.
    Gemma 3, 3n \\n\\n <start_of_image> # # # # # # <end_of_image> \\n\\n the red mug.
    PaliGemma   # # # # # # <bos> the red mug. \\n

Gemma 4 keeps the image's aspect, and its grid is what the processor made of it; the others squash
it to a square. In Gemma 3 and the larger Gemma 4 the image's tokens see all of the image, and five
of six layers see only a window of tokens, as do four of five in Gemma 3n, whose image's tokens look
back alone; in PaliGemma everything up to the new line sees everything. So expressions cannot share
an image, and each is a sequence of its own. PaliGemma 2 caps its attention logits, which only eager
attention does; `fastground.models.load` sees to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fastground.models.geometry import Frame, frame
from fastground.models.square import Square
from fastground.types import Encoded, ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Gemma3(Square):
    """The whole image; crops beside it (pan and scan) are not asked for."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    shares_prefix = False
    needs_mask = True
    frills = 1

    @property
    def cell(self) -> int:
        """Side of a cell in pixels of the model's input: that of its patches together."""
        vision = self.model.config.vision_config
        side = int(self.model.config.mm_tokens_per_image**0.5)
        return int(vision.image_size // vision.patch_size // side * vision.patch_size)

    def frame(self, size: tuple[int, int]) -> Frame:
        """The image squashed."""
        return frame(self.processor.image_processor, size)

    @property
    def plain(self) -> tuple[str, str]:
        """The image, the expression."""
        return self.marked, ""

    def spelled(self, before: str, after: str) -> tuple[str, str]:
        """Blank lines around the image."""
        return before.replace(self.mark, f"\n\n{self.mark}\n\n"), after

    def token_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """1 where a token is the image's: those see each other."""
        return {"token_type_ids": (input_ids == self.model.config.image_token_id).long()}


class Gemma3n(Gemma3):
    """The whole image, by layers with windows; tested around a stand-in for timm's tower."""

    model_types = ("gemma3n",)
    needs_mask = False

    @property
    def cell(self) -> int:
        """Side of a cell in pixels of the model's input."""
        side = int(self.model.config.vision_soft_tokens_per_image**0.5)
        return int(self.processor.image_processor.size["height"] // side)

    def token_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """None that it would read."""
        return {}


class Gemma4(Square):
    """As many cells as the image's aspect fills, each of 3 x 3 patches."""

    model_types = ("gemma4",)
    shares_prefix = False
    needs_mask = True
    frills = 1

    @property
    def pooled(self) -> int:
        """How many of the patches that the processor places become a cell, along a side."""
        return int(self.model.config.vision_config.pooling_kernel_size)

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell an image token; the processor says where each patch was."""
        columns, rows = (inputs["image_position_ids"][0].amax(0) + 1).tolist()
        grid = rows // self.pooled, columns // self.pooled
        return ImageLayout(
            grid=grid,
            tokens=self.cells(ids, grid),
            image_size=(image.height, image.width),
            cell_size=(image.width / grid[1], image.height / grid[0]),
        )

    def token_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """1 where a token is the image's: in larger models those see each other."""
        return {"mm_token_type_ids": (input_ids == self.model.config.image_token_id).long()}


class Gemma4Unified(Gemma4):
    """As Gemma 4, without a tower: the language model reads the pixels of 3 x 3 patches.

    Those are normalised cell by cell, so that to it plain black and plain white look the same.
    """

    model_types = ("gemma4_unified",)
    pooled = 1


class PaliGemma(Square):
    """The expression between <bos> and a new line, which ends what sees everything."""

    model_types = ("paligemma",)
    shares_prefix = False
    caches_prefix = False
    knows_chat = False

    def frame(self, size: tuple[int, int]) -> Frame:
        """The image squashed."""
        return frame(self.processor.image_processor, size)

    @property
    def plain(self) -> tuple[str, str]:
        """The image, the expression."""
        return self.marked, ""

    def spelled(self, before: str, after: str) -> tuple[str, str]:
        """<bos> after the image, a new line at the end."""
        return f"{before}{self.processor.tokenizer.bos_token}", f"{after}\n"

    def read(self, image: Image) -> tuple[list[int], dict[str, torch.Tensor]]:
        """The processor's tokens by their number: it would make labels for a loss beside them."""
        made = self.processor.image_processor(images=[image], return_tensors="pt")
        ids = [self.model.config.image_token_id] * self.processor.image_seq_length
        return ids, self.placed(made)

    def encode(self, image: Any, expressions: list[str], recipe: Recipe = Recipe()) -> Encoded:
        """As every family; a new line would end the expression."""
        for expression in expressions:
            if isinstance(expression, str) and "\n" in expression.strip():
                raise ValueError(
                    "expression must be one line for PaliGemma, which takes a new line for its "
                    f"end, but got {expression!r}; put spaces in its place"
                )
        text = self.model.config.get_text_config(decoder=True)
        if recipe.query == "first_generated" and "flash" in text._attn_implementation:
            raise ValueError(
                "recipe.query 'first_generated' needs attention that takes a mask for PaliGemma, "
                "whose prompt must not see what the model says, but it uses "
                f"{text._attn_implementation!r}; call model.set_attn_implementation"
                "({'text_config': 'sdpa'}) first"
            )
        return super().encode(image, expressions, recipe)

    def positions(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Counted from 1."""
        import torch

        side = inputs["pixel_values"].shape[-1] // self.cell
        return 1 + torch.arange(side * side)[None]

    def token_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """0 up to the new line, 1 where the model's own words follow, which nothing before sees."""
        import torch

        [end] = self.processor.tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
        ends = (input_ids == end).long().cumsum(1)
        return {"token_type_ids": torch.where(input_ids == end, ends > 1, ends > 0).long()}
