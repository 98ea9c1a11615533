"""From pixels of an image to pixels of the model's input and back, to the pixel.

Every supported image processor does at most three things to the frame, in this order:

    pad to a square        x -> x + pad         pad = (longer side - width) // 2, likewise y
    resize                 x -> x / scale       scale = side before / side after, per axis
    crop the centre        x -> x - cut         cut = (side - crop) // 2, negative where it pads

or, DeepSeek's kind, resizes the longer side and then pads the shorter one to a square. Either way a
model pixel x is the original pixel origin + scale * x, per axis. `Frame` holds that affine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError


@dataclass(frozen=True)
class Frame:
    """Where the model's input lies in the original image."""

    size: tuple[int, int]
    """(height, width) of the model's input in its own pixels."""
    origin: tuple[float, float]
    """(x, y) of its top left corner in original pixels; negative where padding precedes."""
    scale: tuple[float, float]
    """(x, y) original pixels a model pixel."""


def frame(image_processor: Any, size: tuple[int, int]) -> Frame:
    """What a transformers image processor of the CLIP kind does with an image of this size.

    Args:
        image_processor: has do_resize, size, do_center_crop, crop_size, and perhaps do_pad with
            pad_to_square (LLaVA's).
        size: (height, width) of the image.

    Raises:
        ValueError: the processor resizes by another rule than shortest_edge or height and width.
    """
    height, width = size
    x = y = 0.0
    if pads_to_square(image_processor):
        side = max(height, width)
        x, y = -float((side - width) // 2), -float((side - height) // 2)
        height = width = side
    scale_x = scale_y = 1.0
    if image_processor.do_resize:
        resized_h, resized_w = _resized(image_processor.size, height, width)
        scale_x, scale_y = width / resized_w, height / resized_h
        height, width = resized_h, resized_w
    if getattr(image_processor, "do_center_crop", False):
        crop_h, crop_w = image_processor.crop_size["height"], image_processor.crop_size["width"]
        x += (width - crop_w) // 2 * scale_x
        y += (height - crop_h) // 2 * scale_y
        height, width = crop_h, crop_w
    return Frame((height, width), (x, y), (scale_x, scale_y))


def letterbox(image_processor: Any, size: tuple[int, int]) -> Frame:
    """What a transformers image processor of the DeepSeek-VL kind does with an image of this size.

    Args:
        image_processor: has do_resize, size, min_size and do_pad, and where it makes a larger view
            first, high_res_size.
        size: (height, width) of the image.

    Raises:
        ValueError: the processor does not resize, or to another rule.
    """
    height, width = size
    if not image_processor.do_resize or not image_processor.size.get("height"):
        raise ValueError(
            "image_processor must resize to a height and a width, but has do_resize="
            f"{image_processor.do_resize} and size={dict(image_processor.size)}"
        )
    views = [image_processor.size["height"]]
    if hasattr(image_processor, "high_res_size"):
        views.insert(0, image_processor.high_res_size["height"])
    x = y = 0.0
    scale_x = scale_y = 1.0
    for side in views:
        factor = side / max(height, width)
        resized_h, resized_w = (
            max(round(length * factor), image_processor.min_size) for length in (height, width)
        )
        scale_x, scale_y = scale_x * width / resized_w, scale_y * height / resized_h
        height, width = resized_h, resized_w
        if image_processor.do_pad:
            square = max(height, width)
            x -= (square - width) // 2 * scale_x
            y -= (square - height) // 2 * scale_y
            height = width = square
    return Frame((height, width), (x, y), (scale_x, scale_y))


def pads_to_square(image_processor: Any) -> bool:
    """Whether the processor pads to a square before it resizes, as LLaVA-1.5 was trained."""
    return hasattr(image_processor, "pad_to_square") and bool(image_processor.do_pad)


def crops_sides(image_processor: Any) -> bool:
    """Whether the processor cuts away the longer side's ends, so that the model never sees them."""
    return (
        bool(getattr(image_processor, "do_center_crop", False))
        and bool(image_processor.do_resize)
        and bool(image_processor.size.get("shortest_edge"))
        and not pads_to_square(image_processor)
    )


def refuse_lines(image: Image.Image) -> None:
    """Nothing; for image processors of the older kind, which guess where an array's colours are.

    Raises:
        ValueError: the image is 1 or 3 pixels high, which they would take for its colours.
    """
    if image.height in (1, 3):
        raise ValueError(
            "image must be 2 or more than 3 pixels high, or its processor takes its lines for "
            f"colours, but is {image.width} x {image.height}; enlarge it"
        )


def read_image(image: Any) -> Image.Image:
    """The image in RGB.

    Args:
        image: a path, whose image is turned upright as its EXIF data says; or, taken as it is, a
            PIL image; an array (height, width, 1, 3 or 4) or (height, width), uint8 or uint16, its
            colours as RGB, which OpenCV's are not (BGR); or a
            tensor (1, 3 or 4, height, width) or (height, width), uint8 or floating in [0, 1]. Of
            16 bits the brightest, 65535, becomes 255. Of an animation the frame that it stands at,
            the first in a file; where it is transparent, white shines through.

    Raises:
        ValueError: `image` is none of these, or the file holds no image or is cut off, or it has no
            pixels, or its brightness has no known range (32 bits, floats).
        FileNotFoundError: there is no such file.
    """
    if isinstance(image, torch.Tensor):
        image = _array_of_tensor(image)
    if isinstance(image, np.ndarray):
        image = _of_array(image)
    if isinstance(image, (str, Path)):
        if not Path(image).is_file():
            what = "is a folder" if Path(image).is_dir() else "is not there"
            raise FileNotFoundError(f"image must be a file, but {str(image)!r} {what}")
        try:
            with Image.open(image) as opened:
                image = ImageOps.exif_transpose(opened)
        except (
            UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError,
        ) as error:  # fmt: skip
            known = isinstance(error, (UnidentifiedImageError, Image.DecompressionBombError))
            raise ValueError(
                f"image must be a file that Pillow can read (PNG, JPEG, ...), but {str(image)!r} "
                f"is not ({error}); {'convert it first' if known else 'get its file again'}"
            ) from error
    if not isinstance(image, Image.Image):
        raise ValueError(
            "image must be a PIL image, a path to one, an array or a tensor, but got "
            f"{type(image).__name__}; open a file with PIL.Image.open, and give images one by one"
        )
    if 0 in image.size:
        raise ValueError(f"image must have pixels, but its (width, height) is {image.size}")
    if image.mode in ("I", "F"):  # Pillow would clip them to 255
        raise ValueError(
            f"image must have 8 or 16 bits a channel, but its mode is {image.mode!r}; scale its "
            "values to 0-255 first, with Image.fromarray(values.astype('uint8'))"
        )
    try:
        if image.mode.startswith("I;16"):  # likewise
            image = Image.fromarray(_of_sixteen_bits(np.asarray(image)))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow reads the pixels only now
        raise ValueError(
            f"image must be whole, but its pixels cannot be read ({error}); get its file again"
        ) from error


def _of_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype.newbyteorder("=") == np.uint16:
        array = _of_sixteen_bits(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(
            "image must be (height, width, 3) or (height, width) uint8 where it is an array, but "
            f"got shape {array.shape} {array.dtype}; scale its values to 0-255, call "
            ".astype(np.uint8); put the colours last with .transpose(1, 2, 0)"
        )
    if 0 in array.shape:
        raise ValueError(f"image must have pixels, but its shape is {array.shape}")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and channels == 1 else array)


def _of_sixteen_bits(array: np.ndarray) -> np.ndarray:
    """The nearest of 8 bits: 65535 / 255 = 257."""
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _array_of_tensor(tensor: torch.Tensor) -> np.ndarray:
    """(height, width[, channels]) uint8."""
    tensor = tensor.detach().cpu()
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        raise ValueError(
            "image must be (3, height, width) or (height, width) where it is a tensor, but got "
            f"shape {tuple(tensor.shape)}; take one image of a batch, and put the colours first "
            "with .permute(2, 0, 1)"
        )
    if tensor.is_floating_point():
        if not bool(((tensor >= 0) & (tensor <= 1)).all()):
            raise ValueError(
                "image must be in [0, 1] where it is a floating tensor, but its values are "
                f"{float(tensor.min()):.3g} to {float(tensor.max()):.3g}; undo its normalisation"
            )
        tensor = (255 * tensor.double()).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise ValueError(
            f"image must be uint8 or floating where it is a tensor, but is {tensor.dtype}; scale "
            "its values to 0-255 and call .to(torch.uint8)"
        )
    return (tensor if tensor.ndim == 2 else tensor.permute(1, 2, 0)).numpy()


def _resized(rule: Any, height: int, width: int) -> tuple[int, int]:
    edge = rule.get("shortest_edge")
    if edge and not rule.get("longest_edge"):
        longer = int(edge * max(height, width) / min(height, width))
        return (longer, edge) if width <= height else (edge, longer)
    if rule.get("height") and rule.get("width"):
        return rule["height"], rule["width"]
    raise ValueError(
        f"image_processor.size must hold shortest_edge, or height and width, but got {dict(rule)}"
    )
