"""InternVL and its kin: tiles of 4 x 4 image tokens, up to six, and a thumbnail."""

from families import Family, sharpen, tokenizer

CHAT = (
    "{% for m in messages %}user: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}MARK {% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant:{% endif %}"
)


def text(kind, **more):
    """A small causal language model's configuration."""
    import transformers

    settings = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return getattr(transformers, kind)(**settings | more)


def tower(kind, **more):
    """A small vision tower's configuration: tiles of 32 pixels, patches of 4."""
    import transformers

    settings = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 4,
    }  # fmt: skip
    return getattr(transformers, kind)(**settings | more)


def tiles(side=32, **more):
    """The image processor of all of them, which cuts up to six tiles."""
    from transformers import GotOcr2ImageProcessorPil

    return GotOcr2ImageProcessorPil(
        size={"height": side, "width": side}, **{"max_patches": 6} | more
    )


def internvl(seed=0):
    import torch
    from fastground.models.processors import without_video
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor

    special = ["<img>", "</img>", "<img_context>", "<video>"]
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    words = tokenizer(special, model_specific_special_tokens=dict(zip(names, special, strict=True)))
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=tower("InternVLVisionConfig").to_dict(), text_config=text("Qwen2Config"),
            image_token_id=words.context_image_token_id, image_seq_length=16,
        )
    )  # fmt: skip
    processor = without_video(InternVLProcessor)(
        image_processor=tiles(), tokenizer=words, video_processor=None, image_seq_length=16,
        chat_template=CHAT.replace("MARK", "<img_context>"),
    )  # fmt: skip
    return sharpen(model, seed), processor


def aya_vision(seed=0, *, knows_image=True):
    """Three of four layers see a window, as in Cohere's models; tiles are named before them."""
    import torch
    from transformers import (
        AyaVisionConfig,
        AyaVisionForConditionalGeneration,
        AyaVisionProcessor,
    )

    frame = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE", "TILE_GLOBAL"]
    named = [*frame, *(f"TILE_{i}" for i in range(1, 7))]
    words = tokenizer([*named, *(["<image>"] if knows_image else [])])
    torch.manual_seed(seed)
    model = AyaVisionForConditionalGeneration(
        AyaVisionConfig(
            vision_config=tower("SiglipVisionConfig", vision_use_head=False),
            text_config=text("Cohere2Config", num_hidden_layers=4, sliding_window=512),
            image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        )
    )
    processor = AyaVisionProcessor(
        image_processor=tiles(), tokenizer=words, patch_size=4, downsample_factor=2, img_size=32,
        chat_template=CHAT.replace("MARK", "<image>"),
    )  # fmt: skip
    return sharpen(model, seed), processor


def cohere2_vision(seed=0):
    """The true model and processor with InternVL's tiles: its own need torchvision."""
    import torch
    from transformers import (
        Cohere2VisionConfig,
        Cohere2VisionForConditionalGeneration,
        Cohere2VisionProcessor,
    )

    special = ["<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>"]
    names = ("image_token", "boi_token", "eoi_token", "img_line_break_token")
    words = tokenizer(special, model_specific_special_tokens=dict(zip(names, special, strict=True)))
    torch.manual_seed(seed)
    model = Cohere2VisionForConditionalGeneration(
        Cohere2VisionConfig(
            vision_config=tower("SiglipVisionConfig", vision_use_head=False),
            text_config=text("Cohere2Config", num_hidden_layers=4, sliding_window=512),
            image_token_id=words.image_token_id, alignment_intermediate_size=64,
        )
    )  # fmt: skip
    images = tiles(crop_to_patches=True)
    images.patch_size = 4
    processor = Cohere2VisionProcessor(
        image_processor=images, tokenizer=words, chat_template=CHAT.replace("MARK", "<image>")
    )
    return sharpen(model, seed), processor


def got_ocr2(seed=0):
    """One tile of 128 pixels: its processor makes 256 tokens, whatever the model."""
    import torch
    from transformers import GotOcr2Config, GotOcr2ForConditionalGeneration, GotOcr2Processor
    from transformers.models.got_ocr2.configuration_got_ocr2 import GotOcr2VisionConfig

    words = tokenizer(["<imgpad>", "<img>", "</img>", "<|im_start|>", "<|im_end|>"])
    vision = GotOcr2VisionConfig(
        hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=128, patch_size=2, window_size=4, global_attn_indexes=[1], mlp_dim=64,
        initializer_range=0.02,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = GotOcr2ForConditionalGeneration(
        GotOcr2Config(
            vision_config=vision, text_config=text("Qwen2Config"),
            image_token_index=words.convert_tokens_to_ids("<imgpad>"), image_seq_length=256,
        )
    )  # fmt: skip
    processor = GotOcr2Processor(image_processor=tiles(128), tokenizer=words)
    return sharpen(model, seed), processor


FAMILIES = [
    Family("internvl", internvl, blocks=("base", "stitch")),
    Family("aya_vision", aya_vision, packs=False, blocks=("base", "stitch")),
    Family("cohere2_vision", cohere2_vision, packs=False, blocks=("base", "stitch")),
    Family("got_ocr2", got_ocr2),
]
