"""Families that nobody wrote an adapter for: the generic one tells their grids."""

import torch
from families import Family, sharpen, tokenizer

TEXT = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def patches(kind, tokens, images="Qwen2VLImageProcessorPil"):
    """A processor of merged patches, from the class's name, without videos."""
    import transformers as hf
    from fastground.models.processors import without_video

    start, image, end, video = tokens
    special = {
        "image_token": image, "video_token": video, "image_start_token": start,
        "image_end_token": end, "video_start_token": start, "video_end_token": end,
    }  # fmt: skip
    return without_video(getattr(hf, kind))(
        image_processor=getattr(hf, images)(
            size={"shortest_edge": 4 * 8 * 8, "longest_edge": 64 * 8 * 8}, patch_size=4,
            merge_size=2,
        ),
        tokenizer=tokenizer(list(tokens), extra_special_tokens=special), video_processor=None,
    )  # fmt: skip


def exaone(seed):
    """Up to 64 cells of 2 x 2 patches; three of four layers see a window."""
    import transformers as hf

    processor = patches("Exaone4_5_Processor", ["<start>", "<image>", "<end>", "<video>"])
    config = hf.Exaone4_5_Config(
        text_config={"model_type": "exaone4", **TEXT, "sliding_window": 30},
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
            "num_key_value_heads": 1, "patch_size": 4, "out_hidden_size": 64, "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=processor.tokenizer.convert_tokens_to_ids("<video>"),
    )  # fmt: skip
    torch.manual_seed(seed)
    return sharpen(hf.Exaone4_5_ForConditionalGeneration(config), seed), processor


FAMILIES = [Family("exaone4_5", exaone, packs=False, caches=False)]
