"""Fuyu: patches of the image in its own size, read by the language model without a tower.

The module tree it expects:

    model.vision_embed_tokens    one linear layer from a patch's pixels to a token
    model.language_model         PersimmonModel, causal
    lm_head

The tokens of an image of 2 x 3 cells, which its processor writes before the words:

    # # # |  # # # |  <s> the red mug. <answer>         |: ends a line, no image token

The image is made smaller where it is larger than the processor's size, its ratio of sides kept, and
padded on the right and below to whole patches.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from fastground.models.lvlm import LVLM
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_BEGIN = "<s>"
"""The token between the image and the words."""
_ANSWER = "<0x04>"
"""The token after which Fuyu answers."""


class Fuyu(LVLM):
    """Lines of patches, each with a token that ends it, of an image in its own size."""

    model_types = ("fuyu",)
    knows_chat = False

    @property
    def plain(self) -> tuple[str, str]:
        """Nothing around the expression, as the processor is given it."""
        return "", ""

    def spelled(self, before: str, after: str) -> tuple[str, str]:
        """The image and <s> first, the token for the answer last."""
        return f"{self.mark}{_BEGIN}{before}", f"{after}{_ANSWER}"

    def read(self, image: Image) -> tuple[list[int], dict[str, torch.Tensor]]:
        """The image processor's patches, and the tokens that the processor writes for them.

        That itself, by transformers 5.24, makes no patches without torchvision.
        """
        import torch

        images, patch = self.processor.image_processor, self.processor.image_processor.patch_size
        with self.reading(image):
            made = images(images=[image])
            [[pixels]], [[height]], [[width]] = (
                made[name] for name in ("images", "image_unpadded_heights", "image_unpadded_widths")
            )
            rows, columns = ceil(height / patch["height"]), ceil(width / patch["width"])
            seen = pixels[None, :, : rows * patch["height"], : columns * patch["width"]]
            patches = torch.as_tensor(images.patchify_image(seen, patch))
        line = [self.processor.image_token_id] * columns + [self.processor.image_newline_id]
        inputs = self.placed({"image_patches": patches.view(rows * columns, -1)})
        return line * rows, inputs

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a patch; those on the right and below may reach beyond the image."""
        images, size = self.processor.image_processor, (image.height, image.width)
        within = images.size["height"], images.size["width"]
        patch = images.patch_size["height"], images.patch_size["width"]
        factor = min(1.0, within[0] / size[0], within[1] / size[1])
        made = [int(side * factor) for side in size]
        grid = ceil(made[0] / patch[0]), ceil(made[1] / patch[1])
        tokens = tuple(i for i, token in enumerate(ids) if token == self.processor.image_token_id)
        if len(tokens) != grid[0] * grid[1] or len(ids) != len(tokens) + grid[0]:
            raise ValueError(
                f"processor must make {grid[0]} lines of {grid[1]} image tokens, but made "
                f"{len(tokens)} in {len(ids) - len(tokens)}; use the processor that belongs to the "
                "model"
            )
        return ImageLayout(
            grid=grid,
            tokens=tokens,
            image_size=size,
            cell_size=(patch[1] * size[1] / made[1], patch[0] * size[0] / made[0]),
        )

    def _tokenize(
        self, prompts: list[str], *, special: bool = False
    ) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """As the processor: image and words apart, without the space before the image."""
        first = prompts[0].index(_BEGIN) + len(_BEGIN)
        [image], [places] = super()._tokenize([prompts[0][:first]], special=special)
        rows, spans = super()._tokenize([prompt[first:] for prompt in prompts], special=special)
        return (
            [image[1:] + row for row in rows],
            [places[1:] + [(a + first, b + first) for a, b in row] for row in spans],
        )
