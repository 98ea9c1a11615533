"""HunYuan-VL: patches of 4 pixels, merged 2 x 2; images of 4 to 64 cells."""

import torch
from families import Family, sharpen, tokenizer

MARKS = {"image_token": "<img>", "image_start_token": "<start>", "image_end_token": "<end>"}
CHAT = (
    "{% for m in messages %}user: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<start><img><end>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant:{% endif %}"
)


def hunyuan(seed=0, *, section=(2, 2, 2, 2), **more):
    import transformers as hf
    from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import (
        HunYuanVLImageProcessorPil,
    )

    words = tokenizer(list(MARKS.values()), extra_special_tokens=MARKS)
    config = hf.HunYuanVLConfig(
        text_config={
            "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "max_position_embeddings": 2048, "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section)
            },
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "patch_size": 4, "text_hidden_size": 64,
            "out_hidden_size": 64, "max_image_size": 64,
        },
        tie_word_embeddings=False,
        **{f"{name}_id": words.convert_tokens_to_ids(mark) for name, mark in MARKS.items()},
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.HunYuanVLForConditionalGeneration(config)
    images = HunYuanVLImageProcessorPil(
        size={"shortest_edge": 4 * 8 * 8, "longest_edge": 64 * 8 * 8}, patch_size=4, merge_size=2
    )
    processor = hf.HunYuanVLProcessor(images, words, chat_template=CHAT, **more)
    return sharpen(model, seed), processor


FAMILIES = [
    Family("hunyuan_vl", hunyuan),
    Family("hunyuan_vl-3", lambda seed: hunyuan(seed, section=(3, 3, 2)), row="hunyuan_vl"),
]
