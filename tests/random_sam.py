"""SAM and its kin, of the real classes, tiny and random."""

import re

import torch

DECODER = {
    "hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32,
}  # fmt: skip
ENCODER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
    "patch_size": 8, "output_channels": 32, "window_size": 3, "global_attn_indexes": [1],
    "num_pos_feats": 16, "mlp_dim": 128,
}  # fmt: skip


def random_sam(kind, seed=0, **decoder):
    """A model of transformers by its model_type.

    Its frame is 64 pixels, of SAM 2 128, of SAM 3 112. What is changed of the decoder's settings is
    taken by SAM alone.
    """
    import transformers

    prompts = {"hidden_size": 32, "image_size": 64, "patch_size": 8}
    if kind in ("sam", "sam_hq"):
        config, model = {
            "sam": (transformers.SamConfig, transformers.SamModel),
            "sam_hq": (transformers.SamHQConfig, transformers.SamHQModel),
        }[kind]
        decoder = DECODER | ({"vit_dim": 32} if kind == "sam_hq" else decoder)
        made = config(
            vision_config=ENCODER, prompt_encoder_config=prompts, mask_decoder_config=decoder
        )
    elif kind == "sam2":
        vision = {
            "backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [128, 128],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 24, 32], "num_attention_heads_per_stage": [1] * 4,
                "window_size_per_stage": [4, 4, 4, 4], "global_attention_blocks": [3],
                "window_positional_embedding_background_size": [7, 7],
            },
            "backbone_channel_list": [32, 24, 16, 8], "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        }  # fmt: skip
        model = transformers.Sam2Model
        made = transformers.Sam2Config(
            vision_config=vision,
            prompt_encoder_config=prompts | {"image_size": 128, "patch_size": 16},
            mask_decoder_config=DECODER,
        )
    else:
        vision = {
            "backbone_config": {
                "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": 112, "patch_size": 14, "window_size": 4,
                "global_attn_indexes": [1], "pretrain_image_size": 112,
            },
            "fpn_hidden_size": 32, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        }  # fmt: skip
        model = transformers.Sam3TrackerModel
        made = transformers.Sam3TrackerConfig(
            vision_config=vision,
            prompt_encoder_config=prompts | {"image_size": 112, "patch_size": 14},
            mask_decoder_config=DECODER,
        )
    torch.manual_seed(seed)
    return randomised(model(made))


@torch.no_grad()
def randomised(model):
    """Weights that make masks with an edge in them; as initialised many are zero."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.normal_(0, 0.3 if "hypernetworks" in name or "upscale" in name else 0.15)
        elif "norm" not in name or "bias" in name:
            weight.normal_(0, 0.05)
    return model.eval()


def original(model):
    """segment-anything's own model with the weights of a random SamModel."""
    from fastground import sam

    modeling = sam.segment_anything().modeling
    made = modeling.Sam(
        modeling.ImageEncoderViT(
            img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, out_chans=32,
            window_size=3, global_attn_indexes=(1,), use_rel_pos=True,
            norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
        ),
        modeling.PromptEncoder(
            embed_dim=32, image_embedding_size=(8, 8), input_image_size=(64, 64), mask_in_chans=16
        ),
        modeling.MaskDecoder(
            transformer_dim=32, iou_head_hidden_dim=32,
            transformer=modeling.TwoWayTransformer(
                depth=2, embedding_dim=32, num_heads=2, mlp_dim=64
            ),
        ),
    )  # fmt: skip
    weights = {_original_name(name): value for name, value in model.state_dict().items()}
    weights.pop("")
    made.load_state_dict(weights, strict=True)
    return made.eval()


def _original_name(name):
    if name.startswith("shared_image_embedding"):  # the prompt encoder's, once more
        return ""
    for pattern, instead in (
        (r"^vision_encoder\.layers", "image_encoder.blocks"),
        (r"^vision_encoder", "image_encoder"),
        (r"patch_embed\.projection", "patch_embed.proj"),
        (r"neck\.conv1", "neck.0"),
        (r"neck\.layer_norm1", "neck.1"),
        (r"neck\.conv2", "neck.2"),
        (r"neck\.layer_norm2", "neck.3"),
        (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
        (r"encoder\.point_embed\.", "encoder.point_embeddings."),
        (r"mask_embed\.conv1", "mask_downscaling.0"),
        (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
        (r"mask_embed\.conv2", "mask_downscaling.3"),
        (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
        (r"mask_embed\.conv3", "mask_downscaling.6"),
        (r"upscale_conv1", "output_upscaling.0"),
        (r"upscale_layer_norm", "output_upscaling.1"),
        (r"upscale_conv2", "output_upscaling.3"),
        (r"layer_norm_final_attn", "norm_final_attn"),
        (r"layer_norm(\d)", r"norm\1"),
        (r"(mlps\.\d|head)\.layers\.0", r"\1.layers.1"),
        (r"(mlps\.\d|head)\.proj_in", r"\1.layers.0"),
        (r"(mlps\.\d|head)\.proj_out", r"\1.layers.2"),
    ):
        name = re.sub(pattern, instead, name)
    return name
