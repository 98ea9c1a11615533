"""SAM and its kin: an image is encoded once, then every prompt is decoded to a mask's logits.

    image (height, width)                          prompt: box, points, log-odds, in pixels
      | resized, normalised                          | by the same scale
    frame (S, S)   SAM, SAM-HQ: the longer side is S, zeros right and below
      |            SAM 2, SAM 3: both sides are S
      | encoder, once an image                       |
    embedding ------------------ decoder ------------+-> logits (M, s, s) -> (M, height, width)

transformers has processors without torchvision for SAM and SAM-HQ only, so the frame is made here,
for all alike; Pillow's bilinear resize is what torchvision gives for a PIL image. segment-anything
imports torchvision only for what is done here, so it is imported with empty modules in its place.

The two SAMs agree but for one number: the epsilon of the decoder's layer norms, 1e-5 by its authors
and 1e-6 in transformers' configurations.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from fastground.hub import reached

IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation of R, G, B, 0-255."""
HALF = (127.5,) * 3, (127.5,) * 3


class Family(NamedTuple):
    """What differs between the models of transformers."""

    model: str
    """The class that takes boxes, points and masks."""
    both_sides: bool
    """Whether both sides are resized to S, or the longer one."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]


FAMILIES = {
    "sam": Family("SamModel", False, IMAGENET),
    "sam_hq": Family("SamHQModel", False, IMAGENET),
    "sam2": Family("Sam2Model", True, IMAGENET),
    "sam2_video": Family("Sam2Model", True, IMAGENET),
    "sam3_tracker": Family("Sam3TrackerModel", True, HALF),
    "sam3_video": Family("Sam3TrackerModel", True, HALF),
}
"""By the model_type of a checkpoint's configuration; the published SAM 2 and SAM 3 call themselves
video models, and SAM 3's tracker is the part that takes boxes."""

WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""segment-anything's models by the width of their encoder."""


class Prompt(NamedTuple):
    """What is known of one object, in pixels of the image."""

    box: torch.Tensor
    """(4,) x1, y1, x2, y2."""
    points: torch.Tensor | None = None
    """(n, 2) x, y inside the object."""
    log_odds: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    """Of (h,) y and (w,) x, which may lie outside the image, the (h, w) log-odds of the object."""


class Framed(NamedTuple):
    """A prompt in pixels of the frame, on the model's device."""

    box: torch.Tensor
    """(4,)."""
    points: torch.Tensor | None
    """(n, 2)."""
    mask: torch.Tensor | None
    """(h, w) log-odds of the object."""


