"""Qwen-VL and its kin: images at their own resolution, one token a square of merged patches.

The module tree it expects:

    model.visual             or vision_model; merge x merge patches (mostly 2 x 2) become one token
    model.language_model     causal; counts positions in three axes where the model that holds it,
    lm_head                  or the whole, has get_rope_index

The image is resized so that each side holds a whole number of cells; nothing is padded or cut. So
a cell is exactly width / grid_w by height / grid_h original pixels. The processor says how many
patches there are: `image_grid_thw`, frames, rows and columns.

    <start> # # # # # # <end>      2 x 3 cells in raster order; Video-LLaMA-3 has no <start>, <end>,
                                   and in MiniMax M3, Muse and Nemotron the processor writes them

    time    0 0 0 0 0 0 3 4 ..     positions, counted from the first cell's: one frame, all at once;
    row     0 0 0 1 1 1 3 4 ..     what follows goes on after the longer side, on all axes alike
    column  0 1 2 0 1 2 3 4 ..

They are always given to the model, which some versions of transformers would else count wrongly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fastground.models.lvlm import LVLM, refuse_older
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_AROUND = (
    ("vision_start_token_id", "vision_end_token_id"),
    ("image_start_token_id", "image_end_token_id"),
)
"""Which configuration fields name the tokens around an image."""


class QwenVL(LVLM):
    """One run of image tokens in raster order, `image_grid_thw` patches merged in squares."""

    model_types: ClassVar[tuple[str, ...]] = (
        "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen2_5_omni_thinker",
        "qwen3_omni_moe_thinker", "glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr",
        "cohere_compass", "cosmos3_omni", "cosmos3_edge", "exaone4_5", "paddleocr_vl",
        "video_llama_3", "muse_glimmer", "muse_spark", "hyperclovax_vision_v2", "dots3_note",
    )  # fmt: skip
    patches: ClassVar[str] = "image_grid_thw"
    """What the processor calls the number of patches."""

    @property
    def merge(self) -> int:
        """How many patches a side become a token."""
        return int(self.processor.image_processor.merge_size)

    @property
    def marked(self) -> str:
        """The mark between the tokens that the model knows an image's start and end by."""
        config, tokenizer = self.model.config, self.processor.tokenizer
        for names in _AROUND:
            if all(hasattr(config, name) for name in names):
                start, end = (tokenizer.convert_ids_to_tokens(getattr(config, n)) for n in names)
                return f"{start}{self.mark}{end}"
        return self.mark

    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell a square of merged patches."""
        grid_h, grid_w = self._grid(inputs)
        patches, merge = len(inputs["pixel_values"]), self.merge
        tokens = [i for i, token in enumerate(ids) if token == self.image_token_id]
        if len(tokens) != grid_h * grid_w or patches != len(tokens) * merge**2:
            raise ValueError(
                f"processor must make one token a cell and {merge} x {merge} patches each, but for "
                f"{grid_h} x {grid_w} cells made {len(tokens)} tokens and {patches} patches; use "
                "the processor that belongs to the model"
            )
        return ImageLayout(
            grid=(grid_h, grid_w),
            tokens=tuple(tokens),
            image_size=(image.height, image.width),
            cell_size=(image.width / grid_w, image.height / grid_h),
        )

    def positions(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """Time, row and column of each cell; None where the model counts in one axis."""
        if self.count_positions is None:
            return None
        import torch

        grid_h, grid_w = self._grid(inputs)
        rows = torch.arange(grid_h).repeat_interleave(grid_w)
        return torch.stack([torch.zeros_like(rows), rows, torch.arange(grid_w).repeat(grid_h)])

    def _grid(self, inputs: dict[str, Any]) -> tuple[int, int]:
        [[*_, patches_h, patches_w]] = inputs[self.patches].tolist()
        return patches_h // self.merge, patches_w // self.merge


class Qwen35(QwenVL):
    """Recurrent layers or convolutions between, which would carry one expression into the next."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_5", "qwen3_5_moe", "lfm3_vl")
    shares_prefix = False


class Nemotron(Qwen35):
    """One run of image tokens between two marks; of the layers few have heads, most a state."""

    model_types = ("nemotron_h_omni",)
    patches = "image_grid_hw"

    @property
    def merge(self) -> int:
        """How many patches a side become a token."""
        return round(1 / self.model.config.downsample_ratio)


class Qwen4(Qwen35):
    """Recurrent layers between, and an index; its cache holds the positions of one sequence."""

    model_types = ("qwen4_exp",)
    caches_prefix = False


class MiniMaxM3(QwenVL):
    """One run of image tokens; its layers choose among more than 2,048, which are refused."""

    model_types = ("minimax_m3_vl",)

    def __init__(self, model: Any, processor: Any, checkpoint: str) -> None:
        super().__init__(model, processor, checkpoint)
        refuse_older("5.23", "MiniMax M3, since before several images of a forward see each other")


class Ernie(QwenVL):
    """One run of image tokens; they and the two around them have experts of their own."""

    model_types = ("ernie4_5_vl_moe",)

    def read(self, image: Image) -> tuple[list[int], dict[str, torch.Tensor]]:
        """As every family, without what `token_inputs` says of whole prompts."""
        ids, inputs = super().read(image)
        inputs.pop("moe_mm_token_type_ids")
        return ids, inputs

    def token_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """1 where a token is the image's or stands next to it: what its experts go by."""
        import torch

        config = self.model.config
        marks = [config.image_token_id, config.image_start_token_id, config.image_end_token_id]
        seen = torch.isin(input_ids, torch.tensor(marks, device=input_ids.device))
        return {
            "moe_mm_token_type_ids": seen.int(),
            "mm_token_type_ids": (input_ids == config.image_token_id).int(),
        }
