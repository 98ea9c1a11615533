"""What PEFT's PeftModel shows of itself, which the tests do without."""

from types import SimpleNamespace

import torch


class _Delegates(torch.nn.Module):
    """What it has not itself is that of the module inside."""

    inside: str

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(self.inside), name)


class Lora(_Delegates):
    inside = "model"

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **keywords):
        return self.model(*args, **keywords)


class Peft(_Delegates):
    """Arguments unnamed, generate of the model inside, and `.model` that is all of that model."""

    inside = "base_model"

    def __init__(self, model, prompts=False):
        super().__init__()
        self.base_model = Lora(model)
        self.active_peft_config = SimpleNamespace(is_prompt_learning=prompts)
        self.train(model.training)

    def get_base_model(self):
        return self.base_model.model

    def forward(self, *args, **keywords):
        return self.base_model(*args, **keywords)

    def generate(self, *args, **keywords):
        return self.get_base_model().generate(*args, **keywords)
