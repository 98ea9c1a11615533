"""Kimi K2.5 and GLM-5: patches of 4 pixels merged by 2, at most 80 patches and 64 tokens in all."""

from importlib import import_module

import torch
from families import Family, sharpen, tokenizer
from fastground.models.processors import without_video
from without_torchvision import image_processor_class

PATCH, MERGE = 4, 2
SPECIAL = ["\n", "<|media_pad|>", "<|kimi_k25_video_placeholder|>"]
CHAT = (
    "{% for m in messages %}<s>user:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|media_pad|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def kimi_k25(seed=0, **images):
    from transformers import DeepseekV3Config, Kimi_K25Config, Kimi_K25ForConditionalGeneration

    words = tokenizer(SPECIAL)
    text = DeepseekV3Config(
        vocab_size=64, hidden_size=64, intermediate_size=96, moe_intermediate_size=32,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=2, q_lora_rank=32,
        kv_lora_rank=32, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16,
        max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "patch_size": PATCH,
        "num_attention_heads": 2, "pos_emb_height": 8, "pos_emb_width": 8,
        "merge_kernel_size": (MERGE, MERGE),
    }  # fmt: skip
    image, video = words.convert_tokens_to_ids(SPECIAL[1:])
    config = Kimi_K25Config(
        text_config=text, vision_config=vision, projection_hidden_size=32, image_token_id=image,
        video_token_id=video, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Kimi_K25ForConditionalGeneration(config)
    settings = {
        "size": {"max_height": 12, "max_width": 12}, "max_patches": 80, "patch_size": PATCH,
        "merge_size": MERGE,
    }  # fmt: skip
    kind = image_processor_class("kimi_k25.image_processing_kimi_k25", "Kimi_K25ImageProcessor")
    processing = import_module("transformers.models.kimi_k25.processing_kimi_k25")
    processor = without_video(processing.Kimi_K25Processor)(
        image_processor=kind(**settings | images), tokenizer=words, video_processor=None,
        chat_template=CHAT,
    )  # fmt: skip
    sharpen(model, seed)
    with torch.no_grad():  # queries and keys have other names here than elsewhere
        for layer in model.get_decoder().layers:
            layer.self_attn.q_b_proj.weight.mul_(10)
    return model, processor


def glm5_next(seed=0, **images):
    import transformers as hf

    marks = ["<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"]
    words = tokenizer(marks)
    image, video, start, end = words.convert_tokens_to_ids(marks)
    text = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "q_lora_rank": 32, "kv_lora_rank": 32,
        "v_head_dim": 16, "qk_nope_head_dim": 16, "linear_head_dim": 16, "linear_num_heads": 4,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "hc_mult": 2,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "indexer_types": ["full"] * 4, "index_topk": 16, "index_kpool": 4, "index_head_dim": 16,
        "index_n_heads": 2, "max_position_embeddings": 2048,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": MERGE, "out_hidden_size": 64, "projection_intermediate_size": 64,
        "image_size": 32,
    }  # fmt: skip
    config = hf.Glm5NextConfig(
        text_config=text, vision_config=vision, image_token_id=image, video_token_id=video,
        image_start_token_id=start, image_end_token_id=end,
    )  # fmt: skip
    settings = {
        "patch_size": PATCH, "merge_size": MERGE, "min_image_tokens": 4, "max_image_tokens": 64,
    }  # fmt: skip
    processor = without_video(hf.Glm5NextProcessor)(
        image_processor=hf.Glm5NextImageProcessorPil(**settings | images), tokenizer=words,
        chat_template=CHAT.replace("<|media_pad|>", "<|begin_of_image|><|image|><|end_of_image|>"),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = sharpen(hf.Glm5NextForConditionalGeneration(config), seed)
    with torch.no_grad():  # as in Kimi
        for layer in model.get_decoder().layers[1::2]:
            layer.self_attn.q_b_proj.weight.mul_(10)
    return model, processor


FAMILIES = [
    Family("kimi_k25", kimi_k25, loads=False),
    Family("glm5_next", glm5_next, packs=False, positions=False),
]
