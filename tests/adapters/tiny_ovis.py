"""Ovis2: tiles of 24 pixels, 3 x 3 tokens each, at most 6 of them."""

from importlib import import_module

import torch
from families import Family, sharpen, tokenizer

TILE, PATCH, STRIDE = 24, 4, 2
WORDS = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
SPECIAL = ["\n", "<image>", "<IMG_ATOM>", *WORDS]
CHAT = (
    "{% for m in messages %}user:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def ovis2(seed=0, **images):
    from transformers import Ovis2Config, Ovis2ForConditionalGeneration, Ovis2Processor, Qwen2Config

    # transformers 5.17 does not export it without torchvision, though it works without.
    pil = import_module("transformers.models.ovis2.image_processing_pil_ovis2")
    words = tokenizer(SPECIAL)
    text = Qwen2Config(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": TILE, "patch_size": PATCH, "vocab_size": 64,
        "hidden_stride": STRIDE, "num_visual_indicator_tokens": len(WORDS),
    }  # fmt: skip
    config = Ovis2Config(
        text_config=text, vision_config=vision, hidden_size=64, vocab_size=64,
        image_token_id=words.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=words.convert_tokens_to_ids(WORDS), tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Ovis2ForConditionalGeneration(config)
    settings = {
        "size": {"height": TILE, "width": TILE}, "crop_to_patches": True, "max_patches": 6,
    }  # fmt: skip
    processor = Ovis2Processor(
        image_processor=pil.Ovis2ImageProcessorPil(**settings | images), tokenizer=words,
        chat_template=CHAT, image_seq_length=(TILE // PATCH // STRIDE) ** 2,
    )  # fmt: skip
    return sharpen(model, seed), processor


FAMILIES = [Family("ovis2", ovis2, blocks=("base", "stitch"))]
