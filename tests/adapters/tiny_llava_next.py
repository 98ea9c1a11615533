"""LLaVA-NeXT and LLaVA-OneVision: a base of 4 x 4 tokens, then tiles of as many, unpadded."""

from families import Family, sharpen, tokenizer

CHAT = (
    "{% for m in messages %}user: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant:{% endif %}"
)


def canvases(tile, most):
    return [[r * tile, c * tile] for r in range(1, most + 1) for c in range(1, most + 1)]


def _text(kind):
    import transformers

    return getattr(transformers, kind)(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def llava_next(seed=0):
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
    )

    words = tokenizer(["<image>"])
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=4, projection_dim=32,
    )  # fmt: skip
    pinpoints = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=vision, text_config=_text("LlamaConfig"), image_grid_pinpoints=pinpoints,
            image_token_index=words.convert_tokens_to_ids("<image>"), vision_feature_layer=-2,
        )
    )  # fmt: skip
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    processor = LlavaNextProcessor(
        image_processor=images, tokenizer=words, patch_size=4, chat_template=CHAT,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return sharpen(model, seed), processor


def llava_next_video(seed=0):
    """As LLaVA-NeXT to an image."""
    import torch
    from fastground.models.processors import without_video
    from transformers import (
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
        LlavaNextVideoProcessor,
    )

    like, processor = llava_next(seed)
    words = tokenizer(["<image>", "<video>"])
    torch.manual_seed(seed)
    model = LlavaNextVideoForConditionalGeneration(
        LlavaNextVideoConfig(
            vision_config=like.config.vision_config, text_config=like.config.text_config,
            image_grid_pinpoints=like.config.image_grid_pinpoints, vision_feature_layer=-2,
            image_token_index=words.convert_tokens_to_ids("<image>"),
            video_token_index=words.convert_tokens_to_ids("<video>"),
        )
    )  # fmt: skip
    processor = without_video(LlavaNextVideoProcessor)(
        image_processor=processor.image_processor, tokenizer=words, video_processor=None,
        patch_size=4, chat_template=CHAT, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return sharpen(model, seed), processor


def llava_onevision(seed=0, *, tile=16, aspect="anyres_max_2"):
    """Patches of 4; at most two bases of cells, so that many images are averaged down."""
    import torch
    from fastground.models.processors import without_video
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
        LlavaOnevisionProcessor,
        SiglipVisionConfig,
    )

    words = tokenizer(["<image>", "<video>"])
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=tile, patch_size=4, vision_use_head=False,
    )  # fmt: skip
    pinpoints = canvases(tile, 3)
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=vision, text_config=_text("Qwen2Config"), image_grid_pinpoints=pinpoints,
            image_token_index=words.convert_tokens_to_ids("<image>"),
            video_token_index=words.convert_tokens_to_ids("<video>"), vision_aspect_ratio=aspect,
        )
    )  # fmt: skip
    images = LlavaOnevisionImageProcessorPil(
        size={"height": tile, "width": tile}, image_grid_pinpoints=pinpoints
    )
    processor = without_video(LlavaOnevisionProcessor)(
        image_processor=images, tokenizer=words, video_processor=None, chat_template=CHAT,
        num_image_tokens=(tile // 4) ** 2, vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
    )  # fmt: skip
    return sharpen(model, seed), processor


def granite4_vision(seed=0, *, rate="2/4"):
    """Patches of 4, 2 x 2 of them a cell: 4 x 4 cells a tile, in windows of 2 x 2."""
    import torch
    from transformers import (
        Blip2QFormerConfig,
        Granite4VisionConfig,
        Granite4VisionForConditionalGeneration,
        Granite4VisionProcessor,
        Granite4VisionTextConfig,
        LlavaNextImageProcessorPil,
        SiglipVisionConfig,
    )

    words = tokenizer(["<image>"])
    vision = SiglipVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=4, vision_use_head=False,
    )  # fmt: skip
    windows = Blip2QFormerConfig(
        hidden_size=64, encoder_hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=1, cross_attention_frequency=1, use_qformer_text_input=False,
    )  # fmt: skip
    language = Granite4VisionTextConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, attention_multiplier=0.25,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Granite4VisionForConditionalGeneration(
        Granite4VisionConfig(
            vision_config=vision, text_config=language, qformer_config=windows,
            image_token_index=words.convert_tokens_to_ids("<image>"), downsample_rate=rate,
            image_grid_pinpoints=canvases(32, 2), vision_feature_select_strategy="full",
            deepstack_layer_map=[[1, 0]], spatial_target_layers=[1, 2, 3, 4],
        )
    )  # fmt: skip
    images = LlavaNextImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=canvases(32, 2),
    )  # fmt: skip
    processor = Granite4VisionProcessor(
        image_processor=images, tokenizer=words, patch_size=4, chat_template=CHAT,
        vision_feature_select_strategy="full", downsample_rate=rate,
    )  # fmt: skip
    sharpen(model, seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "attention.output.dense.weight" in name:  # cells of a window mix little
                weight.mul_(0.02)
    return model, processor


FAMILIES = [
    Family("granite4_vision", granite4_vision, blocks=("base", "stitch")),
    Family("llava_next", llava_next, blocks=("base", "stitch")),
    Family("llava_next_video", llava_next_video, blocks=("base", "stitch")),
    Family("llava_onevision", llava_onevision, blocks=("base", "stitch")),
]
