"""A LLaVA of the real architecture classes, tiny and random, with a processor made in memory."""

import torch

WORDS = ["a", "the", "red", "blue", "small", "mug", "dog", "left", "on", "of", "what", "is", "x"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
CHAT = (
    "{% for m in messages %}USER: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def random_llava(
    seed=0, *, grid=4, layers=3, heads=4, kv_heads=2, strategy="default", text=None, **more
):
    """(model, processor): grid x grid image tokens; attention sharpened so that it is not flat."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=grid * 4, patch_size=4, projection_dim=32,
    )  # fmt: skip
    language = (text or LlamaConfig)(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=16,
        max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2, **more,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=language, image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=-1, vision_feature_select_strategy=strategy,
        image_seq_length=grid * grid,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "language_model" in name and weight.ndim == 2:
                weight.mul_(8 if "q_proj" in name or "k_proj" in name else 3)
            if "projector" in name:
                weight.mul_(5)
    return model, processor(grid, strategy=strategy)


def image_processor(side, kind="LlavaImageProcessorPil", **settings):
    import transformers

    settings = {"do_pad": True} | settings if "Llava" in kind else settings
    return getattr(transformers, kind)(
        **{"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}} | settings
    )


def processor(grid=4, *, images=None, chat=None, strategy="default", patch=4):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate([*SPECIAL, ".", ":", "user", "assistant", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", additional_special_tokens=["<image>"],
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=images or image_processor(grid * patch), tokenizer=tokenizer,
        patch_size=patch, vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1, chat_template=chat,
    )  # fmt: skip
