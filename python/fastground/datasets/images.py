"""Samples image by image: what shares an image shares one forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fastground.datasets.photos import Photo
from fastground.types import Sample


def by_image(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Runs of samples that follow one another and show the same image, as they stream in.

    Raises:
        ValueError: one of them is no `Sample`, or they are no iterable.
    """
    if not isinstance(samples, Iterable):
        raise ValueError(
            f"samples must be many, such as a list of them, but got a {type(samples).__name__}"
        )
    run: list[Sample] = []
    for sample in samples:
        if not isinstance(sample, Sample):
            raise ValueError(
                f"samples must be of fastground.types.Sample, but got {type(sample).__name__}; "
                "give Sample(image, expression) each"
            )
        if run and not _same_image(run[0], sample):
            yield run
            run = []
        run.append(sample)
    if run:
        yield run


def unopened(sample: Sample) -> Any:
    """The sample's `Photo` where it has one, which is small and opened by whoever needs pixels.

    Else its image, as it is.
    """
    photo: Photo | None = getattr(sample, "photo", None)
    return sample.image if photo is None else photo


def _same_image(a: Sample, b: Sample) -> bool:
    if a.image_id != b.image_id:
        return False
    one, other = unopened(a), unopened(b)
    if one is other or hasattr(one, "__dlpack__") or hasattr(other, "__dlpack__"):
        return one is other  # arrays are not compared number by number
    return bool(one == other)
