"""Phi-4 multimodal: patches of 4 pixels, 2 x 2 of them a token; tiles of 128 pixels, at most 4."""

import torch
from families import Family, sharpen, tokenizer
from without_torchvision import image_processor_class

PATCH, TILE = 4, 128
CHAT = (
    "{% for m in messages %}<s>user:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|image|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def phi4(seed=0, **images):
    import transformers as hf

    marks = {"image_token": "<|image|>", "audio_token": "<|audio|>"}
    words = tokenizer(list(marks.values()), extra_special_tokens=marks)
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "patch_size": PATCH, "image_size": TILE, "crop_size": TILE,
        "image_token_id": words.image_token_id,
    }  # fmt: skip
    audio = {
        "hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2,
        "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "nemo_conv_channels": 8,
        "audio_token_id": words.audio_token_id,
    }  # fmt: skip
    config = hf.Phi4MultimodalConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        original_max_position_embeddings=4096, vision_config=vision, audio_config=audio,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.Phi4MultimodalForCausalLM(config)
    module = "phi4_multimodal.image_processing_phi4_multimodal"
    kind = image_processor_class(module, "Phi4MultimodalImageProcessor")
    settings = {"size": {"height": TILE, "width": TILE}, "patch_size": PATCH, "dynamic_hd": 4}
    processor = hf.Phi4MultimodalProcessor(
        image_processor=kind(**settings | images),
        audio_processor=hf.Phi4MultimodalFeatureExtractor(), tokenizer=words, chat_template=CHAT,
    )  # fmt: skip
    sharpen(model, seed)
    with torch.no_grad():  # the tower is made of large numbers, and there are many tokens
        for layer in model.model.embed_tokens_extend.image_embed.img_processor.encoder.layers:
            layer.self_attn.v_proj.weight.mul_(0.01)
        for layer in model.get_decoder().layers:
            layer.self_attn.qkv_proj.weight.mul_(1.5)
    return model, processor


FAMILIES = [Family("phi4_multimodal", phi4, blocks=("base", "stitch"), loads=False)]
