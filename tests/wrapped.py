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

    def __init__(self, model, old):
        super().__init__()
        self.model, self.old = model, old

    def forward(self, *args, **keywords):
        return (self.model.forward if self.old else self.model)(*args, **keywords)


class Peft(_Delegates):
    """Arguments unnamed, generate of the model inside, and `.model` that is all of that model.

    Up to 0.20 (`old`) not the model inside is called, but its forward.
    """

    inside = "base_model"

    def __init__(self, model, prompts=False, old=False):
        super().__init__()
        self.base_model = Lora(model, old)
        self.active_peft_config = SimpleNamespace(is_prompt_learning=prompts)
        self.train(model.training)

    def get_base_model(self):
        return self.base_model.model

    def forward(self, *args, **keywords):
        return self.base_model(*args, **keywords)

    def generate(self, *args, **keywords):
        return self.get_base_model().generate(*args, **keywords)
