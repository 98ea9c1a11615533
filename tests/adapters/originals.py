"""Tiny checkpoints in their authors' layouts, and what their authors' code computes with them.

`make` draws random weights under the original names, `write` lays them out as published, `logits`
is the original's arithmetic in plain torch: no module of transformers takes part in it.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from families import tokenizer
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm, silu

VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 4, "num_channels": 3,
}  # fmt: skip
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip


@dataclass
class Original:
    """One checkpoint."""

    config: dict[str, Any]
    tower: dict[str, Any]
    weights: dict[str, torch.Tensor]
    tower_weights: dict[str, torch.Tensor]
    tokenizer: Any
    files: int = 1
    suffix: str = "safetensors"
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    """What published files hold beside the model's own weights."""


def make(name, seed=0):
    """One of llava_v1, sharegpt4v, yi_vl, internvl_chat."""
    draw = torch.Generator().manual_seed(seed)
    intern = name == "internvl_chat"
    tower = VISION | (
        {"model_type": "intern_vit_6b", "hidden_act": "gelu", "layer_norm_eps": 1e-6,
         "qk_normalization": True, "qkv_bias": False}
        if intern
        else {"model_type": "clip_vision_model", "layer_norm_eps": 1e-5,
              "hidden_act": "gelu" if name == "yi_vl" else "quick_gelu"}
    )  # fmt: skip
    config = TEXT | {
        "mm_hidden_size": 32, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False, "mm_vision_tower": "tower", "use_mm_proj": True,
        "image_aspect_ratio": "pad", "model_type": "llava", "mm_projector_type": "mlp2x_gelu",
    }  # fmt: skip
    special = []
    if name == "llava_v1":
        special = ["<im_patch>", "<im_start>", "<im_end>"]
        config |= {"mm_use_im_start_end": True}
        del config["mm_projector_type"], config["image_aspect_ratio"], config["num_key_value_heads"]
    elif name == "sharegpt4v":
        config |= {"model_type": "share4v"}
    elif name == "yi_vl":
        config |= {"mm_projector_type": "mlp2x_gelu_Norm", "rope_theta": 5e6}
        config |= {"mm_vision_tower": "./vit/clip-vit-H-14"}
        tower = {"model_type": "clip", "vision_config": tower, "text_config": {}}
    elif intern:
        config |= {"mm_vision_select_layer": -3, "model_type": "llava_llama"}
    words = tokenizer(special)
    config |= {"vocab_size": len(words)}
    made = Original(config, tower, text_weights(config, draw), tower_weights(tower, draw), words)
    made.weights |= projector_weights(config, draw)
    if name == "llava_v1":
        made.files, made.suffix = 2, "bin"
        made.extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    return made


def _normal(draw, *shape, scale=None):
    scale = 1 / math.sqrt(math.prod(shape[1:])) if scale is None else scale
    return torch.randn(*shape, generator=draw) * scale


def text_weights(config, draw, prefix="model."):
    wide, deep = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim", wide // heads)
    keys = config.get("num_key_value_heads", heads) * head
    made = {
        f"{prefix}embed_tokens.weight": _normal(draw, config["vocab_size"], wide, scale=0.7),
        f"{prefix}norm.weight": 1 + _normal(draw, wide, scale=0.1),
        "lm_head.weight": _normal(draw, config["vocab_size"], wide),
    }
    for n in range(config["num_hidden_layers"]):
        at = f"{prefix}layers.{n}."
        made |= {
            f"{at}self_attn.q_proj.weight": _normal(draw, heads * head, wide, scale=0.2),
            f"{at}self_attn.k_proj.weight": _normal(draw, keys, wide, scale=0.2),
            f"{at}self_attn.v_proj.weight": _normal(draw, keys, wide),
            f"{at}self_attn.o_proj.weight": _normal(draw, wide, heads * head),
            f"{at}mlp.gate_proj.weight": _normal(draw, deep, wide),
            f"{at}mlp.up_proj.weight": _normal(draw, deep, wide),
            f"{at}mlp.down_proj.weight": _normal(draw, wide, deep),
            f"{at}input_layernorm.weight": 1 + _normal(draw, wide, scale=0.1),
            f"{at}post_attention_layernorm.weight": 1 + _normal(draw, wide, scale=0.1),
        }
    return made


