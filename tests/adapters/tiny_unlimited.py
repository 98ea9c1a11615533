"""Unlimited-OCR: patches of 2 pixels, 8 x 8 cells of an image padded to a square."""

import pytest
import torch
from families import Family, sharpen, tokenizer
from without_torchvision import image_processor_class

CHAT = (
    "{% for m in messages %}user: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant:{% endif %}"
)
WINDOW = 4


def unlimited_ocr(seed=0, **images):
    import transformers as hf

    if not hasattr(hf, "UnlimitedOcrConfig"):
        pytest.skip("this transformers has no Unlimited-OCR")
    words = tokenizer(["<image>"])
    config = hf.UnlimitedOcrConfig(
        text_config={
            "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048,
            "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "n_shared_experts": 1, "sliding_window": WINDOW,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        },
        vision_config={
            "sam_config": {
                "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": 64, "patch_size": 2, "window_size": 8,
                "global_attn_indexes": [1], "mlp_dim": 64, "downsample_channels": [32, 32],
                "initializer_range": 0.02,
            },
            "encoder_config": {
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": 8, "patch_size": 1,
            },
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = sharpen(hf.UnlimitedOcrForConditionalGeneration(config), seed)
    with torch.no_grad():  # as out_proj elsewhere
        for layer in model.model.vision_tower.sam_encoder.layers:
            layer.attn.proj.weight.mul_(0.01)
    settings = {
        "size": {"height": 64, "width": 64}, "tile_size": 64, "max_patches": 4,
        "maximum_pad_value": 32,
    }  # fmt: skip
    module = "unlimited_ocr.image_processing_unlimited_ocr"
    kind = image_processor_class(module, "UnlimitedOcrImageProcessor")
    processor = hf.UnlimitedOcrProcessor(
        kind(**settings | images), words, chat_template=CHAT, patch_size=2
    )
    return model, processor


FAMILIES = [
    Family(
        "unlimited_ocr", unlimited_ocr, packs=False, caches=False, loads=False,
        sizes=((64, 40), (40, 64), (9, 7), (60, 12)),
    )
]  # fmt: skip
