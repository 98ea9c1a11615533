"""LLaVA-1.5 and what loads as one."""

import torch
from families import Family, sharpen, tokenizer
from random_llava import CHAT, SPECIAL, image_processor, processor, random_llava
from stand_in_tower import CELL, stand_in


def vipllava(seed):
    """4 x 4 patches; features of two layers of the tower side by side."""
    import transformers as hf

    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            image_size=16, patch_size=4, projection_dim=32,
        ),
        text_config=hf.LlamaConfig(
            vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=SPECIAL.index("<image>"), vision_feature_layers=[-1, 1],
        image_seq_length=16,
    )  # fmt: skip
    torch.manual_seed(seed)
    return sharpen(hf.VipLlavaForConditionalGeneration(config), seed), processor(4)


def fast_vlm(seed):
    """5 x 5 cells of 8 pixels, between Qwen 2 and a stand-in for the tower."""
    import transformers as hf

    config = hf.FastVlmConfig(
        vision_config=stand_in("TimmWrapperConfig")(architecture="stand_in", hidden_size=32),
        text_config=hf.Qwen2Config(
            vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=SPECIAL.index("<image>"), image_seq_length=25,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = sharpen(hf.FastVlmForConditionalGeneration(config), seed)
    colours = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    images = image_processor(5 * CELL, **colours)
    whole = processor(images=images, patch=CELL, strategy="full")
    whole.num_additional_image_tokens = 0
    return model, whole


def video_llava(seed):
    """4 x 4 patches of an image squeezed to a square, by a tower beside that for videos."""
    import transformers as hf
    from fastground.models.processors import without_video

    words = tokenizer(["<image>", "<video>"])
    config = hf.VideoLlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            image_size=16, patch_size=4, projection_dim=32,
        ),
        text_config=hf.LlamaConfig(
            vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"), vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = sharpen(hf.VideoLlavaForConditionalGeneration(config), seed)
    images = hf.VideoLlavaImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False)
    processor = without_video(hf.VideoLlavaProcessor)(
        image_processor=images, video_processor=None, tokenizer=words, patch_size=4,
        chat_template=CHAT,
    )  # fmt: skip
    return model, processor


FAMILIES = [
    Family("fast_vlm", fast_vlm, loads=False, refusal="timm"),
    Family("llava", lambda seed: random_llava(seed)),
    Family("video_llava", video_llava),
    Family("vipllava", vipllava),
]
