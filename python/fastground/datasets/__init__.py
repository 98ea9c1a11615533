"""Data sets as streams of `Sample`, all samples of an image one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastground.datasets.shapes import shapes
from fastground.types import Sample

DATASETS: dict[str, Callable[..., Iterator[Sample]]] = {"shapes": shapes}

__all__ = ["DATASETS", "load", "shapes"]


def load(name: str, **options: Any) -> Iterator[Sample]:
    """The samples of a data set by name.

    Args:
        name: one of `DATASETS`.
        options: what that data set takes, such as split, num_samples, seed.

    Raises:
        ValueError: there is no such data set.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, but got {name!r}")
    return DATASETS[name](**options)