def projector_weights(config, draw):
    wide, text = config["mm_hidden_size"], config["hidden_size"]
    kind = config.get("mm_projector_type", "linear")
    if kind == "linear":
        layers = {"": (text, wide)}
    elif kind == "mlp2x_gelu":
        layers = {"0.": (text, wide), "2.": (text, text)}
    else:
        layers = {"0.": (text, wide), "1.": (text,), "3.": (text, text), "4.": (text,)}
    made = {}
    for at, shape in layers.items():
        weight = _normal(draw, *shape) if len(shape) > 1 else 1 + _normal(draw, *shape, scale=0.3)
        made |= {
            f"model.mm_projector.{at}weight": weight,
            f"model.mm_projector.{at}bias": _normal(draw, shape[0], scale=0.2),
        }
    return made


def tower_weights(tower, draw):
    config = tower.get("vision_config", tower)
    wide, deep, patch = (config[n] for n in ("hidden_size", "intermediate_size", "patch_size"))
    places = (config["image_size"] // patch) ** 2 + 1
    if tower["model_type"] == "intern_vit_6b":
        made = {
            "embeddings.class_embedding": _normal(draw, 1, 1, wide, scale=1.0),
            "embeddings.position_embedding": _normal(draw, 1, places, wide, scale=0.3),
            "embeddings.patch_embedding.weight": _normal(draw, wide, 3, patch, patch) * 2,
            "embeddings.patch_embedding.bias": _normal(draw, wide, scale=0.1),
        }
        for n in range(config["num_hidden_layers"]):
            at = f"encoder.layers.{n}."
            made |= {
                f"{at}attn.qkv.weight": _normal(draw, 3 * wide, wide),
                f"{at}attn.q_norm.weight": 1 + _normal(draw, wide, scale=0.1),
                f"{at}attn.k_norm.weight": 1 + _normal(draw, wide, scale=0.1),
                f"{at}attn.proj.weight": _normal(draw, wide, wide),
                f"{at}attn.proj.bias": _normal(draw, wide, scale=0.1),
                f"{at}mlp.fc1.weight": _normal(draw, deep, wide),
                f"{at}mlp.fc1.bias": _normal(draw, deep, scale=0.1),
                f"{at}mlp.fc2.weight": _normal(draw, wide, deep),
                f"{at}mlp.fc2.bias": _normal(draw, wide, scale=0.1),
                f"{at}norm1.weight": 1 + _normal(draw, wide, scale=0.1),
                f"{at}norm2.weight": 1 + _normal(draw, wide, scale=0.1),
                f"{at}ls1": 0.5 + _normal(draw, wide, scale=0.1),
                f"{at}ls2": 0.5 + _normal(draw, wide, scale=0.1),
            }
        return made
    made = {
        "embeddings.class_embedding": _normal(draw, wide, scale=1.0),
        "embeddings.position_embedding.weight": _normal(draw, places, wide, scale=0.3),
        "embeddings.patch_embedding.weight": _normal(draw, wide, 3, patch, patch) * 2,
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        made |= {f"{norm}.weight": 1 + _normal(draw, wide, scale=0.1)}
        made |= {f"{norm}.bias": _normal(draw, wide, scale=0.1)}
    for n in range(config["num_hidden_layers"]):
        at = f"encoder.layers.{n}."
        shapes = {"mlp.fc1": (deep, wide), "mlp.fc2": (wide, deep)}
        shapes |= {f"self_attn.{p}_proj": (wide, wide) for p in ("q", "k", "v", "out")}
        for layer, shape in shapes.items():
            made[f"{at}{layer}.weight"] = _normal(draw, *shape) * 0.7
            made[f"{at}{layer}.bias"] = _normal(draw, shape[0], scale=0.1)
        for norm in ("layer_norm1", "layer_norm2"):
            made[f"{at}{norm}.weight"] = 1 + _normal(draw, wide, scale=0.1)
            made[f"{at}{norm}.bias"] = _normal(draw, wide, scale=0.1)
    return {f"vision_model.{name}": tensor for name, tensor in made.items()}


def write(original, folder):
    """The folder as published, its tower beside its own files; returns the folder."""
    from safetensors.torch import save_file

    def save(weights, path):
        if path.suffix == ".bin":
            torch.save(weights, path)
        else:
            save_file(weights, path)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(original.config))
    original.tokenizer.save_pretrained(folder)
    listed = list((original.weights | original.extra).items())
    stem = "pytorch_model" if original.suffix == "bin" else "model"
    for n in range(original.files):
        part = dict(listed[n :: original.files])
        save(part, folder / f"{stem}-{n + 1:05}-of-{original.files:05}.{original.suffix}")
    tower = folder / original.config["mm_vision_tower"]
    tower.mkdir(parents=True)
    (tower / "config.json").write_text(json.dumps(original.tower))
    other = {"logit_scale": torch.ones(1), "text_model.final_layer_norm.weight": torch.ones(4)}
    clip = {} if original.tower["model_type"] == "intern_vit_6b" else other
    save(original.tower_weights | clip, tower / "pytorch_model.bin")
    return folder


def logits(original, before, pixels, after):
    """(tokens, vocabulary): tokens before the image, its features in place of a mark, and after."""
    w, config = original.weights, original.config
    tower = original.tower.get("vision_config", original.tower)
    see = intern_vit if original.tower["model_type"] == "intern_vit_6b" else clip
    states = see(original.tower_weights, tower, pixels)
    features = states[config["mm_vision_select_layer"]][0, 1:]
    table = w["model.embed_tokens.weight"]
    whole = torch.cat([table[before], project(w, config, features), table[after]])
    return language(w, config, whole) @ w["lm_head.weight"].T


def project(w, config, x):
    def layer(at, x):
        return x @ w[f"model.mm_projector.{at}weight"].T + w[f"model.mm_projector.{at}bias"]

    def norm(at, x):
        weight, bias = w[f"model.mm_projector.{at}weight"], w[f"model.mm_projector.{at}bias"]
        return layer_norm(x, x.shape[-1:], weight, bias)

    kind = config.get("mm_projector_type", "linear")
    if kind == "linear":
        return layer("", x)
    if kind == "mlp2x_gelu":
        return layer("2.", gelu(layer("0.", x)))
    return norm("4.", layer("3.", gelu(norm("1.", layer("0.", x)))))


def attend(q, k, v, heads, causal):
    """(tokens, width) of (tokens, width), (tokens, key width) twice; keys repeat over heads."""
    q = q.unflatten(-1, (heads, -1)).transpose(0, 1)
    k, v = (x.unflatten(-1, (-1, q.shape[-1])).transpose(0, 1) for x in (k, v))
    k, v = (x.repeat_interleave(heads // len(x), dim=0) for x in (k, v))
    seen = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    if causal:
        hidden = torch.ones(seen.shape[1:]).triu(1).bool()
        seen = seen.masked_fill(hidden, -torch.inf)
    return (seen.softmax(-1) @ v).transpose(0, 1).flatten(1)


def rms(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def language(w, config, x, prefix="model.", act=silu, plus=0):
    """The states after the last norm; `plus` is what the norms' weights are counted from."""
    heads, eps = config["num_attention_heads"], config["rms_norm_eps"]
    head = config.get("head_dim", config["hidden_size"] // heads)
    theta = config.get("rope_theta", 10000.0)
    turns = torch.arange(len(x))[:, None] * theta ** (-torch.arange(0, head, 2) / head)

    def rotate(x):
        first, second = x.unflatten(-1, (-1, head)).chunk(2, dim=-1)
        cos, sin = turns.cos()[:, None], turns.sin()[:, None]
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return turned.flatten(1)

    for n in range(config["num_hidden_layers"]):
        at = f"{prefix}layers.{n}."
        y = rms(x, plus + w[f"{at}input_layernorm.weight"], eps)
        q, k, v = (y @ w[f"{at}self_attn.{p}_proj.weight"].T for p in "qkv")
        seen = attend(rotate(q), rotate(k), v, heads, causal=True)
        x = x + seen @ w[f"{at}self_attn.o_proj.weight"].T
        y = rms(x, plus + w[f"{at}post_attention_layernorm.weight"], eps)
        inner = act(y @ w[f"{at}mlp.gate_proj.weight"].T) * (y @ w[f"{at}mlp.up_proj.weight"].T)
        x = x + inner @ w[f"{at}mlp.down_proj.weight"].T
    return rms(x, plus + w[f"{prefix}norm.weight"], eps)


def clip(w, config, pixels):
    """States of (1, tokens, width) before each layer and after the last, the class token first."""
    w = {name.removeprefix("vision_model."): tensor for name, tensor in w.items()}
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]

    def linear(at, x):
        return x @ w[f"{at}.weight"].T + w[f"{at}.bias"]

    def norm(at, x):
        return layer_norm(x, x.shape[-1:], w[f"{at}.weight"], w[f"{at}.bias"], eps)

    def act(x):
        return x * torch.sigmoid(1.702 * x) if config["hidden_act"] == "quick_gelu" else gelu(x)

    patches = conv2d(
        pixels, w["embeddings.patch_embedding.weight"], stride=config["patch_size"]
    ).flatten(2)[0].T  # fmt: skip
    x = torch.cat([w["embeddings.class_embedding"][None], patches])
    x = norm("pre_layrnorm", x + w["embeddings.position_embedding.weight"])
    states = [x[None]]
    for n in range(config["num_hidden_layers"]):
        at = f"encoder.layers.{n}."
        y = norm(f"{at}layer_norm1", x)
        q, k, v = (linear(f"{at}self_attn.{p}_proj", y) for p in "qkv")
        x = x + linear(f"{at}self_attn.out_proj", attend(q, k, v, heads, causal=False))
        x = x + linear(f"{at}mlp.fc2", act(linear(f"{at}mlp.fc1", norm(f"{at}layer_norm2", x))))
        states.append(x[None])
    return states


def intern_vit(w, config, pixels):
    """The same of an InternViT, whose table of positions is stretched over larger images."""
    heads, eps, patch = (config[n] for n in ("num_attention_heads", "layer_norm_eps", "patch_size"))
    made = conv2d(
        pixels,
        w["embeddings.patch_embedding.weight"],
        w["embeddings.patch_embedding.bias"],
        stride=patch,
    )
    table, side = w["embeddings.position_embedding"], config["image_size"] // patch
    grid = table[0, 1:].T.unflatten(1, (side, side))[None]
    grid = interpolate(grid, size=made.shape[2:], mode="bicubic", align_corners=False)
    places = torch.cat([table[0, :1], grid.flatten(2)[0].T])
    x = torch.cat([w["embeddings.class_embedding"][0], made.flatten(2)[0].T]) + places
    states = [x[None]]
    for n in range(config["num_hidden_layers"]):
        at = f"encoder.layers.{n}."
        q, k, v = (rms(x, w[f"{at}norm1.weight"], eps) @ w[f"{at}attn.qkv.weight"].T).chunk(3, -1)
        q = rms(q, w[f"{at}attn.q_norm.weight"], eps)
        k = rms(k, w[f"{at}attn.k_norm.weight"], eps)
        seen = attend(q, k, v, heads, causal=False) @ w[f"{at}attn.proj.weight"].T
        x = x + (seen + w[f"{at}attn.proj.bias"]) * w[f"{at}ls1"]
        y = rms(x, w[f"{at}norm2.weight"], eps)
        inner = gelu(y @ w[f"{at}mlp.fc1.weight"].T + w[f"{at}mlp.fc1.bias"])
        x = x + (inner @ w[f"{at}mlp.fc2.weight"].T + w[f"{at}mlp.fc2.bias"]) * w[f"{at}ls2"]
        states.append(x[None])
    return states
