"""Idefics3, SmolVLM, Granite Docling: tiles of 24 pixels, mostly 3 x 3 tokens each; few of them."""

from importlib import import_module
from importlib.util import find_spec
from unittest.mock import patch

import torch
from families import Family, sharpen, tokenizer
from fastground.models.processors import without_video

TILE, PATCH, SCALE = 24, 4, 2
SPECIAL = [
    "\n", "\n\n", "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
    *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)),
]  # fmt: skip
CHAT = (
    "{% for m in messages %}user:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def part(family, kind, name):
    """A class that works without torchvision, though transformers 5.17 does not export it so."""
    return getattr(import_module(f"transformers.models.{family}.{kind}_{family}"), name)


def idefics(name, prefix, seed=0, *, tile=TILE, **images):
    import transformers
    from transformers import LlamaConfig

    text = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=2048,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": tile, "patch_size": PATCH,
    }  # fmt: skip
    words = tokenizer(SPECIAL)
    config = getattr(transformers, f"{prefix}Config")(
        text_config=text, vision_config=vision, scale_factor=SCALE, pad_token_id=0,
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    settings = {"size": {"longest_edge": 3 * tile}, "max_image_size": {"longest_edge": tile}}
    image_processor = part(name, "image_processing_pil", f"{prefix}ImageProcessorPil")
    kind = part(name, "processing", f"{prefix}Processor")
    rest = {}
    if name == "smolvlm":
        kind, rest = without_video(kind), {"video_processor": None}
    with patch(f"transformers.models.{name}.processing_{name}.num2words", str, create=True):
        processor = kind(
            image_processor=image_processor(**settings | images), tokenizer=words,
            image_seq_len=(tile // PATCH // SCALE) ** 2, chat_template=CHAT, **rest,
        )  # fmt: skip
    return sharpen(model, seed), processor


def granite_docling(seed=0, **images):
    """At most six tiles; one that is alone is named as the first of many would be."""
    import pytest
    import transformers as hf

    if not hasattr(hf, "GraniteDoclingConfig"):
        pytest.skip("this transformers does not have Granite Docling yet")
    words = tokenizer(SPECIAL)
    config = hf.GraniteDoclingConfig(
        text_config={
            "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "attention_multiplier": 0.25,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": TILE, "patch_size": PATCH,
            "out_hidden_size": 64, "scale_factor": SCALE, "deepstack_visual_indexes": [0],
        },
        image_token_id=words.convert_tokens_to_ids("<image>"), pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.GraniteDoclingForConditionalGeneration(config)
    kind = part("granite_docling", "image_processing_pil", "GraniteDoclingImageProcessorPil")
    settings = {"size": {"height": TILE, "width": TILE}, "max_patches": 6}
    processor = hf.GraniteDoclingProcessor(
        kind(**settings | images), words, image_seq_len=(TILE // PATCH // SCALE) ** 2,
        chat_template=CHAT,
    )  # fmt: skip
    return sharpen(model, seed), processor


BOTH = ("base", "stitch")
FAMILIES = [
    Family("granite_docling", granite_docling, blocks=BOTH),
    Family(
        "granite_docling-fine",
        lambda seed: granite_docling(seed, fine_route=True),
        blocks=BOTH,
        row="granite_docling",
    ),
    Family("idefics3", lambda seed: idefics("idefics3", "Idefics3", seed), blocks=BOTH),
    Family(  # two pixels of a tile make no patch, as six do in SmolVLM of 384
        "idefics3-rest",
        lambda seed: idefics("idefics3", "Idefics3", seed, tile=TILE + 2),
        blocks=BOTH,
        row="idefics3",
    ),
    Family(
        "smolvlm",
        lambda seed: idefics("smolvlm", "SmolVLM", seed),
        blocks=BOTH,
        loads=find_spec("num2words") is not None,  # its processor asks for it, though for videos
        refusal="num2words",
    ),
]
