"""Qwen-VL and its kin: patches of 4 pixels, merged 2 x 2; images of 4 to 64 cells."""

from functools import partial
from types import SimpleNamespace

from families import Family, sharpen, tokenizer
from fastground.models.processors import without_video

CHAT = (
    "{%% for m in messages %%}{{ m['role'] }} : {%% for c in m['content'] %%}"
    "{%% if c['type'] == 'image' %%}%s{%% else %%}{{ c['text'] }}{%% endif %%}{%% endfor %%}"
    "{%% endfor %%}{%% if add_generation_prompt %%} assistant :{%% endif %%}"
)
QWEN = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
GLM = ("<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "<|video|>")
COMPASS = ("<|VISION_START|>", "<|IMAGE_PAD|>", "<|VISION_END|>", "<|VIDEO_PAD|>")
TEXT = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4,
    "spatial_merge_size": 2, "out_hidden_size": 64,
}  # fmt: skip
QWEN3_VISION = VISION | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}


def rope(*section, **more):
    return {"rope_parameters": {"rope_type": "default", "mrope_section": list(section)} | more}


def letters(tokens, family="qwen3_5", kind="Qwen3_5Tokenizer", **settings):
    """A family's own tokenizer, which transformers takes whatever a checkpoint says: bytes only."""
    from importlib import import_module

    from tokenizers.pre_tokenizers import ByteLevel

    module = import_module(f"transformers.models.{family}.tokenization_{family}")

    listed = ["<|endoftext|>", *tokens, *sorted(ByteLevel.alphabet())]
    return getattr(module, kind)(
        vocab={token: i for i, token in enumerate(listed)},
        additional_special_tokens=tokens, **settings,
    )  # fmt: skip


def processor(kind, images, tokens=QWEN, words=tokenizer):
    """From the class's name and its image processor's: PIL, without videos."""
    import transformers

    start, image, end, video = tokens
    pixels = {"shortest_edge": 4 * 8 * 8, "longest_edge": 64 * 8 * 8}
    if "Glm" in images:
        pixels = {edge: 2 * count for edge, count in pixels.items()}  # counts frames, of two each
    named = {"image_token": image, "video_token": video}
    whole = without_video(getattr(transformers, kind))
    if "Ernie" in kind:  # which names all of them, and saves its videos' font
        named |= {f"{each}_start_token": start for each in ("image", "video")}
        named |= {f"{each}_end_token": end for each in ("image", "video")}
        whole.video_processor = SimpleNamespace(font="")
    return whole(
        image_processor=getattr(transformers, images)(size=pixels, patch_size=4, merge_size=2),
        tokenizer=words(list(tokens), extra_special_tokens=named),
        chat_template=CHAT % (start + image + end),
    )


def omni(seed, name, vision, text, audio):
    """The part of Qwen-Omni that sees, hears and thinks; its processor without videos."""
    import torch
    import transformers

    marks = ("vision_bos", "image", "vision_eos", "video", "audio", "audio_bos", "audio_eos")
    tokens = {f"{mark}_token": f"<|{mark}|>" for mark in marks}
    words = tokenizer(list(tokens.values()), extra_special_tokens=tokens)
    kind = without_video(getattr(transformers, f"{name}Processor"))
    kind.video_processor = SimpleNamespace(merge_size=2)  # which 5.17 asks for that alone
    whole = kind(
        image_processor=transformers.Qwen2VLImageProcessorPil(
            size={"shortest_edge": 4 * 8 * 8, "longest_edge": 64 * 8 * 8},
            patch_size=4, merge_size=2,
        ),
        tokenizer=words, video_processor=None,
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=16),
        chat_template=CHAT % "<|vision_bos|><|image|><|vision_eos|>",
    )  # fmt: skip
    audio = {
        "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
        "num_mel_bins": 16, "output_dim": 64, "n_window": 10, "max_source_positions": 20, **audio,
    }  # fmt: skip
    config = getattr(transformers, f"{name}ThinkerConfig")(
        vision_config=vision, text_config=TEXT | text, audio_config=audio
    )
    start, image, end, video, audio = words.convert_tokens_to_ids(list(tokens.values())[:5])
    config.image_token_id, config.video_token_id, config.audio_token_id = image, video, audio
    config.vision_start_token_id, config.vision_end_token_id = start, end
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ThinkerForConditionalGeneration")(config)
    return sharpen(model, seed), whole


