"""Data sets as streams of `Sample`, all samples of an image one after another.

`load` gives the samples of any of them by name. Those in files are listed, image by image, and
stream unopened: `Sample.image` and the truth are read from their files when first asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fastground.datasets import listed, png, reasonseg
from fastground.datasets import refcoco as referit
from fastground.datasets.annotated import AnnotatedImage, stream
from fastground.datasets.shapes import shapes
from fastground.types import Sample

FILES: dict[str, Callable[..., list[AnnotatedImage]]] = {
    "refcoco": referit.annotated_images,
    "refcoco+": partial(referit.annotated_images, variant="refcoco+"),
    "refcocog": partial(referit.annotated_images, variant="refcocog"),
    "reasonseg": reasonseg.annotated_images,
    "png": png.annotated_images,
    "listed": listed.annotated_images,
}
"""Data sets in files: from a folder and a split to the list of their images."""
DATASETS = ("shapes", *FILES)

__all__ = ["DATASETS", "annotated_images", "load", "refcoco", "shapes"]


def load(
    name: str,
    *,
    data: str | Path | None = None,
    split: str = "train",
    num_samples: int | None = 1000,
    seed: int = 0,
    masks: bool = True,
    on_bad: Callable[[Exception], None] | None = None,
    **options: Any,
) -> Iterator[Sample]:
    """The samples of a data set by name.

    Args:
        name: one of `DATASETS`.
        data: where its files are; shapes has none.
        split: as that data set calls it.
        num_samples: at most so many, of images in random order; None: all, in the files' order.
        seed: of that order; of shapes, another world.
        masks: whether samples have the true masks, where there are any.
        on_bad: called with what is wrong with an image, which is then left out; None: it is raised
            where the image or its truth is asked for.
        options: what that data set takes besides, such as sentences, check_sizes, images.

    Raises:
        ValueError: there is no such data set, it does not take such an option, or its files are
            not what they should be.
        FileNotFoundError: a file is missing; says which, and where to get it.
    """
    if name == "shapes":
        several = options.pop("several", False)
        if not isinstance(several, bool):
            raise ValueError(f"several must be true or false, but got {several!r}")
        unfit = {"data": data, "on_bad": on_bad} | options
        given = [option for option, value in unfit.items() if value is not None]
        given += ["num_samples=None"] * (num_samples is None) + ["masks=False"] * (not masks)
        if given or num_samples is None:
            name_it = "" if data is None else "; name the data set of your files: --dataset listed"
            raise ValueError(
                f"shapes is drawn without end and must have no {', '.join(given)}{name_it}"
            )
        return shapes(split=split, num_samples=num_samples, seed=seed, several=several)
    images = annotated_images(name, data, split, **options)
    return stream(images, num_samples=num_samples, seed=seed, masks=masks, on_bad=on_bad)


def refcoco(
    data: str | Path, split: str = "train", *, variant: str = "refcoco", **options: Any
) -> Iterator[Sample]:
    """The samples of RefCOCO, RefCOCO+ or RefCOCOg, the whole split unless num_samples is given.

    Args:
        data: the folder that holds refcoco/ and train2014/, or one of the copies in Parquet.
        split: train, val, testA, testB; for refcocog train, val, test.
        variant: refcoco, refcoco+ or refcocog.
        options: as `load` takes them.

    Raises:
        ValueError, FileNotFoundError: as `load`.
    """
    return load(variant, data=data, split=split, **{"num_samples": None, **options})


def annotated_images(
    name: str, data: str | Path | None, split: str = "train", **options: Any
) -> list[AnnotatedImage]:
    """The images of a data set in files, not yet read: small, picklable, to be shared by workers.

    Args:
        name: one of `FILES`.
        data: where its files are.
        split: as that data set calls it.
        options: what that data set takes besides.

    Raises:
        ValueError: there is no such data set, it does not take such an option, or its files are
            not what they should be.
        FileNotFoundError: a file is missing; says which, and where to get it.
    """
    if name not in FILES:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, but got {name!r}")
    if data is None:
        raise ValueError(f"data must say where {name} is, but was not given; data=DIR (--data DIR)")
    known = options_of(name)
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"{name} must have options {', '.join(known) or 'none'}, not {option}")
        if isinstance(known[option], bool) and not isinstance(value, bool):
            raise ValueError(f"{option} must be True or False, but got {value!r}")
    return FILES[name](data, split, **options)


def options_of(name: str) -> dict[str, Any]:
    """What a data set takes besides a folder, a split, a number and a seed, with its defaults."""
    parameters = inspect.signature(FILES.get(name, shapes)).parameters.values()
    return {
        p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "variant"
    }
