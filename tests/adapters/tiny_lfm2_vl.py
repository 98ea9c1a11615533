"""LFM2-VL: patches of 4 pixels merged by 2, tiles of 24 pixels, a thumbnail of up to 9 tokens."""

import torch
from families import Family, sharpen, tokenizer
from without_torchvision import image_processor_class

TILE, PATCH, FACTOR = 24, 4, 2
SPECIAL = [
    "\n", "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>",
    *(f"<|img_row_{r}_col_{c}|>" for r in range(1, 7) for c in range(1, 7)),
]  # fmt: skip
CHAT = (
    "{% for m in messages %}<s>user:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def lfm2_vl(seed=0, **images):
    from transformers import (
        Lfm2Config,
        Lfm2VlConfig,
        Lfm2VlForConditionalGeneration,
        Lfm2VlProcessor,
        Siglip2VisionConfig,
    )

    words = tokenizer(SPECIAL)
    text = Lfm2Config(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        layer_types=["conv", "full_attention", "full_attention"], block_auto_adjust_ff_dim=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = Siglip2VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_patches=36, patch_size=PATCH, vision_use_head=False,
    )  # fmt: skip
    config = Lfm2VlConfig(
        text_config=text, vision_config=vision, downsample_factor=FACTOR, projector_hidden_size=64,
        image_token_id=words.convert_tokens_to_ids("<image>"), tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Lfm2VlForConditionalGeneration(config)
    settings = {
        "tile_size": TILE, "encoder_patch_size": PATCH, "downsample_factor": FACTOR,
        "min_image_tokens": 4, "max_image_tokens": 9, "max_tiles": 6, "max_pixels_tolerance": 1.0,
    }  # fmt: skip
    kind = image_processor_class("lfm2_vl.image_processing_lfm2_vl", "Lfm2VlImageProcessor")
    processor = Lfm2VlProcessor(
        image_processor=kind(**settings | images), tokenizer=words, chat_template=CHAT
    )
    sharpen(model, seed)
    with torch.no_grad():  # as trained towers do, let a patch stay mostly what it is
        for layer in model.model.vision_tower.encoder.layers:
            layer.self_attn.out_proj.weight.mul_(0.1)
    return model, processor


FAMILIES = [
    Family(
        "lfm2_vl", lfm2_vl, packs=False, blocks=("base", "stitch"),
        loads=False, refusal="torchvision",
    ),
]  # fmt: skip
