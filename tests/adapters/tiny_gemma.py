"""Gemma 3, 3n and 4, and PaliGemma with both of its language models."""

import pytest
import torch
from families import Family, sharpen, tokenizer
from stand_in_tower import stand_in
from without_torchvision import image_processor_class

CHAT = (
    "<s>{% for m in messages %}user\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<start>{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"
)
TEXT = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "query_pre_attn_scalar": 16,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "patch_size": 4,
}  # fmt: skip


def gemma3(seed):
    """4 x 4 cells of 2 x 2 patches; the window of every second layer ends inside the image."""
    import transformers as hf

    words = tokenizer(
        ["<start>", "<image>", "<end>"], newlines=True,
        extra_special_tokens={
            "boi_token": "<start>", "image_token": "<image>", "eoi_token": "<end>"
        },
    )  # fmt: skip
    start, image, end = words.convert_tokens_to_ids(["<start>", "<image>", "<end>"])
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(
            **TEXT, num_hidden_layers=4, sliding_window=24,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=32),
        mm_tokens_per_image=16, boi_token_index=start, eoi_token_index=end,
        image_token_index=image,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=words, image_seq_length=16, chat_template=CHAT,
    )  # fmt: skip
    return sharpen(model, seed), processor


def gemma3n(seed):
    """4 x 4 cells of a stand-in for the tower; the last two layers have the keys of the first two,
    one with a window and one without."""
    import transformers as hf

    marks = {
        "boi_token": "<start>", "image_token": "<image>", "eoi_token": "<end>",
        "boa_token": "<hear>", "audio_token": "<audio>", "eoa_token": "<heard>",
    }  # fmt: skip
    words = tokenizer(list(marks.values()), newlines=True, extra_special_tokens=marks)
    text = TEXT | {"vocab_size": 128}
    text.pop("query_pre_attn_scalar")
    config = hf.Gemma3nConfig(
        text_config=hf.Gemma3nTextConfig(
            **text, num_hidden_layers=4, sliding_window=24, num_kv_shared_layers=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
            vocab_size_per_layer_input=96, hidden_size_per_layer_input=8, altup_num_inputs=2,
            laurel_rank=8, activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
        ),
        vision_config=stand_in("Gemma3nVisionConfig")(
            hidden_size=32, vocab_size=16, vocab_offset=96
        ),
        audio_config=hf.Gemma3nAudioConfig(
            hidden_size=16, vocab_size=16, vocab_offset=112, conf_num_hidden_layers=1,
            conf_num_attention_heads=2, sscp_conv_channel_size=[8, 8], input_feat_size=16,
        ),
        vision_soft_tokens_per_image=16, tie_word_embeddings=False,
        **{f"{n}_id": words.convert_tokens_to_ids(mark) for n, mark in marks.items()},
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.Gemma3nForConditionalGeneration(config)
    processor = hf.Gemma3nProcessor(
        feature_extractor=hf.Gemma3nAudioFeatureExtractor(feature_size=16),
        image_processor=hf.SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=words, image_seq_length=16, chat_template=CHAT.replace("<start>", "<image>"),
    )  # fmt: skip
    with torch.no_grad():  # queries are normalised, and not scaled down by their width
        for layer in model.get_decoder().layers:
            layer.self_attn.q_norm.weight.mul_(0.5)
    return sharpen(model, seed), processor


def gemma4(seed, *, both_ways="vision"):
    """Up to 70 cells of 2 x 2 patches; two kinds of layers, the last two with earlier keys."""
    pytest.importorskip(
        "transformers.models.gemma4.processing_gemma4",
        reason="transformers 5.17 needs torchvision for the processor of Gemma 4",
    )
    import transformers as hf
    from fastground.models.processors import without_video

    words = tokenizer(
        ["<start>", "<image>", "<end>", "<audio>", "<video>"], newlines=True,
        extra_special_tokens={
            "boi_token": "<start>", "image_token": "<image>", "eoi_token": "<end>",
            "audio_token": "<audio>", "boa_token": "<audio>", "eoa_token": "<audio>",
        },
    )  # fmt: skip
    start, image, end, audio, video = words.convert_tokens_to_ids(
        ["<start>", "<image>", "<end>", "<audio>", "<video>"]
    )
    text = {name: value for name, value in TEXT.items() if name != "query_pre_attn_scalar"}
    config = hf.Gemma4Config(
        text_config=hf.Gemma4TextConfig(
            **text, num_hidden_layers=4, sliding_window=40, global_head_dim=32,
            layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2,
            use_bidirectional_attention=both_ways, hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=96,
        ),
        vision_config=hf.Gemma4VisionConfig(
            **VISION, num_key_value_heads=2, head_dim=16, pooling_kernel_size=2,
            position_embedding_size=160,
        ),
        audio_config=None, boi_token_id=start, eoi_token_id=end, image_token_id=image,
        audio_token_id=audio, video_token_id=video,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.Gemma4ForConditionalGeneration(config)
    processor = without_video(hf.Gemma4Processor)(
        feature_extractor=hf.Gemma4AudioFeatureExtractor(),
        image_processor=hf.Gemma4ImageProcessorPil(
            patch_size=4, max_soft_tokens=70, pooling_kernel_size=2
        ),
        tokenizer=words, video_processor=None, chat_template=CHAT.replace("<start>", "<image>"),
    )  # fmt: skip
    with torch.no_grad():  # queries are normalised, and not scaled down by their width
        for layer in model.get_decoder().layers:
            layer.self_attn.q_norm.weight.mul_(0.5)
    return sharpen(model, seed), processor


def gemma4_unified(seed):
    """Up to 70 cells of 2 x 2 patches, whose pixels the language model reads."""
    import transformers as hf
    from fastground.models.processors import without_video

    module = "gemma4_unified.image_processing_gemma4_unified"
    kind = image_processor_class(module, "Gemma4UnifiedImageProcessor")
    marks = {
        "boi_token": "<start>", "image_token": "<image>", "eoi_token": "<end>",
        "audio_token": "<audio>", "boa_token": "<hear>", "eoa_token": "<heard>",
    }  # fmt: skip
    words = tokenizer([*marks.values(), "<|video|>"], newlines=True, extra_special_tokens=marks)
    start, image, end, audio = words.convert_tokens_to_ids(
        ["<start>", "<image>", "<end>", "<audio>"]
    )
    text = {name: value for name, value in TEXT.items() if name != "query_pre_attn_scalar"}
    config = hf.Gemma4UnifiedConfig(
        text_config=hf.Gemma4UnifiedTextConfig(
            **text, num_hidden_layers=4, sliding_window=40, global_head_dim=32,
            layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2,
        ),
        vision_config=hf.Gemma4UnifiedVisionConfig(
            patch_size=4, pooling_kernel_size=2, mm_embed_dim=32, mm_posemb_size=160,
            output_proj_dims=32,
        ),
        audio_config=None, boi_token_id=start, eoi_token_id=end, image_token_id=image,
        audio_token_id=audio, video_token_id=words.convert_tokens_to_ids("<|video|>"),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.Gemma4UnifiedForConditionalGeneration(config)
    processor = without_video(hf.Gemma4UnifiedProcessor)(
        feature_extractor=hf.Gemma4UnifiedAudioFeatureExtractor(),
        image_processor=kind(patch_size=4, max_soft_tokens=70, pooling_kernel_size=2),
        tokenizer=words, video_processor=None, chat_template=CHAT.replace("<start>", "<image>"),
    )  # fmt: skip
    with torch.no_grad():  # queries are normalised, and not scaled down by their width
        for layer in model.get_decoder().layers:
            layer.self_attn.q_norm.weight.mul_(0.5)
    return sharpen(model, seed), processor


def paligemma(seed, *, capped=False):
    """5 x 5 cells; with Gemma 2 the window of every second layer and the capped logits too."""
    import transformers as hf

    words = tokenizer(["<image>"], newlines=True, extra_special_tokens={"image_token": "<image>"})
    text = {name: value for name, value in TEXT.items() if name != "query_pre_attn_scalar"}
    language = hf.GemmaConfig(**text, num_hidden_layers=3)
    if capped:
        language = hf.Gemma2Config(
            **TEXT, num_hidden_layers=4, sliding_window=28, attn_logit_softcapping=2.0,
            final_logit_softcapping=30.0,
        )  # fmt: skip
    config = hf.PaliGemmaConfig(
        text_config=language,
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=20, vision_use_head=False),
        image_token_index=words.convert_tokens_to_ids("<image>"), projection_dim=64,
        hidden_size=64, vocab_size=96,
    )  # fmt: skip
    images = hf.SiglipImageProcessorPil(size={"height": 20, "width": 20})
    images.image_seq_length = 25
    processor = hf.PaliGemmaProcessor(images, words)
    torch.manual_seed(seed)
    model = hf.PaliGemmaForConditionalGeneration(config)
    if capped:
        model.set_attn_implementation({"text_config": "eager"})
    return sharpen(model, seed), processor


FAMILIES = [
    Family("gemma3", gemma3, packs=False),
    Family("gemma3n", gemma3n, packs=False, loads=False, refusal="timm"),
    Family("gemma4", gemma4, packs=False),
    Family("gemma4_unified", gemma4_unified, packs=False, loads=False),
    Family("paligemma", paligemma, packs=False, caches=False),
    Family(
        "paligemma2",
        lambda seed: paligemma(seed, capped=True),
        packs=False,
        caches=False,
        row="paligemma",
    ),
]
