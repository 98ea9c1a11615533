"""Step 3.7: patches of 2 pixels, 4 x 4 of them a token; tiles of 32 pixels, the whole of 48."""

import torch
from families import Family, sharpen, tokenizer
from without_torchvision import image_processor_class

PATCH = 2
SPECIAL = [
    "\n", "<im_patch>", "<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>",
]  # fmt: skip
CHAT = (
    "{% for m in messages %}<s>user:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<im_patch>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def step(seed=0, **images):
    import transformers as hf

    words = tokenizer(SPECIAL)
    text = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_sliding_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 16, "max_position_embeddings": 2048, "sliding_window": 32,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"], "moe_intermediate_size": 32,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "share_expert_dim": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 48,
        "patch_size": PATCH, "mlp_ratio": 2.0,
    }  # fmt: skip
    config = hf.Step3p7Config(
        text_config=text, vision_config=vision,
        image_token_id=words.convert_tokens_to_ids("<im_patch>"),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.Step3p7ForConditionalGeneration(config)
    kind = image_processor_class("step3p7.image_processing_step3p7", "Step3p7ImageProcessor")
    settings = {
        "size": {"height": 48, "width": 48}, "patch_size": 32, "vision_patch_size": PATCH,
        "max_image_size": 192,
    }  # fmt: skip
    processor = hf.Step3p7Processor(
        image_processor=kind(**settings | images), tokenizer=words, chat_template=CHAT
    )
    sharpen(model, seed)
    with torch.no_grad():  # queries are made of one length, whatever their weights
        for layer in model.get_decoder().layers:
            layer.self_attn.q_norm.weight.fill_(1.2)
    return model, processor


FAMILIES = [
    Family("step3p7", step, packs=False, blocks=("base", "stitch"), loads=False),
]
