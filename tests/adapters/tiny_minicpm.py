"""MiniCPM-V 4.6 and 4.7, MiniCPM-OCR: patches of 4 pixels, views of about 48 x 48."""

import pytest
import torch
from families import Family, sharpen, tokenizer
from fastground.models.processors import without_video
from without_torchvision import image_processor_class

MARKS = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
    "image_start_token": "<image>", "image_end_token": "</image>",
    "slice_start_token": "<slice>", "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
}  # fmt: skip
CHAT = (
    "{% for m in messages %}user: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|image_pad|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant:{% endif %}"
)
FIRST = (5, 19)
"""The version of transformers from which on the views of an image may differ in size."""


def minicpm(seed=0, **more):
    import transformers as hf

    if tuple(map(int, hf.__version__.split(".")[:2])) < FIRST:
        pytest.skip("this transformers mixes up the views of MiniCPM-V 4.6")
    return built(seed, **more)


def minicpm47(seed=0, **more):
    import transformers as hf

    if not hasattr(hf, "MiniCPMV4_7Config"):
        pytest.skip("this transformers has no MiniCPM-V 4.7")
    return minicpm(seed, name="MiniCPMV4_7", **more)


def minicpm_ocr(seed=0, **more):
    import transformers as hf

    if not hasattr(hf, "MiniCPMOcrConfig"):
        pytest.skip("this transformers has no MiniCPM-OCR")
    module = "minicpm_ocr.image_processing_minicpm_ocr"
    images = image_processor_class(module, "MiniCPMOcrImageProcessor")
    return built(seed, name="MiniCPMOcr", images=images, downsample="4x", **more)


def built(seed=0, *, name="MiniCPMV4_6", images=None, downsample="16x", **more):
    import transformers as hf

    words = tokenizer([*MARKS.values(), "0"], newlines=True, extra_special_tokens=MARKS)
    kind = without_video(getattr(hf, f"{name}Processor"))
    settings = {"patch_size": 4, "scale_resolution": 48, "max_slice_nums": 4} | more
    images = images or hf.MiniCPMV4_6ImageProcessorPil
    processor = kind(
        image_processor=images(downsample_mode=downsample, **settings),
        tokenizer=words, chat_template=CHAT,
    )  # fmt: skip
    text = hf.Qwen3_5TextConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=2048,
        layer_types=["linear_attention", "full_attention"] * 2, linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1],
            "partial_rotary_factor": 0.5,
        },
    )  # fmt: skip
    marks = {}
    if name == "MiniCPMV4_7":
        named = ("image_start", "image_end", "slice_start", "slice_end")
        marks = {
            f"{name}_id": words.convert_tokens_to_ids(MARKS[f"{name}_token"]) for name in named
        }
        marks["newline_id"] = words.convert_tokens_to_ids("\n")
    config = getattr(hf, f"{name}Config")(
        text_config=text,
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 48, "patch_size": 4,
        },
        insert_layer_id=0, downsample_mode=downsample,
        image_token_id=processor.image_token_id, video_token_id=processor.video_token_id, **marks,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = getattr(hf, f"{name}ForConditionalGeneration")(config)
    return sharpen(model, seed), processor


FAMILIES = [
    Family("minicpmv4_6", minicpm, packs=False, blocks=("base", "stitch")),
    Family(
        "minicpmv4_6-4x", lambda seed: minicpm(seed, downsample="4x"), packs=False,
        blocks=("base", "stitch"), row="minicpmv4_6",
    ),
    Family(
        "minicpm_ocr", minicpm_ocr, packs=False, blocks=("base", "stitch"), loads=False
    ),
    Family("minicpmv4_7", minicpm47, packs=False, blocks=("base", "stitch")),
]  # fmt: skip
