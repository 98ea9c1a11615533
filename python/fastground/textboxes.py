"""The text-box baseline: the model is asked for coordinates, and what it writes is read.

    Qwen2.5-VL          [{"bbox_2d": [12, 40, 230, 310], ...}]        pixels as the model sees it
    Qwen3-VL, GLM-4V    the same form, or [[12, 40, 230, 310]]        thousandths of the image
    Qwen2-VL            (52,104),(431,560)                            thousandths
    InternVL            <box>[[52, 104, 431, 560]]</box>              thousandths
    LLaVA               [0.05, 0.1, 0.43, 0.56]                       shares of the padded square
    PaliGemma           <loc0106><loc0053><loc0573><loc0441>          1024ths, y before x
    any other           asked for shares; above 2 they, and LLaVA's, are read as thousandths

What a share is a share of is what the model sees of the image: the rectangle of its layout, so that
LLaVA's padding and crops are undone as they are for maps. A model that cannot write a digit is not
asked. How a family is asked is how its authors ask.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastground.attention import said
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    from fastground.models import LVLM

MAX_NEW_TOKENS = 64
ASKS = "Please provide the bounding box coordinate of the region this sentence describes: "
AS_JSON = "Locate {}, output its bbox coordinates using JSON format."


@dataclass(frozen=True)
class Dialect:
    """How a family is asked for a box, and in what it counts."""

    prompt: str
    """With {} where the expression stands."""
    unit: float | None = None
    """How many the whole side is; None: 1, or 1000 where a number exceeds 2: 1.02 is a share."""
    pixels: bool = False
    """Whether it counts pixels of the image as the model sees it, instead."""
    by_rows: bool = False
    """Whether y comes before x."""


GENERIC = Dialect("Give the bounding box of {} as [x1, y1, x2, y2], as shares of width and height.")
THOUSANDTHS = Dialect(AS_JSON, 1000)
DIALECTS = {
    "llava": Dialect(ASKS + "{}"),
    "llava_next": Dialect(ASKS + "{}"),
    "llava_onevision": Dialect(ASKS + "{}"),
    "vipllava": Dialect(ASKS + "{}"),
    "internvl": Dialect(ASKS + "<ref>{}</ref>", 1000),
    "qwen2_vl": Dialect(ASKS + "{}", 1000),
    "qwen2_5_vl": Dialect(AS_JSON, pixels=True),
    "qwen3_vl": THOUSANDTHS,
    "qwen3_vl_moe": THOUSANDTHS,
    "qwen3_5": THOUSANDTHS,
    "qwen3_5_moe": THOUSANDTHS,
    "glm4v": THOUSANDTHS,
    "glm4v_moe": THOUSANDTHS,
    "glm46v": THOUSANDTHS,
    "paligemma": Dialect("detect {}", 1024, by_rows=True),
}
"""By transformers' model_type; all others are asked in `GENERIC`."""

_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*"
_FOUR = (
    re.compile(r"\s*".join([r"<loc(\d{4})>"] * 4)),
    re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]"),
    re.compile(rf"\({_NUMBER},{_NUMBER}\)\s*,?\s*\({_NUMBER},{_NUMBER}\)"),
    re.compile(r"(?<![\d.])" + r"[,\s]".join([_NUMBER] * 4) + r"(?![\d.]*\d)"),
)
"""How four numbers are written: PaliGemma's tokens, in brackets, as two points, bare."""


def parse(text: str) -> tuple[float, float, float, float] | None:
    """The four numbers of the first box in a text, as they stand there.

    Args:
        text: what a model said, its special tokens kept or not.

    Returns:
        The numbers, or None where there is no box.
    """
    for form in _FOUR:
        found = form.search(text)
        if found:
            a, b, c, d = map(float, found.groups())
            return a, b, c, d
    return None


