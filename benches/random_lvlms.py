"""Models of the true classes and true token layouts with random weights: speed needs no others.

              layers        width    heads  of keys   vision tower
    small        8          512       32     32 / 4   4 / 2 layers    for a CPU
    full     32 / 28  4096 / 3584  32 / 28   32 / 4   the 7B's own    for a GPU, bfloat16

LLaVA / Qwen2.5-VL; a Qwen3.5 in the small size alone, of whose eight layers six are recurrent and
two have heads. Each sees an image as 24 x 24 tokens, in prompts of the usual length: a system
sentence, the image, the expression, the assistant's turn. Weights of queries and keys are drawn so
that the logits of attention have a standard deviation of about 3 at any width: not flat, not one
cell alone.

The small ones keep the number of heads: what eager attention computes and keeps grows with it, not
with the width. (With half as many heads eager costs 1.7 times a forward with capture, not 2.8.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fastground.models import LVLM, wrap
from fastground.models.llava import SYSTEM
from fastground.models.processors import without_video
from fastground.tiny import model as tiny
from PIL import Image

GRID = 24
QWEN_TOKENS = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
CHAT = SYSTEM + (
    "{%% for message in messages %%} USER: {%% for part in message['content'] %%}"
    "{{ '%s ' if part['type'] == 'image' else part['text'] }}{%% endfor %%} ASSISTANT:"
    "{%% endfor %%}"
)


@dataclass(frozen=True)
class Shape:
    """The language model's size; the vision tower is the true one where `full`."""

    layers: int
    width: int
    heads: int
    key_heads: int
    inner: int
    vocabulary: int = 128
    full: bool = False

    def text(self) -> dict[str, Any]:
        """What configurations of text models call these."""
        return {
            "num_hidden_layers": self.layers, "hidden_size": self.width,
            "num_attention_heads": self.heads, "num_key_value_heads": self.key_heads,
            "intermediate_size": self.inner, "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2,
        }  # fmt: skip


LLAVA_7B = Shape(32, 4096, 32, 32, 11008, 32064, full=True)
QWEN_7B = Shape(28, 3584, 28, 4, 18944, 152064, full=True)


def small(layers: int, width: int) -> dict[str, Shape]:
    """Both models at a size for one thread of a CPU."""
    inner = width * 8 // 3 // 8 * 8
    return {
        "LLaVA": Shape(layers, width, 32, 32, inner),
        "Qwen2.5-VL": Shape(layers, width, 32, 4, inner),
    }


FULL = {"LLaVA": LLAVA_7B, "Qwen2.5-VL": QWEN_7B}


def build(name: str, shape: Shape, device: str, dtype: torch.dtype) -> LVLM:
    """ "LLaVA", "Qwen2.5-VL" or "Qwen3.5" of this shape, on the device, in evaluation mode."""
    from transformers import AutoModelForImageTextToText

    config, processor = {"LLaVA": llava, "Qwen2.5-VL": qwen, "Qwen3.5": qwen35}[name](shape)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    lvlm = wrap(model, processor, checkpoint=f"random {name}")
    for index in lvlm.layers_with_heads:
        attention = model.get_decoder().layers[index].self_attn
        for projection in (attention.q_proj, attention.k_proj):
            torch.nn.init.normal_(projection.weight, std=(3 / shape.width) ** 0.5)
    return lvlm


def picture() -> Image.Image:
    """An image of grey noise, which the processors turn into GRID x GRID tokens."""
    return Image.effect_noise((672, 672), 64)


def llava(shape: Shape) -> tuple[Any, Any]:
    """Configuration and processor; the full one has CLIP-L's tower for 336 pixels."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    processor = tiny.processor(GRID)
    processor.chat_template = CHAT % "<image>"
    vision = tiny.build(GRID).config.vision_config
    if shape.full:
        vision = CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
            num_attention_heads=16, image_size=336, patch_size=14, projection_dim=768,
        )  # fmt: skip
        images = processor.image_processor
        images.size, images.crop_size = {"shortest_edge": 336}, {"height": 336, "width": 336}
        processor.patch_size = 14
    mark = processor.tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**shape.text()), image_token_index=mark,
        vision_feature_layer=-2, image_seq_length=GRID**2,
    )  # fmt: skip
    return config, processor


def qwen(shape: Shape) -> tuple[Any, Any]:
    """Configuration and processor; patches of 14 pixels, merged 2 x 2."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLProcessor

    tokenizer = tiny.processor(GRID).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": QWEN_TOKENS})
    start, image, end, video = tokenizer.convert_tokens_to_ids(QWEN_TOKENS)
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "fullatt_block_indexes": [7, 15, 23, 31],
    } if shape.full else {
        "depth": 2, "hidden_size": 128, "intermediate_size": 384, "num_heads": 4,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    eighths = shape.width // shape.heads // 16
    rope = {"rope_type": "default", "rope_theta": 1e6}
    rope["mrope_section"] = [2 * eighths, 3 * eighths, 3 * eighths]
    config = Qwen2_5_VLConfig(
        vision_config=vision | {"patch_size": 14, "out_hidden_size": shape.width},
        text_config=shape.text() | {"rope_parameters": rope},
        image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    return config, qwen_processor(Qwen2_5_VLProcessor, tokenizer, 14)


def qwen35(shape: Shape) -> tuple[Any, Any]:
    """Configuration and processor; patches of 16 pixels, merged 2 x 2."""
    from transformers import Qwen3_5Config, Qwen3VLProcessor

    tokenizer = tiny.processor(GRID).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": QWEN_TOKENS})
    start, image, end, video = tokenizer.convert_tokens_to_ids(QWEN_TOKENS)
    head_dim = shape.width // shape.heads
    recurrent = {
        "linear_num_key_heads": shape.heads // 2, "linear_num_value_heads": shape.heads,
        "linear_key_head_dim": head_dim, "linear_value_head_dim": head_dim, "head_dim": head_dim,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 128, "intermediate_size": 384, "num_heads": 4,
        "out_hidden_size": shape.width,
    }  # fmt: skip
    config = Qwen3_5Config(
        vision_config=vision, text_config=shape.text() | recurrent,
        image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    return config, qwen_processor(Qwen3VLProcessor, tokenizer, 16)


def qwen_processor(kind: Any, tokenizer: Any, patch: int) -> Any:
    """Makes GRID x GRID tokens of 2 x 2 patches of a picture."""
    from transformers import Qwen2VLImageProcessorPil

    side = (GRID * 2 * patch) ** 2
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": side // 4, "longest_edge": side}, patch_size=patch, merge_size=2
    )
    return without_video(kind)(
        image_processor=images, tokenizer=tokenizer,
        chat_template=CHAT % (QWEN_TOKENS[0] + QWEN_TOKENS[1] + QWEN_TOKENS[2]),
    )  # fmt: skip
