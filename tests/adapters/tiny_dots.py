"""Dots 3 Note: patches of 4 pixels, merged 2 x 2; images of 4 to 64 cells."""

import pytest
import torch
from families import Family, sharpen, tokenizer
from fastground.models.processors import without_video
from tiny_qwen_vl import CHAT


def dots3_note(seed=0):
    import transformers as hf

    if not hasattr(hf, "Dots3NoteConfig"):
        pytest.skip("this transformers has no Dots 3 Note")
    marks = ["<|imgpad|>", "<|video_pad|>", "<|audio_comp_pad|>", "<|img|>", "<|endofimg|>"]
    words = tokenizer(marks)
    image, video, audio = words.convert_tokens_to_ids(marks[:3])
    text = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
        "shared_experts_intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 16, "head_dim": 24, "index_topk": 2048, "index_head_dim": 16,
        "index_n_heads": 2, "max_position_embeddings": 2048, "sliding_window": 48,
        "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
        "swa_num_attention_heads": 6, "swa_num_key_value_heads": 6, "swa_q_lora_rank": 32,
        "swa_kv_lora_rank": 32, "swa_head_dim": 24, "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "patch_size": 4, "mlp_layer_types": ["dense", "dense"],
        "adapter_in_dim": 32, "adapter_out_dim": 64,
    }  # fmt: skip
    sound = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "downsample_hidden_size": 8, "adapter_input_size": 16,
        "adapter_out_dim": 64,
    }  # fmt: skip
    config = hf.Dots3NoteConfig(
        text_config=text, vision_config=vision, audio_config=sound, image_token_id=image,
        video_token_id=video, audio_token_id=audio,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = sharpen(hf.Dots3NoteForConditionalGeneration(config), seed)
    with torch.no_grad():  # queries have another name here than elsewhere
        for layer in model.get_decoder().layers:
            layer.self_attn.q_b_proj.weight.mul_(10)
    images = hf.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 4 * 8 * 8, "longest_edge": 64 * 8 * 8}, patch_size=4, merge_size=2,
        temporal_patch_size=1,
    )  # fmt: skip
    processor = without_video(hf.Dots3NoteProcessor)(
        image_processor=images, tokenizer=words, feature_extractor=hf.Dots3NoteFeatureExtractor(),
        chat_template=CHAT % "<|img|><|imgpad|><|endofimg|>",
    )  # fmt: skip
    return model, processor


FAMILIES = [
    Family("dots3_note", dots3_note, packs=False, loads=False, refusal="video processor"),
]