class Sam(ABC):
    """A model that makes masks of prompts."""

    def __init__(
        self, side: int, mask_side: int, both_sides: bool, normalisation: Any, device: Any
    ) -> None:
        """Its geometry.

        Args:
            side: S, of the frame.
            mask_side: of the log-odds that it takes.
            both_sides: whether both of an image's sides become S.
            normalisation: mean and standard deviation of R, G, B, 0-255.
            device: the model's.
        """
        self.side, self.mask_side, self.both_sides = side, mask_side, both_sides
        self.device = torch.device(device)
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in normalisation)

    @torch.no_grad()
    def logits(
        self, image: Image.Image, prompts: Sequence[Prompt], *, several: bool = False
    ) -> Iterator[torch.Tensor]:
        """The masks of each prompt; the image is encoded once.

        Args:
            image: RGB.
            prompts: one an object.
            several: three proposals instead of the model's own choice.

        Yields:
            (1 or 3, height, width) float32 an object, positive inside, on the model's device.
        """
        if not prompts:
            return
        embedding = self.encode(self.frame(image)[None].to(self.device))
        for prompt in prompts:
            low = self.decode(embedding, self._in_frame(prompt, image), several)
            yield self._on_image(low.float(), image)

    def frame(self, image: Image.Image) -> torch.Tensor:
        """(3, S, S) float32: the image resized, normalised and padded with zeros."""
        height, width = self._resized(image)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()
        pixels = (pixels - self.mean) / self.std
        return functional.pad(pixels, (0, self.side - width, 0, self.side - height))

    @abstractmethod
    def encode(self, frame: torch.Tensor) -> Any:
        """What the decoder reads of a (1, 3, S, S) frame."""

    @abstractmethod
    def decode(self, embedding: Any, prompt: Framed, several: bool) -> torch.Tensor:
        """(1 or 3, s, s) logits on the frame."""

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        if self.both_sides:
            return self.side, self.side
        factor = self.side / max(image.size)  # of a very thin image one pixel stays
        height, width = (max(1, int(factor * n + 0.5)) for n in (image.height, image.width))
        return height, width

    def _in_frame(self, prompt: Prompt, image: Image.Image) -> Framed:
        height, width = self._resized(image)
        scale = torch.tensor([width / image.width, height / image.height])
        box = prompt.box.detach().cpu().float() * scale.repeat(2)
        points = mask = None
        if prompt.points is not None:
            points = (prompt.points.detach().cpu().float() * scale).to(self.device)
        if prompt.log_odds is not None:
            place = (torch.arange(self.mask_side) + 0.5) * (self.side / self.mask_side)
            mask = prompt.log_odds(place / scale[1], place / scale[0]).float().to(self.device)
        return Framed(box.to(self.device), points, mask)

    def _on_image(self, low: torch.Tensor, image: Image.Image) -> torch.Tensor:
        def resize(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
            return functional.interpolate(masks, size, mode="bilinear", align_corners=False)

        masks, (height, width) = low[None], self._resized(image)
        if not self.both_sides:  # the padding is cut off on the frame's own pixels
            masks = resize(masks, (self.side, self.side))[..., :height, :width]
        return resize(masks, (image.height, image.width))[0]


class TransformersSam(Sam):
    """SAM, SAM-HQ, SAM 2 or SAM 3, as transformers has them."""

    def __init__(self, model: Any) -> None:
        """A loaded model.

        Args:
            model: of a class named in `FAMILIES`.

        Raises:
            ValueError: another model.
        """
        family = next((f for f in FAMILIES.values() if f.model == type(model).__name__), None)
        if family is None:
            raise ValueError(
                f"model must be one of {', '.join(sorted({f.model for f in FAMILIES.values()}))}, "
                f"but got {type(model).__name__}"
            )
        config = model.config.prompt_encoder_config
        side, cells = config.image_size, config.image_size // config.patch_size
        super().__init__(side, 4 * cells, family.both_sides, family.normalisation, model.device)
        self.model = model.eval()

    def encode(self, frame: torch.Tensor) -> Any:
        """The forward's own names for what the vision encoder made."""
        made = self.model.get_image_embeddings(frame.to(self.model.dtype))
        if isinstance(made, tuple):  # SAM-HQ's decoder reads what its encoder saw on the way too
            return {"image_embeddings": made[0], "intermediate_embeddings": made[1]}
        return {"image_embeddings": made}

    def decode(self, embedding: Any, prompt: Framed, several: bool) -> torch.Tensor:
        """As in `Sam`."""
        box, points, mask = prompt
        dtype = self.model.dtype
        given = {"input_boxes": box[None, None].to(dtype)}
        if points is not None:
            given["input_points"] = points[None, None].to(dtype)
            given["input_labels"] = torch.ones(
                1, 1, len(points), dtype=torch.int, device=box.device
            )
        if mask is not None:
            given["input_masks"] = mask[None, None].to(dtype)
        return self.model(**embedding, **given, multimask_output=several).pred_masks[0, 0]


class SegmentAnything(Sam):
    """SAM as the package segment-anything has it."""

    def __init__(self, model: Any) -> None:
        """A loaded `segment_anything.modeling.Sam`."""
        rows, columns = model.prompt_encoder.mask_input_size
        if rows != columns:
            raise ValueError(f"model must take square masks, but takes {(rows, columns)}")
        normalisation = (
            model.pixel_mean.flatten().tolist(), model.pixel_std.flatten().tolist(),
        )  # fmt: skip
        super().__init__(
            model.image_encoder.img_size, rows, False, normalisation, model.pixel_mean.device
        )
        self.model = model.eval()

    def encode(self, frame: torch.Tensor) -> Any:
        """The encoder's features."""
        return self.model.image_encoder(frame)

    def decode(self, embedding: Any, prompt: Framed, several: bool) -> torch.Tensor:
        """As in `Sam`."""
        box, points, mask = prompt
        inside = None
        if points is not None:
            labels = torch.ones(1, len(points), dtype=torch.int, device=box.device)
            inside = points[None], labels
        sparse, dense = self.model.prompt_encoder(
            points=inside, boxes=box[None], masks=None if mask is None else mask[None, None]
        )
        masks, _ = self.model.mask_decoder(
            image_embeddings=embedding,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
        )
        return masks[0]


def load(checkpoint: str | Path, *, device: Any = None, dtype: Any = None) -> TransformersSam:
    """A model of transformers.

    Args:
        checkpoint: a folder, or a name on the hub.
        device: a GPU where there is one, else the CPU.
        dtype: of the weights; float32 unless given.

    Raises:
        FileNotFoundError: there is no such folder, or no weights in it.
        ValueError: what is there is no model of `FAMILIES`.
    """
    import transformers

    name, folder = str(checkpoint), Path(checkpoint).expanduser()
    wanted = (
        "the folder of a SAM that transformers reads (config.json and model.safetensors); get one "
        "with: hf download facebook/sam-vit-base --local-dir sam-vit-base (or sam-vit-huge, "
        "sam2.1-hiera-large, sam3)"
    )
    if folder.is_dir():
        for file in ("config.json", "*.safetensors"):
            if not any(folder.glob(file)):
                raise FileNotFoundError(f"segmenter must be {wanted}; {name!r} has no {file}")
        name = str(folder)
    elif name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"segmenter must be {wanted}; there is no {name!r}")
    try:
        where = reached(name)
        config = transformers.AutoConfig.from_pretrained(name, **where)
        family = FAMILIES.get(config.model_type)
        if family is None:
            raise ValueError(
                f"its model_type must be one of {', '.join(FAMILIES)}, but is {config.model_type!r}"
            )
        model = getattr(transformers, family.model).from_pretrained(
            name, dtype=dtype or torch.float32, **where
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"segmenter must be {wanted}; {name!r} is not: {error}") from error
    return TransformersSam(model.to(_device(device)))


