"""The vision towers of original checkpoints: CLIP, and InternViT-6B, which transformers renamed.

InternViT-6B                              transformers' InternVLVisionModel
embeddings.class_embedding                embeddings.cls_token
embeddings.patch_embedding                embeddings.patch_embeddings.projection
encoder.layers.0.attn.qkv                 encoder.layer.0.attention.q_proj, k_proj, v_proj
encoder.layers.0.norm1, .ls1              encoder.layer.0.layernorm_before, .lambda_1
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastground.hub import reached
from fastground.models.weights import read_json

if TYPE_CHECKING:
    import torch

INTERN_VIT = {
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.patch_embedding.": "embeddings.patch_embeddings.projection.",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "encoder.layers.": "encoder.layer.",
    ".attn.proj.": ".attention.projection_layer.",
    ".attn.": ".attention.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".ls1": ".lambda_1",
    ".ls2": ".lambda_2",
}
"""Parts of the names in an InternViT checkpoint, and what stands there in transformers."""

INTERN_VIT_SIDES = {224: 336}
"""Pixels a side that InternVL-Chat shows an InternViT of so many: its positions are stretched."""
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
"""The colours that InternVL-Chat subtracts and divides by, whatever its tower's processor says."""

KNOWN_TOWERS = {"openai/clip-vit-large-patch14": 224, "openai/clip-vit-large-patch14-336": 336}
"""Towers whose configuration is known by their name alone, and their image size."""


def find(source: Path, name: str, given: str | Path | None, trained: bool) -> Path | None:
    """The folder of a tower's own checkpoint, None where its name says all that is needed.

    Args:
        source: the model's folder, which may hold the tower's.
        name: what the model's configuration calls it: a path, or a name on the hub.
        given: the folder that the user says it is.
        trained: whether the model's own files hold the tower's weights.

    Raises:
        ValueError: there is none.
        FileNotFoundError: `given` is no folder with a configuration.
    """
    if given is not None:
        read_json(Path(given) / "config.json")
        return Path(given)
    for folder in (source / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    if name in KNOWN_TOWERS and trained:
        return None
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.safetensors", "*.bin"]
        return Path(snapshot_download(name, allow_patterns=wanted, **reached(name)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"vision_tower must be given: the configuration names {name!r}, which is neither a "
            f"folder nor to be had from the hub ({str(error).splitlines()[0]}); pass the folder "
            "of that checkpoint"
        ) from error


def config(folder: Path | None, name: str) -> Any:
    """The tower's configuration, for transformers.

    Raises:
        ValueError: it is neither a CLIP nor an InternViT.
    """
    from transformers import CLIPVisionConfig, InternVLVisionConfig

    if folder is None:
        return CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
            num_attention_heads=16, patch_size=14, image_size=KNOWN_TOWERS[name],
        )  # fmt: skip
    given = read_json(folder / "config.json")
    if given.get("model_type") in ("clip", "clip_vision_model"):
        return CLIPVisionConfig(**given.get("vision_config") or given)
    if given.get("model_type") == "intern_vit_6b":
        same = (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "hidden_act", "layer_norm_eps", "image_size", "patch_size",
        )  # fmt: skip
        return InternVLVisionConfig(
            **{key: given[key] for key in same if key in given},
            use_qk_norm=given.get("qk_normalization", True),
            attention_bias=given.get("qkv_bias", False),
            norm_type=given.get("norm_type", "rms_norm"),
        )
    raise ValueError(
        f"vision_tower must be a CLIP or an InternViT-6B, but {str(folder)!r} has model_type "
        f"{given.get('model_type')!r}; other towers need an adapter of their own"
    )


def renamed(vision: Any, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """What a tensor of the tower's checkpoint becomes: nothing, itself, or three of it."""
    if vision.model_type != "internvl_vision":
        if name.startswith("vision_model.") and not name.endswith("position_ids"):
            yield name.removeprefix("vision_model."), tensor
        return
    for old, new in INTERN_VIT.items():
        name = name.replace(old, new)
    if ".qkv." not in name:
        yield name, tensor
        return
    for which, part in zip("qkv", tensor.chunk(3), strict=True):
        yield name.replace(".qkv.", f".{which}_proj."), part.clone()


def image_settings(vision: Any, folders: list[Path]) -> dict[str, Any]:
    """How an image becomes pixels: the side, and the colours' mean and spread where not CLIP's.

    Args:
        vision: the tower's configuration.
        folders: where a preprocessor_config.json may be, the first first.
    """
    if vision.model_type == "internvl_vision":
        native = vision.image_size[0]
        side, colours = INTERN_VIT_SIDES.get(native, native), dict(IMAGENET)
    else:
        files = [folder / "preprocessor_config.json" for folder in folders]
        said = next((read_json(file) for file in files if file.is_file()), {})
        crop = said.get("crop_size", vision.image_size)
        side = crop["height"] if isinstance(crop, dict) else crop
        colours = {key: said[key] for key in IMAGENET if key in said}
    square = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return square | colours
