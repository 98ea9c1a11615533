"""PerceptionLM: tiles of 64 pixels, up to six, 4 x 4 tokens of 2 x 2 patches each."""

import torch
from families import Family, sharpen, tokenizer
from fastground.models.processors import without_video
from stand_in_tower import CELL, stand_in
from without_torchvision import image_processor_class

POOLED = 2
CHAT = (
    "{% for m in messages %}user: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant:{% endif %}"
)


def perception_lm(seed=0, **images):
    import transformers as hf

    marks = {"image_token": "<image>", "video_token": "<video>"}
    words = tokenizer(list(marks.values()), extra_special_tokens=marks)
    vision = stand_in("TimmWrapperConfig")(architecture="stand_in", model_args={"embed_dim": 32})
    text = hf.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = hf.PerceptionLMConfig(
        vision_config=vision, text_config=text, projector_pooling_ratio=POOLED,
        image_token_id=words.image_token_id, video_token_id=words.video_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.PerceptionLMForConditionalGeneration(config)
    module = "perception_lm.image_processing_perception_lm"
    kind = image_processor_class(module, "PerceptionLMImageProcessor")
    tile = 4 * POOLED * CELL
    settings = {"tile_size": tile, "size": {"height": tile, "width": tile}, "max_num_tiles": 6}
    processor = without_video(hf.PerceptionLMProcessor)(
        image_processor=kind(**settings | images), tokenizer=words, patch_size=CELL,
        pooling_ratio=POOLED, chat_template=CHAT,
    )  # fmt: skip
    return sharpen(model, seed), processor


FAMILIES = [
    Family(
        "perception_lm", perception_lm, blocks=("base", "stitch"), loads=False,
        refusal="torchvision",
    ),
]  # fmt: skip