def load_segment_anything(checkpoint: str | Path, *, device: Any = None) -> SegmentAnything:
    """A model of the package segment-anything from its authors' file.

    Args:
        checkpoint: sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth or sam_vit_h_4b8939.pth.
        device: a GPU where there is one, else the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no such weights.
        ModuleNotFoundError: segment-anything is not installed.
    """
    wanted = (
        "a file of weights such as sam_vit_h_4b8939.pth; get it with: curl -LO "
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth"
    )
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"segmenter must be {wanted}; there is no {str(checkpoint)!r}")
    package = segment_anything()
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        kind = WIDTHS[weights["image_encoder.patch_embed.proj.weight"].shape[0]]
        model = package.sam_model_registry[kind]()
        model.load_state_dict(weights)
    except Exception as error:  # torch.load raises whatever a broken file makes it do
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        reason = reason.partition(". ")[0]  # PyTorch's advice is not for files from anywhere
        raise ValueError(f"segmenter must be {wanted}; {path} is not: {reason}") from error
    return SegmentAnything(model.to(_device(device)))


def segment_anything() -> ModuleType:
    """The package segment-anything, imported where torchvision cannot be.

    It names four functions of torchvision, none of which is called here. Where torchvision is not
    in this process, stand-ins are there while the package is imported, and gone after: transformers
    and others that look for torchvision see what is really installed.

    Raises:
        ModuleNotFoundError: segment-anything is not installed.
    """
    if "segment_anything" in sys.modules:
        return sys.modules["segment_anything"]
    stood_in = [] if "torchvision" in sys.modules else _stand_in()
    try:
        return import_module("segment_anything")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "segment-anything must be installed for this segmenter, but is not; "
            "pip install 'fastground[sam]'"
        ) from error
    finally:
        for name in stood_in:
            del sys.modules[name]


def _stand_in() -> list[str]:
    def absent(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(
            "torchvision was not there when segment-anything was imported; install it and import "
            "segment_anything before fastground does"
        )

    names = {
        "torchvision": (),
        "torchvision.ops": (),
        "torchvision.ops.boxes": ("batched_nms", "box_area"),
        "torchvision.transforms": (),
        "torchvision.transforms.functional": ("resize", "to_pil_image"),
    }
    for name, functions in names.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__path__ = []
        for function in functions:
            setattr(module, function, absent)
        sys.modules[name] = module
    return list(names)


def _device(device: Any) -> Any:
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
