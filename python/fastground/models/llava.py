"""LLaVA-1.5 and its kin: ViP-LLaVA, Video-LLaVA with a CLIP-like tower, FastVLM with convolutions.

The module tree it expects:

    model.vision_tower            CLIPVisionModel, SiglipVisionModel or InternVLVisionModel; in
                                  FastVLM TimmWrapperModel, (batch, channels, grid_h, grid_w);
                                  image_tower in Video-LLaVA
    model.multi_modal_projector   one image token a patch, nothing merged
    model.language_model          LlamaModel or Qwen2Model, causal
    lm_head

One image is a run of image tokens in raster order: one a patch, after CLIP's class token where
`vision_feature_select_strategy` is "full". Image tokens come before the words and see only what is
before them, so all expressions may share them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fastground.models.geometry import crops_sides, frame, refuse_lines
from fastground.models.lvlm import LVLM, Seen
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
"""What LLaVA-1.5 was instructed with; models without a chat template were not."""

CLASS_TOKENS = {
    ("clip_vision_model", "default"): 0,
    ("clip_vision_model", "full"): 1,
    ("internvl_vision", "default"): 0,
    ("internvl_vision", "full"): 1,
    ("siglip_vision_model", "full"): 0,
}
"""Image tokens before the first patch, by vision tower and feature selection."""


class Llava(LVLM):
    """Images padded to a square, patches in raster order, words after the image."""

    model_types: ClassVar[tuple[str, ...]] = ("llava", "vipllava")
    system: ClassVar[str] = f"{SYSTEM} "
    """What stands before the image in a plain prompt to a model of chat."""

    def __init__(self, model: Any, processor: Any, checkpoint: str) -> None:
        super().__init__(model, processor, checkpoint)
        self.class_tokens, self.patch = self.read_off()
        self.image_processor = _see_all(processor.image_processor)

    def read_off(self) -> tuple[int, int]:
        """How many image tokens stand before the first patch, and a patch's side in pixels.

        Raises:
            ValueError: the model's configuration, or its processor, does not say.
        """
        vision = self.model.config.vision_config
        tower, patch = vision.model_type, vision.patch_size
        # ViP-LLaVA knows no other way than the default.
        strategy = getattr(self.model.config, "vision_feature_select_strategy", "default")
        if (tower, strategy) not in CLASS_TOKENS:
            known = "; ".join(f"{t} with {s}" for t, s in CLASS_TOKENS)
            raise ValueError(
                "model must be a LLaVA whose vision_config.model_type and vision_feature_select_"
                f"strategy are one of {known}; but got {tower} with {strategy}"
            )
        return CLASS_TOKENS[tower, strategy], patch if isinstance(patch, int) else patch[0]

    def words(self, recipe: Recipe) -> tuple[str, str]:
        """The chat template; or plain: a system sentence for models of chat, image, expression."""
        before, after = super().words(recipe)
        if recipe.template == "plain" and getattr(self.processor, "chat_template", None):
            before = self.system + before
        return before, after

    @property
    def marked(self) -> str:
        """The mark, between the two tokens that LLaVA v1 was taught to put around an image."""
        between = getattr(self.model.config, "mm_use_im_start_end", False)
        return f"<im_start>{self.mark}<im_end>" if between else self.mark

    def look(self, image: Image, recipe: Recipe) -> Seen:
        """Pixel values, and one token a patch: the processor's own text has no part in it."""
        with self.reading(image):
            made = self.image_processor(images=image, return_tensors="pt")
        inputs = self.placed(made)
        layout = self.layout(image, [], inputs, recipe)
        mark = self.processor.tokenizer.convert_tokens_to_ids(self.mark)
        return Seen(inputs, [mark] * len(layout.all_tokens or layout.tokens), layout)

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a patch of the vision tower."""
        return of_patches(self.image_processor, image, inputs, self.patch, self.class_tokens)


class VideoLlava(Llava):
    """As LLaVA to an image, which has a tower of its own."""

    model_types = ("video_llava",)

    def look(self, image: Image, recipe: Recipe) -> Seen:
        """As LLaVA, by the name that the model knows an image by."""
        refuse_lines(image)
        seen = super().look(image, recipe)
        return seen._replace(inputs={"pixel_values_images": seen.inputs["pixel_values"]})

    def placed(self, made: Any) -> dict[str, torch.Tensor]:
        """The pixels, which its own image processor calls otherwise than one that pads."""
        [pixels] = super().placed(made).values()
        return {"pixel_values": pixels}


class FastVLM(Llava):
    """As LLaVA; tested around a stand-in for its convolutional tower, which timm makes."""

    model_types = ("fast_vlm",)
    system = ""

    def read_off(self) -> tuple[int, int]:
        """None; the processor knows how many pixels become one, by whatever tower."""
        patch = self.processor.patch_size
        if not isinstance(patch, int):
            raise ValueError(
                "processor.patch_size must be how many pixels a side become a token of FastVLM, "
                f"but is {patch!r}; set it, to 64 for published checkpoints"
            )
        return 0, patch


def of_patches(
    image_processor: Any, image: Image, inputs: dict[str, torch.Tensor], patch: int, first: int = 0
) -> ImageLayout:
    """The layout of an image whose square patches follow each other after `first` other tokens."""
    size = (image.height, image.width)
    lies = frame(image_processor, size)
    made = tuple(inputs["pixel_values"].shape[-2:])
    if made != lies.size:
        raise ValueError(
            f"image_processor must make the {lies.size} pixels that its configuration says, "
            f"but made {made}; use a CLIP or LLaVA image processor"
        )
    grid_h, grid_w = lies.size[0] // patch, lies.size[1] // patch
    cells = grid_h * grid_w
    return ImageLayout(
        grid=(grid_h, grid_w),
        tokens=tuple(range(first, first + cells)),
        all_tokens=tuple(range(first + cells)) if first else None,
        image_size=size,
        cell_size=(lies.scale[0] * patch, lies.scale[1] * patch),
        origin=lies.origin,
    )


def _see_all(image_processor: Any) -> Any:
    """The processor, or one that pads to a square instead of cropping the sides away.

    LLaVA-1.5 was trained on padded squares; published checkpoints name a processor that crops.
    """
    if not crops_sides(image_processor):
        return image_processor
    from transformers import LlavaImageProcessorPil

    names = (
        "size", "crop_size", "resample", "do_rescale", "rescale_factor", "do_normalize",
        "image_mean", "image_std",
    )  # fmt: skip
    same = {name: getattr(image_processor, name) for name in names}
    return LlavaImageProcessorPil(do_pad=True, **same)
