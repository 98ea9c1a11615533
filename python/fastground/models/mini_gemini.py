"""Mini-Gemini-2B (MGM): a Gemma that sees one image through two towers, loaded by its own code.

The module tree it expects, as its authors' package builds it; transformers has no class for it:

    model.layers, .norm, .embed_tokens    Gemma's own, so that its attention is transformers'
    model.vision_tower                    CLIP, 336 pixels: 24 x 24 patches, the queries
    model.vision_tower_aux                ConvNeXt, 768 pixels: what the queries look into
    model.vlm_uni_*_projector             each patch mines its own window of the second tower
    model.mm_projector                    one image token a patch, in raster order

         pixel_values, 768 a side, padded to a square
            |                 \\
      shrunk to 336            \\
         CLIP  24 x 24        ConvNeXt 192 x 192
            |                    |
         a patch  <- attends -  its 8 x 8 window
            |
         one token, 576 in all, before the words

Its forward takes one token for an image and makes room for its features itself. `attach` hooks into
the model instead: prompts hold a token a patch, as with every other family, and the features are
put there before the forward. Gemma scales what it embeds by the root of its width; transformers
does so while embedding, the code this model was trained with did so afterwards, to the image too,
and so does `attach`. The first tower is no part of the configuration, so that a change of the
language model's attention would reach it; it keeps the one it has.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from fastground.models.llava import of_patches
from fastground.models.lvlm import LVLM
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_attached: WeakSet[Any] = WeakSet()
"""Models that have their hooks."""


class MiniGemini(LVLM):
    """Two towers, one token a patch of the first; `wrap` it with transformers' LlavaProcessor.

    The processor pads to a square of the second tower's side, and counts a token for each patch of
    the first: `LlavaProcessor(image_processor=LlavaImageProcessorPil(do_pad=True,
    size={"shortest_edge": 768}, crop_size={"height": 768, "width": 768}), tokenizer=tokenizer,
    patch_size=32, vision_feature_select_strategy="full")`.
    """

    model_types = ("mini_gemini_gemma", "mgm_gemma")
    how = "hooks"
    family = "mini_gemini"

    def __init__(self, model: Any, processor: Any, checkpoint: str) -> None:
        lacking = [
            name
            for name in ("encode_images", "get_vision_tower", "get_vision_tower_aux")
            if not hasattr(model, name)
        ]
        if lacking or getattr(model.config, "image_grid", 1) != 1:
            raise ValueError(
                "model must be a Mini-Gemini of its authors' class with image_grid 1, but "
                f"{type(model).__name__} has {f'no {lacking[0]}' if lacking else 'a larger grid'}; "
                "load it with their package"
            )
        super().__init__(model, processor, checkpoint)
        tower = model.get_vision_tower().config
        per_side = tower.image_size // tower.patch_size
        self.patch = model.config.image_size_aux // per_side
        if processor.patch_size != self.patch:
            raise ValueError(
                f"processor.patch_size must be {self.patch} (the second tower's "
                f"{model.config.image_size_aux} pixels by the first's {per_side} patches a side), "
                f"but got {processor.patch_size}"
            )
        model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids(self.mark)
        attach(model)

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a patch of the first tower."""
        side = self.model.config.image_size_aux
        if inputs["pixel_values"].shape[-1] != side:
            raise ValueError(
                f"processor must make images of {side} pixels a side, config.image_size_aux, but "
                f"made {inputs['pixel_values'].shape[-1]}; set its size and crop_size"
            )
        return of_patches(self.processor.image_processor, image, inputs, self.patch)


def attach(model: Any) -> None:
    """Let a Mini-Gemini take input_ids with a token for each patch, and pixel_values."""
    if model in _attached:
        return
    _attached.add(model)
    calls = _Calls(model)
    model.register_forward_pre_hook(calls.before, with_kwargs=True)
    model.register_forward_hook(calls.after)


class _Calls:
    """Between how every other model is called and how this one is."""

    def __init__(self, model: Any) -> None:
        self.keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.kept: Any = None
        self.tower = model.get_vision_tower().config
        self.attention = self.tower._attn_implementation

    def before(
        self, model: Any, args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call, the image's features in their places."""
        from torch.nn.functional import interpolate

        keywords = dict(keywords)
        self.kept = None if self.keeps else keywords.pop("logits_to_keep", None)
        pixels = keywords.pop("pixel_values", None)
        if pixels is None:
            return args, keywords
        side = self.tower.image_size
        small = interpolate(pixels.float(), size=(side, side), mode="bilinear", align_corners=False)
        self.tower._attn_implementation = self.attention
        features = model.encode_images(small.to(pixels.dtype), pixels)
        ids, embedding = keywords.pop("input_ids"), model.get_input_embeddings()
        image = ids == model.config.image_token_id
        embedded = embedding(ids.masked_fill(image, 0))
        scale = getattr(embedding, "embed_scale", None)
        if scale is not None:
            features = features * scale.to(features.dtype)
        keywords["inputs_embeds"] = embedded.masked_scatter(image[..., None], features.to(embedded))
        return args, keywords

    def after(self, model: Any, args: tuple[Any, ...], output: Any) -> None:
        """Of the logits, those that were asked for."""
        if self.kept is not None:
            kept = slice(-self.kept, None) if isinstance(self.kept, int) else self.kept
            output.logits = output.logits[:, kept]
