"""transformers' torchvision image processors where torchvision is not installed.

Some families have no Pillow image processor. Their own class, with its own rules of sizes and
tiles, runs here with the few steps that ask torchvision done by torch instead.
"""

import sys
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch


@cache
def image_processor_class(module, name):
    """The image processor `name` of transformers.models.<module>, which works here."""
    module = f"transformers.models.{module}"
    if find_spec("torchvision") is not None:
        return getattr(import_module(module), name)
    import_module("transformers.image_processing_backends")  # not under the stand-ins
    empty = {}
    for part in ("", ".transforms", ".transforms.v2", ".transforms.v2.functional"):
        made = ModuleType(f"torchvision{part}")
        made.__spec__, made.__path__ = ModuleSpec(made.__name__, None), []
        empty[made.__name__] = made
    functional = empty["torchvision.transforms.v2.functional"]
    functional.pad, functional.resize = _pad, _resize
    functional.InterpolationMode = int  # only named
    empty["torchvision.transforms.v2"].functional = functional
    with patch.dict(sys.modules, empty):
        kind = getattr(import_module(module), name)
        own = sys.modules[module]
    sys.modules[module] = own
    return type(name, (kind, _by_torch()), {})


def _pad(images, padding, fill=0):
    left, top, right, bottom = padding
    (value,) = set(np.ravel(fill).tolist())
    return torch.nn.functional.pad(images, (left, right, top, bottom), value=value)


def _resize(images, size, interpolation=None, antialias=True):
    whole = images if images.ndim == 4 else images[None]
    found = torch.nn.functional.interpolate(
        whole.float(), tuple(size), mode="bilinear", antialias=antialias
    )
    if not images.is_floating_point():
        found = found.round().clamp(0, 255).to(images.dtype)
    return found.reshape(*images.shape[:-2], *size)


@cache
def _by_torch():
    from transformers.image_processing_backends import TorchvisionBackend
    from transformers.image_utils import SizeDict

    class ByTorch(TorchvisionBackend):
        def process_image(self, image, **keywords):
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()

        def resize(self, image, size, resample=None, antialias=True, **keywords):
            return _resize(image, (size.height, size.width), antialias=antialias)

        def normalize(self, image, mean, std, **keywords):
            mean, std = (torch.as_tensor(x).view(-1, 1, 1) for x in (mean, std))
            return (image - mean) / std

        def pad(self, images, pad_size=None, fill_value=0, is_nested=False, **keywords):
            if is_nested or isinstance(images, list):
                if pad_size is None:  # that of the largest
                    shapes = [image.shape[-2:] for image in images]
                    pad_size = SizeDict(*map(max, zip(*shapes, strict=True)))
                return [self.pad(image, pad_size, fill_value) for image in images]
            more = (0, pad_size.width - images.shape[-1], 0, pad_size.height - images.shape[-2])
            return torch.nn.functional.pad(images, more, value=fill_value or 0)

    return ByTorch
