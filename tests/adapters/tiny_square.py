"""DeepSeek-VL, its hybrid with two towers, and Janus: padded squares."""

import torch
from families import Family, sharpen, tokenizer

CHAT = (
    "<s>{% for m in messages %}user: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant:{% endif %}"
)
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 24,
    "patch_size": 4,
}  # fmt: skip


def language():
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=2048,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def deepseek(seed, *, hybrid=False):
    """6 x 6 patches; the hybrid reads the image once more, larger.

    The larger view counts little: its convolutions with stride see half of the cells before too,
    so that alone it would not say which cell was painted.
    """
    import transformers as hf

    name = "DeepseekVLHybrid" if hybrid else "DeepseekVL"
    words = tokenizer(["<image>"], extra_special_tokens={"image_token": "<image>"})
    config = {
        "text_config": language(),
        "vision_config": hf.SiglipVisionConfig(**VISION, intermediate_size=64),
        "image_token_id": words.convert_tokens_to_ids("<image>"),
    }
    sizes = {"size": {"height": 24, "width": 24}, "min_size": 3}
    if hybrid:
        config["high_res_vision_config"] = hf.SamVisionConfig(
            hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=2,
            image_size=64, patch_size=8, window_size=3, global_attn_indexes=[1], mlp_dim=64,
            num_pos_feats=8, initializer_range=0.1,
        )  # fmt: skip
        sizes["high_res_size"] = {"height": 64, "width": 64}
        # What they pad with is read off these, but only where they are named.
        sizes["image_mean"] = sizes["high_res_image_mean"] = [0.5, 0.5, 0.5]
    torch.manual_seed(seed)
    model = getattr(hf, f"{name}ForConditionalGeneration")(getattr(hf, f"{name}Config")(**config))
    images = getattr(hf, f"{name}ImageProcessorPil")(**sizes)
    processor = getattr(hf, f"{name}Processor")(
        images, words, chat_template=CHAT, num_image_tokens=36
    )
    sharpen(model, seed)
    if hybrid:
        with torch.no_grad():
            model.model.aligner.high_res_vision_proj.weight.mul_(0.01)
    return model, processor


def janus(seed, *, system=False):
    """6 x 6 patches between two marks."""
    import transformers as hf

    words = tokenizer(
        ["<image>", "<start>", "<end>"],
        extra_special_tokens={
            "image_token": "<image>", "boi_token": "<start>", "eoi_token": "<end>"
        },
    )  # fmt: skip
    config = hf.JanusConfig(
        text_config=language(),
        vision_config=hf.JanusVisionConfig(
            **VISION, mlp_ratio=2.0, projection_dim=64, num_image_tokens=36, depth=2
        ),
        vq_config=hf.JanusVQVAEConfig(
            embed_dim=4, num_embeddings=8, latent_channels=32, base_channels=32,
            channel_multiplier=[1, 1], num_res_blocks=1, projection_dim=64,
            image_token_embed_dim=64,
        ),
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.JanusForConditionalGeneration(config)
    images = hf.JanusImageProcessorPil(size={"height": 24, "width": 24}, min_size=3)
    processor = hf.JanusProcessor(
        images, words, chat_template=CHAT, num_image_tokens=36, use_default_system_prompt=system
    )
    return sharpen(model, seed), processor


FAMILIES = [
    Family("deepseek_vl", deepseek),
    Family("deepseek_vl_hybrid", lambda seed: deepseek(seed, hybrid=True)),
    Family("janus", janus),
]
