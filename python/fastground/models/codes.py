"""Chameleon, Emu3, Apertus 1.5: an image as words of the vocabulary, found by an autoencoder.

The module tree it expects:

    model.vqmodel          ChameleonVQVAE or Emu3VQVAE: convolutions to one code a square of pixels,
                           2 ** (len(channel_multiplier) - 1) a side: 16 or 8
    model.embed_tokens     every code is a word of the language's own
    model.layers, lm_head  causal; in Emu3 model.text_model, Emu3TextModel

In Apertus model.vision_tokenizer, which has the encoder alone, and model.language_model.

The tokens of an image of 2 x 3 cells (# is an image token and a cell):

    Chameleon    <start> # # # # # # <end>
    Emu3         <start> 2*3 <image token> # # # | # # # | <eof> <end>      |: ends a line, an image
                                                                           token, too
    Apertus      <start> 2*3 <image token> # # # | # # # <end>             |: between lines, and no
                                                                           image token

A code says what the autoencoder draws in its square, though its convolutions look a little beyond.
Chameleon sees one square of 512 pixels, to which its processor would crop the image: it is padded
instead, as LLaVA's is. The others resize it to whole cells. Their convolutions are normalised over
all of the image, so that padding to a larger one's size would change its words: images of several
sizes share no forward in Emu3; Apertus takes the padding off again. Its image processor needs
torchvision.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastground.models.geometry import refuse_lines
from fastground.models.llava import Llava
from fastground.models.lvlm import LVLM, Seen
from fastground.models.tiles import stretched
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Chameleon(Llava):
    """One square of codes between two marks, padded where its processor would crop."""

    model_types = ("chameleon",)
    system = ""

    def read_off(self) -> tuple[int, int]:
        """None; each level of the autoencoder but the last halves the image."""
        return 0, 2 ** (len(self.model.config.vq_config.channel_multiplier) - 1)

    def spelled(self, before: str, after: str) -> tuple[str, str]:
        """The token after which the model answers, at the end."""
        return before, f"{after}{self.processor.tokenizer.sep_token}"

    def look(self, image: Image, recipe: Recipe) -> Seen:
        """As LLaVA, with the two marks."""
        seen = super().look(image, recipe)
        start, end = self.processor.tokenizer.convert_tokens_to_ids(
            [self.processor.image_start_token, self.processor.image_end_token]
        )
        tokens = tuple(1 + i for i in seen.layout.tokens)
        return Seen(seen.inputs, [start, *seen.ids, end], replace(seen.layout, tokens=tokens))


class Apertus(LVLM):
    """Lines of codes, a token that is none of the image's between two, of an image in its shape."""

    model_types = ("apertus1p5",)
    ends = 0
    """Image tokens that end a line."""

    @property
    def autoencoder(self) -> Any:
        """Its configuration."""
        return self.model.config.vision_config

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a code."""
        every = [i for i, token in enumerate(ids) if token == self.model.config.image_token_id]
        side = 2 ** (len(self.autoencoder.channel_multiplier) - 1)
        [(height, width)] = inputs["image_sizes"].tolist()
        rows, columns = height // side, width // side
        if len(every) != rows * (columns + self.ends):
            raise ValueError(
                f"processor must make one image token for {side} x {side} pixels and {self.ends} a "
                f"line, but for {height} x {width} made {len(every)}; use the processor that "
                "belongs to the model"
            )
        cells = [token for i, token in enumerate(every) if i % (columns + self.ends) < columns]
        return stretched(image, cells, (rows, columns), every)


class Emu3(Apertus):
    """Lines of codes, each with a token that ends it, of an image in its own shape."""

    model_types = ("emu3",)
    pads_images = False
    ends = 1

    @property
    def autoencoder(self) -> Any:
        """Its configuration."""
        return self.model.config.vq_config

    def spelled(self, before: str, after: str) -> tuple[str, str]:
        """<bos> first, which the tokenizer does not write."""
        bos = self.processor.tokenizer.bos_token
        return (before if before.startswith(bos) else f"{bos}{before}"), after

    def read(self, image: Image) -> tuple[list[int], dict[str, torch.Tensor]]:
        """As every family, without <bos>."""
        refuse_lines(image)
        ids, inputs = super().read(image)
        return ids[ids[0] == self.processor.tokenizer.bos_token_id :], inputs