def build(name, vision, text, *made, config=None, **more):
    """A builder of (model, processor) from a seed; `name` as transformers begins its classes."""

    def from_seed(seed):
        import pytest
        import torch
        import transformers

        if not hasattr(transformers, f"{name}ForConditionalGeneration"):
            pytest.skip(f"this transformers has no {name}")
        whole = processor(*made)
        tokens = next((each for each in (GLM, COMPASS) if each in made), QWEN)
        start, image, end, video = whole.tokenizer.convert_tokens_to_ids(list(tokens))
        around = "image" if GLM in made or "Ernie" in name else "vision"
        ends = {f"{around}_start_token_id": start, f"{around}_end_token_id": end}
        if name in ("VideoLlama3", "HyperCLOVAXVisionV2"):  # know no such tokens
            ends = {}
        kind = getattr(transformers, f"{config or name}Config")
        settings = kind(
            vision_config=vision, text_config=TEXT | text,
            image_token_id=image, video_token_id=video,
            **ends, **more,
        )  # fmt: skip
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}ForConditionalGeneration")(settings)
        return sharpen(model, seed), whole

    return from_seed


QWEN_IMAGES = "Qwen2VLImageProcessorPil"
SIGLIP = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "patch_size": 4,
}  # fmt: skip
GLM_VISION = VISION | {"image_size": 32}
LINEAR = {
    "linear_conv_kernel_dim": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "head_dim": 16, "vocab_size": 320,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
}  # fmt: skip
exaone = build(
    "Exaone4_5_",
    VISION | {"num_key_value_heads": 1, "window_size": 16, "fullatt_block_indexes": [1]},
    {"model_type": "exaone4", "num_hidden_layers": 4, "sliding_window": 30},
    "Exaone4_5_Processor", QWEN_IMAGES,
)  # fmt: skip
CHOSEN = {  # 16 of the tokens by fours; hashes of words of three letters in layer 0
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
    "indexer_compress_ratio": 4, "hc_count": 2, "hc_lowrank": 8, "ple_layer_ids": [1],
    "heads_per_ngram": 2, "ngram_vocab_size_base": 50, "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 2,
}  # fmt: skip
FAMILIES = [
    Family("qwen2_5_vl", build(
        "Qwen2_5_VL", VISION | {"window_size": 16, "fullatt_block_indexes": [1]}, rope(2, 3, 3),
        "Qwen2_5_VLProcessor", QWEN_IMAGES,
    )),
    Family("qwen2_vl", build(
        "Qwen2VL",
        {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4},
        rope(2, 3, 3), "Qwen2VLProcessor", QWEN_IMAGES,
    )),
    Family("qwen3_vl", build(
        "Qwen3VL", QWEN3_VISION, {"head_dim": 16} | rope(4, 2, 2),
        "Qwen3VLProcessor", QWEN_IMAGES,
    )),
    Family("qwen3_vl_moe", build(
        "Qwen3VLMoe", QWEN3_VISION,
        {"head_dim": 16, "num_experts": 4} | EXPERTS | rope(4, 2, 2),
        "Qwen3VLProcessor", QWEN_IMAGES,
    )),
    Family("glm4v", build(
        "Glm4v", GLM_VISION, rope(2, 3, 3), "Glm4vProcessor", "Glm4vImageProcessorPil", GLM,
    )),
    Family("glm46v", build(
        "Glm46V", {"model_type": "glm4v_vision"} | GLM_VISION,
        {"model_type": "glm4v_text"} | rope(2, 3, 3),
        "Glm46VProcessor", "Glm46VImageProcessorPil", GLM,
    )),
    Family("glm4v_moe", build(
        "Glm4vMoe", GLM_VISION,
        {"n_routed_experts": 4} | EXPERTS | rope(1, 1, 2, partial_rotary_factor=0.5),
        "Glm4vProcessor", "Glm4vImageProcessorPil", GLM,
    )),
    Family("glm_ocr", build(
        "GlmOcr", GLM_VISION, {"head_dim": 16} | rope(2, 3, 3),
        "Glm46VProcessor", "Glm46VImageProcessorPil", GLM,
    )),
    Family("glmga", build(
        "Glm46V", {"model_type": "glm4v_vision"} | GLM_VISION,
        {"model_type": "glm4v_text"} | rope(2, 3, 3),
        "Glm46VProcessor", "GlmgaImageProcessorPil", GLM, config="Glmga",
    )),
    Family("cohere_compass", build(
        "CohereCompass", QWEN3_VISION,
        {"rope_parameters": {"full_attention": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2],
        }}},
        "CohereCompassProcessor", "CohereCompassImageProcessorPil", COMPASS,
    )),
    Family("cosmos3_omni", build(
        "Cosmos3Omni", QWEN3_VISION, {"head_dim": 16} | rope(4, 2, 2),
        "Qwen3VLProcessor", QWEN_IMAGES,
    )),
    Family("cosmos3_edge", build(
        "Cosmos3Edge", SIGLIP | {"num_patches": 64}, {"head_dim": 16} | rope(3, 3, 2),
        "Cosmos3EdgeProcessor", "Cosmos3EdgeImageProcessorPil", projector_hidden_size=64,
    )),
    Family("qwen2_5_omni_thinker", lambda seed: omni(
        seed, "Qwen2_5Omni", VISION | {"window_size": 16, "fullatt_block_indexes": [1]},
        rope(2, 3, 3), {},
    ), loads=False, refusal="video processor"),
    Family("qwen3_omni_moe_thinker", lambda seed: omni(
        seed, "Qwen3OmniMoe", QWEN3_VISION,
        {"head_dim": 16, "num_experts": 4} | EXPERTS | rope(4, 2, 2),
        {"downsample_hidden_size": 16, "conv_chunksize": 10},
    ), loads=False, refusal="video processor"),
    Family("qwen3_5", build(
        "Qwen3_5", QWEN3_VISION, LINEAR | rope(2, 1, 1, partial_rotary_factor=0.5),
        "Qwen3VLProcessor", QWEN_IMAGES, QWEN, letters,
    ), packs=False),
    Family("qwen3_5_moe", build(
        "Qwen3_5Moe", QWEN3_VISION,
        LINEAR | {"num_experts": 4, "shared_expert_intermediate_size": 32} | EXPERTS
        | rope(2, 1, 1, partial_rotary_factor=0.5),
        "Qwen3VLProcessor", QWEN_IMAGES, QWEN, letters,
    ), packs=False),
    Family("qwen4_exp", build(
        "Qwen4Exp", VISION | {"num_position_embeddings": 64},
        LINEAR | {"num_experts": 4, "shared_expert_intermediate_size": 32} | EXPERTS | CHOSEN
        | rope(2, 1, 1, partial_rotary_factor=0.5),
        "Qwen3VLProcessor", QWEN_IMAGES, QWEN, letters,
    ), packs=False, caches=False, left_from=(5, 23)),
    Family("lfm3_vl", build(
        "Lfm3Vl",
        SIGLIP | {"num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]},
        {
            "model_type": "lfm3", "head_dim": 16, "sliding_window": 48,
            "layer_types": ["conv", "full_attention", "sliding_attention"],
        },
        "Lfm3VlProcessor", QWEN_IMAGES, projector_hidden_size=64,
    ), packs=False),
    Family("hyperclovax_vision_v2", build(
        "HyperCLOVAXVisionV2",
        VISION | {
            "model_type": "qwen2_5_vl_vision", "window_size": 16, "fullatt_block_indexes": [1],
        },
        {"model_type": "hyperclovax", "vocab_size": 320},
        "HyperCLOVAXVisionV2Processor", QWEN_IMAGES, QWEN,
        partial(letters, family="gpt2", kind="GPT2Tokenizer", merges=[], pad_token="<|endoftext|>"),
    )),
    Family("ernie4_5_vl_moe", build(
        "Ernie4_5_VLMoe", {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 4},
        {
            "moe_intermediate_size": [32, 32], "moe_k": 2, "moe_num_experts": 4,
            "moe_num_shared_experts": 1,
        } | rope(3, 3, 2),
        "Ernie4_5_VLMoeProcessor", "Ernie4_5_VLMoeImageProcessorPil",
    )),
    Family("exaone4_5", exaone, packs=False),
    Family("paddleocr_vl", build(
        "PaddleOCRVL", SIGLIP | {"image_size": 32}, {"head_dim": 16} | rope(2, 3, 3),
        "PaddleOCRVLProcessor", "PaddleOCRVLImageProcessorPil",
    ), loads=False),
    Family("video_llama_3", build(
        "VideoLlama3", SIGLIP, {"model_type": "qwen2"},
        "VideoLlama3Processor", "VideoLlama3ImageProcessorPil",
    )),
]  # fmt: skip
