"""What the embedded LVLM is made of: stock transformers classes, and nothing else.

A CLIP vision tower (patches of 8 pixels) and a Llama decoder, joined as LLaVA joins them. The
sequence is `<s> <image>... expression . texture colour shape`; `<s>` stands before the image, so
that a head with nothing to do has somewhere else to look.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastground.datasets.shapes import VOCABULARY

PATCH = 8
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
TOKENS = {word: i for i, word in enumerate(SPECIAL + VOCABULARY)}


def build(grid: int) -> Any:
    """A freshly initialised LlavaForConditionalGeneration that sees a grid x grid image."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        image_size=grid * PATCH, patch_size=PATCH, projection_dim=128,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=320, num_hidden_layers=8,
        num_attention_heads=16, num_key_value_heads=16, head_dim=16, tie_word_embeddings=False,
        max_position_embeddings=1024, rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        pad_token_id=TOKENS["<pad>"], bos_token_id=TOKENS["<s>"], eos_token_id=TOKENS["</s>"],
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=TOKENS["<image>"],
        vision_feature_layer=-1, vision_feature_select_strategy="default",
        image_seq_length=grid * grid, tie_word_embeddings=False,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def processor(grid: int) -> Any:
    """The LlavaProcessor of such a model: whole words, images padded to a square."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    words = Tokenizer(models.WordLevel(TOKENS, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", TOKENS["<s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", additional_special_tokens=["<image>"], padding_side="left",
    )  # fmt: skip
    side = grid * PATCH
    images = LlavaImageProcessorPil(
        do_pad=True, do_resize=True, size={"shortest_edge": side}, do_center_crop=True,
        crop_size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def regrid(model: Any, grid: int) -> Any:
    """The same weights for a finer grid; the position table is interpolated, nothing else."""
    import torch

    finer = build(grid)
    weights = model.state_dict()
    (name,) = [n for n in weights if n.endswith("position_embedding.weight")]
    table = weights[name]
    side = round((len(table) - 1) ** 0.5)
    cells = table[1:].T.reshape(1, -1, side, side)
    cells = torch.nn.functional.interpolate(cells, (grid, grid), mode="bicubic")
    weights[name] = torch.cat([table[:1], cells.flatten(2)[0].T])
    finer.load_state_dict(weights)
    return finer


def save(weights: dict[str, Any], grid: int, folder: str | Path) -> None:
    """Write model and processor in half precision, as `from_pretrained` reads them."""
    import torch

    model = build(grid)
    model.load_state_dict(weights)
    model.to(torch.float16).save_pretrained(folder)
    processor(grid).save_pretrained(folder)
