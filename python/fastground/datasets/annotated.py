"""Images of a file data set before they are read: where the pixels are, what is said of them.

    files --list--> AnnotatedImage, ...  --stream--> Sample, Sample, ...
                    small, picklable                 decoded, drawn, checked, one image at a time

Every loader only lists; nothing is decoded before its turn, and memory does not grow with what has
been streamed. Workers can share the list, each calling `AnnotatedImage.samples` on a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastground.datasets.masks import Drawn, box_of
from fastground.datasets.photos import Stored, open_image
from fastground.types import Sample

SLACK = 2.0
"""Pixels by which a true box may stick out of its image: COCO's are rounded."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Phrase:
    """An expression and what it names in the image."""

    expression: str
    sample_id: int
    box: Box | None = None
    """x1, y1, x2, y2 in pixels; the mask's where there is none."""
    draw: Callable[[tuple[int, int]], Drawn] | None = None
    """Draws the mask at a size (height, width)."""
    kind: str = ""
    first: bool = True
    """Whether it is the first about its object."""


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and all phrases about it."""

    source: Path | Stored
    image_id: int
    phrases: tuple[Phrase, ...]
    size: tuple[int, int] | None = None
    """(height, width) as the annotations say; None where they do not."""

    def samples(self, *, masks: bool = True) -> list[Sample]:
        """The image decoded once, and a sample for every phrase.

        Args:
            masks: whether to draw them; a box that only the mask tells is told in any case.

        Raises:
            FileNotFoundError: there is no such image.
            ValueError: a broken image or one of another size, an empty expression, a box outside
                the image, a mask that cannot be drawn.
        """
        image = open_image(self.source, self.size)
        size = (image.height, image.width)
        out = []
        for phrase in self.phrases:
            try:
                if not phrase.expression.strip():
                    raise ValueError(f"expression must have words, but is {phrase.expression!r}")
                drawn = None
                if phrase.draw is not None and (masks or phrase.box is None):
                    drawn = phrase.draw(size)
                box = phrase.box
                if box is None and drawn is not None:
                    box = box_of(drawn.mask)
                if box is not None:
                    _check_box(box, size)
            except ValueError as error:
                raise ValueError(f"{error} (sample {phrase.sample_id}, {self.source})") from error
            out.append(
                Sample(
                    image=image,
                    expression=phrase.expression,
                    box=box,
                    mask=drawn.mask if masks and drawn else None,
                    image_id=self.image_id,
                    sample_id=phrase.sample_id,
                    kind=phrase.kind,
                    ignore=drawn.ignore if masks and drawn else None,
                    first=phrase.first,
                )
            )
        return out


@dataclass(frozen=True)
class Reference:
    """An object that people have named, as both layouts write it."""

    ref_id: int
    image_id: int
    sentences: tuple[tuple[int, str], ...]
    """(sentence id, text)."""
    box: Box
    segmentation: Any
    source: Path | Stored
    size: tuple[int, int] | None
    """(height, width) of the image, where it is told."""


def stream(
    images: Sequence[AnnotatedImage],
    *,
    num_samples: int | None = None,
    seed: int = 0,
    masks: bool = True,
    on_bad: Callable[[Exception], None] | None = None,
) -> Iterator[Sample]:
    """The samples of images, one image after another, each decoded when its turn comes.

    Args:
        images: what a loader listed.
        num_samples: at most so many, of images in random order; None: all, in the files' order.
        seed: of that order.
        masks: whether to draw them.
        on_bad: called with what is wrong with an image, which is then left out; None raises it.

    Raises:
        ValueError: a negative number of samples; and what `AnnotatedImage.samples` raises.
        FileNotFoundError: likewise.
    """
    if num_samples is not None and num_samples < 0:
        raise ValueError(f"num_samples must be >= 0, but got {num_samples}")
    order: Iterable[int] = range(len(images))
    if num_samples is not None:
        order = np.random.default_rng(seed).permutation(len(images)).tolist()
    return _stream(images, order, num_samples, masks, on_bad)


def _stream(
    images: Sequence[AnnotatedImage],
    order: Iterable[int],
    num_samples: int | None,
    masks: bool,
    on_bad: Callable[[Exception], None] | None,
) -> Iterator[Sample]:
    left = math.inf if num_samples is None else num_samples
    for index in order:
        if left <= 0:
            return
        try:
            samples = images[index].samples(masks=masks)
        except (ValueError, OSError) as error:
            if on_bad is None:
                raise
            on_bad(error)
            continue
        taken = samples if left >= len(samples) else samples[: int(left)]
        left -= len(taken)
        yield from taken


def xyxy(xywh: Sequence[float]) -> Box:
    """The corners of a box that is written as COCO does: x, y, width, height; no +1.

    Raises:
        ValueError: no four numbers.
    """
    try:
        x, y, width, height = map(float, xywh)
    except (TypeError, ValueError) as error:
        raise ValueError(f"bbox must be x, y, width, height, but got {xywh!r}") from error
    return x, y, x + width, y + height


def _check_box(box: Box, size: tuple[int, int]) -> None:
    x1, y1, x2, y2 = box
    height, width = size
    if not all(map(math.isfinite, box)) or x2 <= x1 or y2 <= y1:
        raise ValueError(f"box must have x1 < x2 and y1 < y2, but got {box}")
    if min(x1, y1) < -SLACK or x2 > width + SLACK or y2 > height + SLACK:
        raise ValueError(
            f"box must lie in the image of {width} x {height} pixels, but got {box}; is it of "
            "another image, or [x, y, width, height] where corners are meant?"
        )