def to_pixels(
    numbers: tuple[float, float, float, float],
    dialect: Dialect,
    layout: ImageLayout,
    seen_size: tuple[int, int] | None = None,
) -> tuple[float, float, float, float]:
    """What a model wrote as a box in the original image's pixels, clipped to it.

    Args:
        numbers: as `parse` gives them.
        dialect: of the model.
        layout: where the image's cells lie in its pixels.
        seen_size: (height, width) of the image as the model sees it, in its own pixels; read where
            the dialect counts these.

    Returns:
        x1, y1, x2, y2; corners that the model wrote in another order are put in this one.

    Raises:
        ValueError: the layout does not know its image, or seen_size is needed.
    """
    if layout.image_size is None or layout.cell_size is None or (dialect.pixels and not seen_size):
        raise ValueError(
            "layout must know its image, and a dialect of pixels needs seen_size, but one is "
            "missing; encode the image with fastground.models.load(...).encode"
        )
    if dialect.pixels and seen_size:
        units = np.array(seen_size[::-1], dtype=np.float64)
    else:
        unit = dialect.unit or (1 if max(numbers) <= 2 else 1000)
        units = np.array([unit, unit], dtype=np.float64)
    corners = np.array(numbers, dtype=np.float64).reshape(2, 2)
    if dialect.by_rows:
        corners = corners[:, ::-1]
    corners = np.sort(corners, axis=0) / units
    extent = np.array(layout.cell_size) * np.array(layout.grid[::-1])
    height, width = layout.image_size
    corners = (corners * extent + np.array(layout.origin)).clip(0, (width, height))
    (x1, y1), (x2, y2) = corners.tolist()
    return x1, y1, x2, y2


def written_boxes(lvlm: LVLM, image: Any, expressions: list[str]) -> dict[str, np.ndarray]:
    """The boxes that the model writes for each expression when it is asked for coordinates.

    Args:
        lvlm: the model; asked in its family's dialect, by its chat template where it has one.
        image: PIL image, or a path to one.
        expressions: n of them.

    Returns:
        texts (n,), what it said, and text_boxes (n, 4) x1, y1, x2, y2 in pixels, nan where that
        holds no box.

    Raises:
        ValueError: a bad image or expression.
    """
    texts = [""] * len(expressions)
    boxes = np.full((len(expressions), 4), np.nan)
    if can_write(lvlm):
        dialect = DIALECTS.get(lvlm.architecture["model_type"], GENERIC)
        chat = bool(getattr(lvlm.processor, "chat_template", None))
        recipe = Recipe(template="chat" if chat else "plain", ensure_period=False)
        prompts = [dialect.prompt.format(e.strip().rstrip(".")) for e in expressions]
        texts = said(lvlm, image, prompts, recipe=recipe, max_new_tokens=MAX_NEW_TOKENS)
        layout = lvlm.encode(image, prompts[:1], recipe).layout
        size = _seen_size(lvlm, layout)
        for i, text in enumerate(texts):
            numbers = parse(text)
            if numbers is not None:
                boxes[i] = to_pixels(numbers, dialect, layout, size)
    return {"texts": np.array(texts, dtype=object), "text_boxes": boxes}


def can_write(lvlm: LVLM) -> bool:
    """Whether the model's tokenizer has digits at all; `tiny`'s has none."""
    tokenizer = lvlm.processor.tokenizer
    ids = tokenizer("0123456789", add_special_tokens=False)["input_ids"]
    return bool(ids) and tokenizer.unk_token_id not in ids


def _seen_size(lvlm: LVLM, layout: ImageLayout) -> tuple[int, int] | None:
    """(height, width) in the model's own pixels, where a cell is so many patches on a side."""
    vision = getattr(lvlm.model.config, "vision_config", None)
    patch = getattr(vision, "patch_size", None)
    merged = getattr(vision, "spatial_merge_size", 1)
    if not isinstance(patch, int):
        return None
    return layout.grid[0] * patch * merged, layout.grid[1] * patch * merged
