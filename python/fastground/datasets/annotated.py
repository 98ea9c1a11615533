"""Images of a file data set before they are read: where the pixels are, what is said of them.

    files --list--> AnnotatedImage, ...  --stream--> Sample, Sample, ...  --.image, .mask-->
                    small, picklable                 small, picklable       opened, drawn, checked

Every loader only lists, and a stream only names: an image is opened, a mask drawn when it is first
asked for, once for all samples of the image, and gone when these are. So who goes on with what was
done before passes it by without opening it, and workers are sent what is still to be opened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastground.counts import check_whole
from fastground.datasets.masks import Drawn, box_of
from fastground.datasets.photos import Photo, Stored
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
    boxes: tuple[Box, ...] = ()
    """Of each object, where it names several and they are told apart."""


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and all phrases about it."""

    source: Path | Stored
    image_id: int
    phrases: tuple[Phrase, ...]
    size: tuple[int, int] | None = None
    """(height, width) as the annotations say; None where they do not."""
    upright: bool = False
    """Whether it was annotated turned as its EXIF data says, where it has that size either way."""

    def samples(self, *, masks: bool = True) -> list[Sample]:
        """A sample for every phrase; the image is opened when one of them is asked for it.

        Args:
            masks: whether there are any; a box that only the mask tells is told in any case.

        Raises:
            ValueError: an empty expression.
        """
        photo = Photo(self.source, self.size, self.upright)
        return [FileSample.of(photo, self.image_id, phrase, masks) for phrase in self.phrases]


class FileSample(Sample):
    """A sample of files, of which `image`, `mask`, `ignore` and `box` are made on first use.

    There, what `open_image` raises, and a ValueError for a mask that cannot be drawn or a box
    outside the image.
    """

    photo: Photo | None = None
    """What it shows, not opened; None in a copy by `dataclasses.replace`, which holds all."""
    _phrase: Phrase
    _masks: bool

    @classmethod
    def of(cls, photo: Photo, image_id: int, phrase: Phrase, masks: bool) -> FileSample:
        """The sample of a phrase about a photo.

        Raises:
            ValueError: the expression is empty.
        """
        sample = cls.__new__(cls)
        sample.__dict__.update(
            photo=photo, expression=phrase.expression, image_id=image_id,
            sample_id=phrase.sample_id, kind=phrase.kind, first=phrase.first, answer=(),
            boxes=phrase.boxes, _phrase=phrase, _masks=masks,
        )  # fmt: skip
        if not phrase.expression.strip():
            raise sample._wrong(f"expression must have words, but is {phrase.expression!r}")
        return sample

    def __repr__(self) -> str:
        where = "opened" if self.photo is None else self.photo.source
        return f"FileSample({self.sample_id}, {self.expression!r}, {where})"

    @cached_property
    def image(self) -> Any:
        """The photo, opened."""
        return self._photo.image

    @cached_property
    def mask(self) -> Any:
        """Drawn at the image's size; None without masks."""
        return self._drawn.mask if self._masks and self._drawn else None

    @cached_property
    def ignore(self) -> Any:
        """Drawn with the mask."""
        return self._drawn.ignore if self._masks and self._drawn else None

    @cached_property
    def box(self) -> Box | None:
        """The phrase's, or else the mask's; None where the mask is empty: there is no object."""
        box = self._phrase.box
        try:
            if box is None and self._drawn is not None:
                if self._masks and not self._drawn.mask.any():
                    return None
                box = box_of(self._drawn.mask)
            for one in () if box is None else (box, *self.boxes):
                check_box(one, self._photo.size)
        except ValueError as error:
            raise self._wrong(error) from error
        return box

    @cached_property
    def _drawn(self) -> Drawn | None:
        if self._phrase.draw is None:
            return None
        size = self._photo.size
        try:
            return self._phrase.draw(size)
        except ValueError as error:
            raise self._wrong(error) from error

    @property
    def _photo(self) -> Photo:
        assert self.photo is not None, "a copy holds all"
        return self.photo

    def _wrong(self, what: object) -> ValueError:
        return ValueError(f"{what} (sample {self.sample_id}, {self._photo.source})")


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
    """The samples of images, one image after another, each opened when it is first asked for.

    Args:
        images: what a loader listed.
        num_samples: at most so many, of images in random order; None: all, in the files' order.
            Images that lie inside Parquet or Arrow files are drawn at random likewise, but come in
            the files' order, since those are read a group of rows at a time.
        seed: of that order.
        masks: whether there are any.
        on_bad: each image is opened, all of its truth made, when its turn comes; this is called
            with what is wrong with one, which is then left out. None: what is wrong is raised where
            it is asked for.

    Raises:
        ValueError: a number of samples or a seed that cannot be, a seed without a number, or an
            empty expression.
    """
    if num_samples is not None:
        check_whole("num_samples", num_samples, 0)
    check_whole("seed", seed, 0)
    if num_samples is None and seed != 0:
        raise ValueError(
            f"seed draws num_samples of them, but without that all come in the files' order; leave "
            f"out seed={seed}, or say how many"
        )
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
    waiting = iter(order)
    while left > 0 and (drawn := _drawn(images, waiting, left)):
        for samples in _read(images, drawn, masks, on_bad):
            taken = samples if left >= len(samples) else samples[: int(left)]
            left -= len(taken)
            yield from taken


def _drawn(images: Sequence[AnnotatedImage], waiting: Iterator[int], most: float) -> list[int]:
    """As many of the images that wait as have so many samples; fewer if there are no more."""
    drawn = []
    while most > 0 and (index := next(waiting, None)) is not None:
        drawn.append(index)
        most -= len(images[index].phrases)
    if any(isinstance(images[index].source, Stored) for index in drawn):
        drawn.sort(key=lambda index: _place(images[index].source))
    return drawn


def _place(source: Path | Stored) -> tuple[str, int, int]:
    if isinstance(source, Stored):
        return str(source.path), source.group, source.row
    return str(source), 0, 0


def _read(
    images: Sequence[AnnotatedImage],
    order: Iterable[int],
    masks: bool,
    on_bad: Callable[[Exception], None] | None,
) -> Iterator[list[Sample]]:
    """The samples of each image that is not bad."""
    for index in order:
        try:
            samples = images[index].samples(masks=masks)
            for sample in samples if on_bad is not None else ():
                _ = sample.image, sample.box, sample.mask
        except (ValueError, OSError) as error:
            if on_bad is None:
                raise
            on_bad(error)
            continue
        yield samples


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


def around(boxes: Sequence[Box]) -> Box:
    """The least box that holds these."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def check_box(box: Sequence[float], size: Sequence[int]) -> None:
    """Nothing, where a true box x1, y1, x2, y2 lies in an image (height, width) but for `SLACK`.

    Raises:
        ValueError: it does not, or is none.
    """
    x1, y1, x2, y2 = box = tuple(box)
    height, width = size
    if not all(map(math.isfinite, box)) or x2 <= x1 or y2 <= y1:
        raise ValueError(
            f"box must have x1 < x2 and y1 < y2, but got {box}; is it [x, y, width, height]?"
        )
    if max(box) <= 1 < min(size):
        raise ValueError(
            f"box must be in pixels of the image, {width} x {height}, but got {box}; where these "
            "are shares of its width and height, multiply them"
        )
    if min(x1, y1) < -SLACK or x2 > width + SLACK or y2 > height + SLACK:
        raise ValueError(
            f"box must lie in the image of {width} x {height} pixels, but got {box}; is it of "
            "another image, or [x, y, width, height] where corners are meant?"
        )
