"""Mini-Gemini-2B: a stand-in for its authors' class, with the same module tree and the same calls.

Their package cannot be had here; what it does to an image and a prompt is written down anew. Its
attention is Gemma's own, from transformers, as theirs is.
"""

import torch
from families import Family, tokenizer
from fastground.seam import cache_name
from torch import nn
from torch.nn.functional import interpolate
from transformers import CLIPVisionConfig, CLIPVisionModel, GemmaConfig, GemmaForCausalLM
from transformers import GemmaModel as Gemma

SIDE, PATCH, SIDE_AUX = 16, 4, 64
CACHE = cache_name(GemmaForCausalLM)


class MiniGeminiConfig(GemmaConfig):
    model_type = "mini_gemini_gemma"


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        config = CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            image_size=SIDE, patch_size=PATCH,
        )  # fmt: skip
        self.vision_tower = CLIPVisionModel(config)

    @property
    def config(self):
        return self.vision_tower.config

    def forward(self, images):
        return self.vision_tower(images, output_hidden_states=True).hidden_states[-2][:, 1:]


class ChannelNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Stage(nn.Module):
    def __init__(self, before, wide):
        super().__init__()
        self.downsample = nn.Identity()
        if before != wide:
            halved = nn.Conv2d(before, wide, 2, stride=2)
            self.downsample = nn.Sequential(ChannelNorm(before), halved)
        self.conv_dw = nn.Conv2d(wide, wide, 7, padding=3, groups=wide)
        self.norm = ChannelNorm(wide)
        self.mlp = nn.Sequential(
            nn.Conv2d(wide, 2 * wide, 1), nn.GELU(), nn.Conv2d(2 * wide, wide, 1)
        )

    def forward(self, x):
        x = self.downsample(x)
        return x + self.mlp(self.norm(self.conv_dw(x)))


class TowerAux(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), ChannelNorm(8))
        self.vision_stages = nn.ModuleList([Stage(8, 8), Stage(8, 16)])

    def forward(self, images):
        x, stages = self.vision_stem(images), []
        for stage in self.vision_stages:
            x = stage(x)
            stages.append(x)
        size = stages[0].shape[-2:]
        grown = [interpolate(s, size=size, mode="bilinear", align_corners=False) for s in stages]
        return torch.cat(grown, dim=1)


class MiniGeminiGemmaModel(Gemma):
    config_class = MiniGeminiConfig

    def __init__(self, config):
        super().__init__(config)
        wide = 32
        self.vision_tower, self.vision_tower_aux = Tower(), TowerAux()
        for name, into in (("query", wide), ("aux", 24), ("val", 24)):
            mined = nn.Sequential(nn.LayerNorm(into), nn.Linear(into, wide))
            setattr(self, f"vlm_uni_{name}_projector", mined)
        text = config.hidden_size
        self.mm_projector = nn.Sequential(nn.Linear(wide, text), nn.GELU(), nn.Linear(text, text))


class MiniGeminiGemmaForCausalLM(GemmaForCausalLM):
    config_class = MiniGeminiConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = MiniGeminiGemmaModel(config)
        self.post_init()

    def get_vision_tower(self):
        return self.model.vision_tower

    def get_vision_tower_aux(self):
        return self.model.vision_tower_aux

    def encode_images(self, images, images_aux=None):
        features, fine = self.get_vision_tower()(images), self.get_vision_tower_aux()(images_aux)
        side = int(features.shape[1] ** 0.5)
        windows = fine.unflatten(2, (side, -1)).unflatten(4, (side, -1))  # b c row i column j
        windows = windows.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
        query = self.model.vlm_uni_query_projector(features)[:, :, None]
        keys = self.model.vlm_uni_aux_projector(windows)
        seen = (query @ keys.transpose(-1, -2) / keys.shape[-1] ** 0.5).softmax(-1)
        mined = (seen @ self.model.vlm_uni_val_projector(windows))[:, :, 0]
        return self.model.mm_projector(features + mined)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        cache_position=None,
        output_attentions=None,
        output_hidden_states=None,
        images=None,
        images_aux=None,
        return_dict=None,
    ):
        if images is not None and inputs_embeds is None:
            raise NotImplementedError("one token for an image, as the original's prompts have it")
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: past_key_values},
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            cache_position=cache_position,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )


def mini_gemini(seed=0, **settings):
    """(model, processor), as its authors' code and transformers' processor would be loaded."""
    from transformers import LlavaImageProcessorPil, LlavaProcessor

    words = tokenizer(["<image>"])
    config = MiniGeminiConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=1, head_dim=16, max_position_embeddings=512,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, image_size_aux=SIDE_AUX, **settings,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = MiniGeminiGemmaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                continue
            if name.startswith("model.layers"):
                weight.mul_(6 if "q_proj" in name or "k_proj" in name else 3)
            elif "patch_embedding" in name or "mm_projector" in name:
                weight.mul_(4)
    # transformers records hidden states by hooks, twice in a tower asked for its own before the
    # model around it was asked for any: ask that first.
    with torch.no_grad():
        model.model(inputs_embeds=torch.zeros(1, 1, 64), output_hidden_states=True)
    pixels = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": SIDE_AUX},
        crop_size={"height": SIDE_AUX, "width": SIDE_AUX},
    )  # fmt: skip
    return model, LlavaProcessor(
        image_processor=pixels, tokenizer=words, patch_size=SIDE_AUX * PATCH // SIDE,
        vision_feature_select_strategy="full",
    )  # fmt: skip


FAMILIES = [Family("mini_gemini", mini_gemini, loads=False, refusal="load it with their package")]
