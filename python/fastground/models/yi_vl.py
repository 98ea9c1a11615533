"""Yi-VL: a LLaVA whose projector has norms, which no transformers class has.

    vision tower -> linear_1 -> norm_1 -> gelu -> linear_2 -> norm_2 -> the image's tokens

A LayerNorm cannot be folded into the linear layers beside it, so this is a class of its own, under
a model_type of its own, made by `convert` from the authors' checkpoints and their community port.
All else is LLaVA's, whose module tree and token layout `llava` draws.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from fastground.models.llava import Llava

MODEL_TYPE = "fastground_yi_vl"

SYSTEM = (
    "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI "
    "assistant. Read all the images carefully, and respond to the human's questions with "
    "informative, helpful, detailed and polite answers. "
    "这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。"
    "仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。"  # noqa: RUF001
    "\n\n"
)
"""What Yi-VL was instructed with."""

CONVERSATION = SYSTEM + "### Human: {words}\n### Assistant:"


class YiVL(Llava):
    """LLaVA's tokens and geometry, other words."""

    model_types = (MODEL_TYPE,)
    how = "conversion"
    system = SYSTEM


class _Classes(NamedTuple):
    config: Any
    model: Any


@cache
def classes() -> _Classes:
    """The configuration's and the model's class, known to transformers' Auto classes."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForImageTextToText,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    class YiVLConfig(LlavaConfig):
        model_type = MODEL_TYPE

    class YiVLProjector(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            wide, text = config.vision_config.hidden_size, config.text_config.hidden_size
            self.linear_1, self.norm_1 = torch.nn.Linear(wide, text), torch.nn.LayerNorm(text)
            self.linear_2, self.norm_2 = torch.nn.Linear(text, text), torch.nn.LayerNorm(text)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            inner = torch.nn.functional.gelu(self.norm_1(self.linear_1(features)))
            projected: torch.Tensor = self.norm_2(self.linear_2(inner))
            return projected

    class YiVLForConditionalGeneration(LlavaForConditionalGeneration):
        config_class = YiVLConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model.multi_modal_projector = YiVLProjector(config)

    AutoConfig.register(MODEL_TYPE, YiVLConfig)
    AutoModelForImageTextToText.register(YiVLConfig, YiVLForConditionalGeneration)
    return _Classes(YiVLConfig, YiVLForConditionalGeneration)
