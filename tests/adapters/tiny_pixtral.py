"""Mistral 3, LLaVA with Pixtral's tower, LightOnOCR: patches of 4 pixels, merged by 2 or not."""

import sys
from functools import cache
from importlib import import_module
from unittest.mock import patch

import pytest
import torch
from families import Family, sharpen, tokenizer

PATCH, LONGEST = 4, 64
SPECIAL = ["\n", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
CHAT = (
    "{% for m in messages %}<s>user:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}[IMG]{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@cache
def processor_class():
    """The true class: where torchvision is not, with the Pillow form of the one rule it asks."""
    models = "transformers.models.pixtral"
    try:
        return import_module(f"{models}.processing_pixtral").PixtralProcessor
    except ModuleNotFoundError:
        rule = import_module(f"{models}.image_processing_pil_pixtral")
        with patch.dict(sys.modules, {f"{models}.image_processing_pixtral": rule}):
            return import_module(f"{models}.processing_pixtral").PixtralProcessor


def text(kind, **more):
    return kind(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=2048,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, **more,
    )  # fmt: skip


def tower():
    from transformers import PixtralVisionConfig

    return PixtralVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        image_size=LONGEST, patch_size=PATCH,
    )  # fmt: skip


def made(config, kind, words, merge, seed, **images):
    from transformers import PixtralImageProcessorPil

    torch.manual_seed(seed)
    model = kind(config)
    settings = {"size": {"longest_edge": LONGEST}, "patch_size": PATCH * merge} | images
    processor = processor_class()(
        image_processor=PixtralImageProcessorPil(**settings), tokenizer=words, patch_size=PATCH,
        spatial_merge_size=merge, chat_template=CHAT,
    )  # fmt: skip
    return sharpen(model, seed), processor


def mistral3(seed=0, *, language="MistralConfig", window=None, **images):
    import transformers
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    language = getattr(transformers, language)
    words = tokenizer(SPECIAL)
    config = Mistral3Config(
        vision_config=tower(), text_config=text(language, sliding_window=window),
        image_token_index=words.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return made(config, Mistral3ForConditionalGeneration, words, 2, seed, **images)


def mistral_large4(seed=0, topk=2048):
    import transformers as hf

    if not hasattr(hf, "MistralLarge4Config"):
        pytest.skip("this transformers has no Mistral Large 4")
    words = tokenizer(SPECIAL)
    language = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "kv_lora_rank": 32,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "index_topk": topk,
        "index_head_dim": 16, "index_n_heads": 2, "indexer_types": ["full", "full", "shared"],
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "attention_factor": 1.0,
            "original_max_position_embeddings": 512,
        },
        "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = hf.MistralLarge4Config(
        vision_config=tower(), text_config=language, spatial_merge_size=2,
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
    )  # fmt: skip
    return made(config, hf.MistralLarge4ForConditionalGeneration, words, 2, seed)


def pixtral(seed=0, strategy="full"):
    from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig

    words = tokenizer(SPECIAL)
    config = LlavaConfig(
        vision_config=tower(), text_config=text(MistralConfig, sliding_window=None),
        image_token_index=words.convert_tokens_to_ids("[IMG]"), vision_feature_layer=-1,
        vision_feature_select_strategy=strategy,
    )  # fmt: skip
    return made(config, LlavaForConditionalGeneration, words, 1, seed)


def lighton_ocr(seed=0):
    from transformers import (
        LightOnOcrConfig,
        LightOnOcrForConditionalGeneration,
        LightOnOcrProcessor,
        PixtralImageProcessorPil,
        Qwen3Config,
    )

    named = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]"}
    named["image_end_token"] = "[IMG_END]"
    words = tokenizer(SPECIAL, model_specific_special_tokens=named)
    config = LightOnOcrConfig(
        vision_config=tower(), text_config=text(Qwen3Config), spatial_merge_size=2,
        image_token_id=words.image_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LightOnOcrForConditionalGeneration(config)
    images = PixtralImageProcessorPil(size={"longest_edge": LONGEST}, patch_size=2 * PATCH)
    processor = LightOnOcrProcessor(
        image_processor=images, tokenizer=words, patch_size=PATCH, spatial_merge_size=2,
        chat_template=CHAT,
    )  # fmt: skip
    return sharpen(model, seed), processor


FAMILIES = [
    Family("mistral3", mistral3, loads=False),
    Family(
        "mistral3-ministral3",
        lambda seed: mistral3(seed, language="Ministral3Config"),
        loads=False,
        row="mistral3",
    ),
    Family("mistral_large4", mistral_large4, loads=False),
    Family("llava+pixtral", pixtral, loads=False),
    Family("lighton_ocr", lighton_ocr),
]
