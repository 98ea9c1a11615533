"""Molmo 2: crops of 7 x 7 patches of 4 pixels that overlap by two, pooled in pairs to 4 x 4."""

import pytest
import torch
from families import Family, sharpen, tokenizer
from fastground.models.processors import without_video
from without_torchvision import image_processor_class

PATCH, SIDE, MARGIN = 4, 7, 1
MARKS = [
    "<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>",
    "<frame_end>", "<im_low>",
]  # fmt: skip
CHAT = (
    "{% for m in messages %}user: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|image|> {% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant:{% endif %}"
)


def molmo2(seed=0, *, norm="qwen3", **images):
    reason = "this transformers does not have Molmo 2 yet"
    pytest.importorskip("transformers.models.molmo2", reason=reason)
    from transformers import Molmo2Config, Molmo2ForConditionalGeneration, Molmo2Processor

    words = tokenizer(["<|image|>", "<|video|>", *MARKS])
    words.backend_tokenizer.post_processor = None  # as the published ones, it adds no <s> itself
    start, low, end, patch = words.convert_tokens_to_ids(
        ["<im_start>", "<low_res_im_start>", "<im_end>", "<im_patch>"]
    )
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "image_size": [PATCH * SIDE] * 2, "patch_size": PATCH,
    }  # fmt: skip
    pooling = {
        "hidden_size": 32, "intermediate_size": 64, "text_hidden_size": 64, "head_dim": 16,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vision_feature_layer": [1, 0],
    }  # fmt: skip
    text = {
        "vocab_size": 64, "additional_vocab_size": 8, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 2048, "qk_norm_type": norm, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = Molmo2Config(
        vision_config=vision, adapter_config=pooling, text_config=text, image_patch_id=patch,
        image_start_token_id=start, low_res_image_start_token_id=low, image_end_token_id=end,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Molmo2ForConditionalGeneration(config)
    kind = image_processor_class("molmo2.image_processing_molmo2", "Molmo2ImageProcessor")
    side = {"height": PATCH * SIDE, "width": PATCH * SIDE}
    settings = {"size": side, "patch_size": PATCH, "max_crops": 4, "overlap_margins": [MARGIN] * 2}
    processor = without_video(Molmo2Processor)(
        image_processor=kind(**settings | images), tokenizer=words, chat_template=CHAT
    )
    with torch.no_grad():  # queries are normalised
        for layer in model.get_decoder().layers:
            layer.self_attn.q_norm.weight.mul_(6)
    return sharpen(model, seed), processor


FAMILIES = [
    Family("molmo2", molmo2, packs=False, blocks=("base", "stitch"), loads=False),
    Family(
        "molmo2-olmo", lambda seed: molmo2(seed, norm="olmo"), packs=False, loads=False,
        row="molmo2",
    ),
]  # fmt: skip
