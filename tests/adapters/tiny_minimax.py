"""MiniMax M3 and Muse: patches of 4 pixels, merged 2 x 2; images of at most 64 cells."""

import pytest
import torch
from families import Family, sharpen, tokenizer
from fastground.models.processors import without_video
from without_torchvision import image_processor_class

CHAT = (
    "{%% for m in messages %%}<s>user:{%% for c in m['content'] %%}"
    "{%% if c['type'] == 'image' %%}%s{%% else %%}{{ c['text'] }}{%% endif %%}{%% endfor %%}"
    "{%% endfor %%}{%% if add_generation_prompt %%}assistant:{%% endif %%}"
)
TEXT = {
    "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "patch_size": 4,
}  # fmt: skip
FIRST = (5, 23)
"""The version of transformers from which on MiniMax M3's images do not see each other."""


def processor(kind, module, images, marks, **settings):
    import transformers as hf

    parts = {}
    if kind == "MuseSparkProcessor":  # which hears, too
        parts["feature_extractor"] = hf.MuseSparkFeatureExtractor()
    whole = without_video(getattr(hf, kind))
    images = image_processor_class(f"{module}.image_processing_{module}", images)
    return whole(
        image_processor=images(patch_size=4, merge_size=2, **settings),
        tokenizer=tokenizer(marks), chat_template=CHAT % marks[0], **parts,
    )  # fmt: skip


def minimax_m3(seed=0, **more):
    import transformers as hf

    if tuple(map(int, hf.__version__.split(".")[:2])) < FIRST:
        pytest.skip("this transformers lets MiniMax M3's images see each other")
    return built(seed, **more)


def built(seed=0, *, block=128, blocks=16):
    """(model, processor); in two of three layers a token sees so many blocks of so many keys."""
    import transformers as hf

    marks = ["]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>["]
    whole = processor(
        "MiniMaxM3VLProcessor", "minimax_m3_vl", "MiniMaxM3VLImageProcessor", marks,
        size={"shortest_edge": 4 * 8 * 8, "longest_edge": 64 * 8 * 8},
    )  # fmt: skip
    image, video = whole.tokenizer.convert_tokens_to_ids(marks[:2])
    text = TEXT | {
        "intermediate_size": 32, "dense_intermediate_size": 96, "shared_intermediate_size": 32,
        "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 8,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        "index_n_heads": 2, "index_head_dim": 16, "index_block_size": block,
        "index_topk_blocks": blocks,
    }  # fmt: skip
    config = hf.MiniMaxM3VLConfig(
        text_config=text, vision_config=VISION | {"image_size": 32}, image_token_index=image,
        video_token_index=video, projector_hidden_size=64,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.MiniMaxM3SparseForConditionalGeneration(config)
    return sharpen(model, seed), whole


def muse_spark(seed=0):
    import transformers as hf

    if not hasattr(hf, "MuseSparkConfig"):
        pytest.skip("this transformers has no Muse Spark")
    text = {
        "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "moe_hidden_size": 32, "mlp_layer_types": ["dense", "sparse", "sparse"],
    }  # fmt: skip
    audio = {
        "patch_sizes": [4], "hidden_sizes": [16], "depths": [1], "num_hidden_layers": 1,
        "out_hidden_size": 64,
    }  # fmt: skip
    return muse_glimmer(seed, "MuseSpark", text, audio_config=audio)


def muse_glimmer(seed=0, name="MuseGlimmer", more=(), **parts):
    import transformers as hf

    marks = ["<|patch|>", "<|video|>", "<|image_start|>", "<|image_end|>"]
    whole = processor(
        f"{name}Processor", "muse_glimmer", "MuseGlimmerImageProcessor", marks,
        max_image_tokens=64,
    )  # fmt: skip
    image, video = whole.tokenizer.convert_tokens_to_ids(marks[:2])
    text = TEXT | {
        "intermediate_size": 96, "sliding_window": 48, "qk_scale_factor": 2.0,
        "layer_rope_theta": [10000.0, 10000.0, 0],
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], **dict(more),
    }  # fmt: skip
    config = getattr(hf, f"{name}Config")(
        text_config=text, vision_config=VISION | {"pos_emb_height": 8, "pos_emb_width": 8},
        image_token_id=image, video_token_id=video, out_hidden_size=128, projector_hidden_size=64,
        **parts,
    )  # fmt: skip
    torch.manual_seed(seed)
    return sharpen(getattr(hf, f"{name}ForConditionalGeneration")(config), seed), whole


FAMILIES = [
    Family("minimax_m3_vl", minimax_m3, loads=False),
    Family("muse_glimmer", muse_glimmer, packs=False, loads=False),
    Family("muse_spark", muse_spark, packs=False, loads=False),
]
