"""Two convolutions in the place of vision towers from timm, which needs torchvision.

A tower by timm returns (batch, channels, grid_h, grid_w) where it is one of convolutions, and a
token a patch behind a class token where it is a transformer; so do they. All around is
transformers' own: configurations are subclasses that differ in nothing but the tower they make.
"""

from functools import cache

import torch

CELL = 8
"""How many pixels a side become a cell."""


@cache
def stand_in(name):
    """The configuration `name` of transformers, with which AutoModel makes the stand-in."""
    import transformers as hf
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    config = type("StandIn" + name, (getattr(hf, name),), {"__module__": __name__})

    class Tower(hf.PreTrainedModel):
        config_class = config
        main_input_name = "pixel_values"
        _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True

        def __init__(self, settings):
            super().__init__(settings)
            self.tokens = "embed_dim" in (settings.model_args or {})
            width = settings.model_args["embed_dim"] if self.tokens else settings.hidden_size
            self.patches = torch.nn.Conv2d(3, width, CELL, CELL)
            self.out_proj = torch.nn.Conv2d(width, width, 3, padding=1)
            self.post_init()

        def forward(self, pixel_values, **_):
            cells = self.patches(pixel_values)
            cells = cells + self.out_proj(cells)
            if self.tokens:
                cells = cells.flatten(2).mT
                cells = torch.cat([cells.mean(1, keepdim=True), cells], dim=1)
            return BaseModelOutputWithPooling(last_hidden_state=cells)

    hf.AutoModel.register(config, Tower)
    return config
