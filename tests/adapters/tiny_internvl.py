"""InternVL and its kin: tiles of 4 x 4 image tokens, up to six, and a thumbnail."""

from families import Family, sharpen, tokenizer
from without_torchvision import image_processor_class

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


def qianfan_ocr(seed=0):
    import torch
    from transformers import QianfanOCRConfig, QianfanOCRForConditionalGeneration
    from transformers import QianfanOCRProcessor as Processor

    special = ["<img>", "</img>", "<img_context>"]
    names = ("start_image_token", "end_image_token", "context_image_token")
    words = tokenizer(
        [*special, "<image>"], model_specific_special_tokens=dict(zip(names, special, strict=True))
    )
    torch.manual_seed(seed)
    model = QianfanOCRForConditionalGeneration(
        QianfanOCRConfig(
            vision_config=tower("QianfanOCRVisionConfig").to_dict(),
            text_config=text("Qwen3Config", head_dim=16),
            image_token_id=words.context_image_token_id, image_seq_length=16,
        )
    )  # fmt: skip
    processor = Processor(
        image_processor=tiles(), tokenizer=words, image_seq_length=16,
        chat_template=CHAT.replace("MARK", "<image>"),
    )  # fmt: skip
    with torch.no_grad():  # queries are normalised
        for layer in model.get_decoder().layers:
            layer.self_attn.q_norm.weight.mul_(6)
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
    """As Aya Vision, with a token after each tile."""
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
    kind = image_processor_class(
        "cohere2_vision.image_processing_cohere2_vision", "Cohere2VisionImageProcessor"
    )
    images = kind(size={"height": 32, "width": 32}, max_patches=6, patch_size=4)
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
        hidden_size=16, output_channels=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=128, patch_size=2, window_size=4, global_attn_indexes=[], mlp_dim=32,
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


def pp_chart2table(seed=0, *, chat=None):
    """GOT-OCR's model, with a processor that leaves the image's tokens to its chat template."""
    import torch
    import transformers as hf

    like, processor = got_ocr2(seed)
    config = hf.PPChart2TableConfig(**like.config.to_dict() | {"model_type": "pp_chart2table"})
    torch.manual_seed(seed)
    model = hf.GotOcr2ForConditionalGeneration(config)
    images = hf.PPChart2TableImageProcessorPil(size={"height": 128, "width": 128})
    whole = hf.PPChart2TableProcessor(images, processor.tokenizer, chat_template=chat)
    return sharpen(model, seed), whole


def llama4(seed=0):
    """Layers of chunks and of all tokens, experts; tiles with words between them."""
    import pytest
    import torch
    import transformers

    if transformers.__version__ == "5.24.0":
        pytest.skip("transformers 5.24.0 fails at the end of every forward of Llama 4")
    from transformers import (
        Llama4Config,
        Llama4ForConditionalGeneration,
        Llama4Processor,
        Llama4TextConfig,
        Llama4VisionConfig,
    )

    special = [
        "<|image|>", "<|patch|>", "<|image_start|>", "<|image_end|>",
        "<|tile_x_separator|>", "<|tile_y_separator|>",
    ]  # fmt: skip
    words = tokenizer(special)
    vision = Llama4VisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=4, vision_output_dim=32, projector_input_dim=32,
        projector_output_dim=32,
    )  # fmt: skip
    language = Llama4TextConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, intermediate_size_mlp=96,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_local_experts=2, pad_token_id=0, attention_chunk_size=512,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Llama4ForConditionalGeneration(
        Llama4Config(
            vision_config=vision, text_config=language,
            image_token_index=words.convert_tokens_to_ids("<|patch|>"),
        )
    )  # fmt: skip
    kind = image_processor_class("llama4.image_processing_llama4", "Llama4ImageProcessor")
    processor = Llama4Processor(
        image_processor=kind(size={"height": 32, "width": 32}, max_patches=6), tokenizer=words,
        patch_size=4, pixel_shuffle_ratio=0.5, chat_template=CHAT.replace("MARK", "<|image|>"),
    )  # fmt: skip
    return sharpen(model, seed), processor


FAMILIES = [
    Family("internvl", internvl, blocks=("base", "stitch")),
    Family("qianfan_ocr", qianfan_ocr, blocks=("base", "stitch")),
    Family("aya_vision", aya_vision, packs=False, blocks=("base", "stitch")),
    Family("cohere2_vision", cohere2_vision, packs=False, loads=False, blocks=("base", "stitch")),
    Family("got_ocr2", got_ocr2),
    Family("pp_chart2table", pp_chart2table),
    Family("llama4", llama4, packs=False, loads=False, blocks=("base", "stitch")),
]
