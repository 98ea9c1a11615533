"""Samples image by image: what shares an image shares one forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastground.types import Sample


def by_image(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Runs of samples that follow one another and show the same image, as they stream in."""
    run: list[Sample] = []
    for sample in samples:
        if run and not _same_image(run[0], sample):
            yield run
            run = []
        run.append(sample)
    if run:
        yield run


def _same_image(a: Sample, b: Sample) -> bool:
    return a.image_id == b.image_id and (a.image is b.image or a.image == b.image)
