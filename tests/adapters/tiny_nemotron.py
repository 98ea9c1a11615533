"""Nemotron 3 Omni: patches of 4 pixels merged 2 x 2, 4 to 64 cells; heads in 2 of 4 layers."""

import pytest
import torch
from families import Family, sharpen, tokenizer
from fastground.models.processors import without_video
from without_torchvision import image_processor_class

MARKS = ["<image>", "<video>", "<so_embedding>", "<img>", "</img>"]
CHAT = (
    "{% for m in messages %}user: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant:{% endif %}"
)


def nemotron(seed=0):
    import transformers as hf

    if not hasattr(hf, "NemotronH_Omni_Reasoning_V3"):
        pytest.skip("this transformers has no Nemotron 3 Omni")
    words = tokenizer(MARKS)
    image, video, audio = words.convert_tokens_to_ids(MARKS[:3])
    text = {
        "vocab_size": 64, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "intermediate_size": 96, "max_position_embeddings": 2048,
        "layers_block_type": ["linear_attention", "full_attention", "moe", "full_attention"],
        "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 8,
        "chunk_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32,
    }  # fmt: skip
    config = hf.NemotronH_Omni_Reasoning_V3_Config(
        text_config=text,
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
            "image_size": 32, "max_img_size": 256, "video_temporal_patch_size": 2,
        },
        projector_hidden_size=64, vision_hidden_size=32,
        image_token_id=image, video_token_id=video, audio_token_id=audio,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = sharpen(hf.NemotronH_Omni_Reasoning_V3(config), seed)
    module = "nemotron_h_omni.image_processing_nemotron_h_omni"
    images = image_processor_class(module, "NemotronH_Omni_Reasoning_V3ImageProcessor")(
        patch_size=4, min_num_patches=16, max_num_patches=256
    )
    kind = without_video(hf.NemotronH_Omni_Reasoning_V3Processor)
    return model, kind(
        image_processor=images, tokenizer=words, chat_template=CHAT,
        feature_extractor=hf.ParakeetFeatureExtractor(feature_size=16),
    )  # fmt: skip


FAMILIES = [Family("nemotron_h_omni", nemotron, packs=False, positions=False, loads=False)]
