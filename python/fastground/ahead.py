"""Images read ahead of the model: opened, resized, turned into what it takes, in other processes.

    images in order --> worker | worker | worker --> in the same order, pinned --> the model
                        each AHEAD images at most, then it waits

torch's DataLoader does it. The workers are forked, so that they have the processor and the model's
configuration without a copy of its weights; no device is touched in them. Ctrl-C is the parent's
affair. When it ends they end, and when it is killed they leave within a second or two.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL.Image import DecompressionBombError, Image, fromarray
from torch.utils.data import DataLoader, Dataset

from fastground.counts import check_whole
from fastground.datasets.images import unopened
from fastground.datasets.photos import Photo
from fastground.models import LVLM
from fastground.models.geometry import read_image
from fastground.types import Encoded, Recipe, Sample

WORKERS = 1024
"""Most of them."""
AHEAD = 4
"""Images that a worker reads before they are asked for, at most; memory grows with it."""
MOST_WORKERS = 8
"""By default: an H200 with LLaVA-1.5-7B asks for some 30 images a second, a core reads as many."""

FORK = "fork"

Tag = TypeVar("Tag")


class Unreadable(NamedTuple):
    """Why there is no image."""

    reason: str


class _Wrong(NamedTuple):
    """A ValueError on its way from a worker: its message, which names the samples."""

    message: str


@dataclass(frozen=True)
class _Asked:
    """What a worker is sent; small where the image is a photo, whose pixels it reads itself."""

    image: Any
    expressions: tuple[str, ...]
    name: str


class _Read(NamedTuple):
    """What a worker sends back: arrays by value, and the image's tensors in shared memory."""

    encoded: Encoded
    inputs: dict[str, torch.Tensor]
    pixels: torch.Tensor | None
    """(height, width, 3) uint8: the image itself, where it is asked for."""


def default_workers(device: torch.device) -> int:
    """As many as there are cores for beside a GPU; 0 where the model itself takes the cores.

    Args:
        device: the model's.
    """
    if device.type != "cuda" or FORK not in multiprocessing.get_all_start_methods():
        return 0
    return min(MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) - 1))


def opened(image: Any) -> Image | Unreadable:
    """An image in RGB, or why there is none.

    Args:
        image: a `Photo`, or as `read_image` takes it.
    """
    try:
        return read_image(image.image if isinstance(image, Photo) else image)
    except (ValueError, OSError, SyntaxError, DecompressionBombError) as error:
        return Unreadable(" ".join(str(error).split()))


def read_ahead(
    lvlm: LVLM,
    images: Iterable[tuple[Tag, list[Sample]]],
    recipe: Recipe,
    workers: int,
    *,
    more: Sequence[str] = (),
    keep_images: bool = False,
) -> Generator[tuple[Tag, list[Sample], Encoded | Unreadable]]:
    """Images as the model reads them, in order; close it to end the workers.

    Args:
        lvlm: the model, from `fastground.models`.
        images: of each anything by which the caller knows it, and its samples; taken as far ahead
            as is read.
        recipe: as in `LVLM.encode`.
        workers: processes that read; 0: each image is read when it is asked for.
        more: expressions that every image is asked behind its own.
        keep_images: whether `Encoded.image` is wanted.

    Yields:
        What was given, with the image and its expressions in the host's memory, or with the reason
        why the image cannot be read.

    Raises:
        ValueError: an expression or image that the model does not take, named by its samples; a
            number of workers that cannot be.
        RuntimeError: something else went wrong with an image, named likewise, or a worker was
            killed.
    """
    check_whole("workers", workers, 0, WORKERS)
    if workers and FORK not in multiprocessing.get_all_start_methods():
        raise ValueError(f"workers must be 0 where processes cannot be forked, but got {workers}")
    given: deque[tuple[Tag, list[Sample]]] = deque()

    def asked() -> Iterator[_Asked]:
        for tag, group in images:
            given.append((tag, group))
            expressions = (*(s.expression for s in group), *more)
            yield _Asked(unopened(group[0]), expressions, _name(group))

    reader = _Reader(lvlm, recipe, keep_images)
    pinned = lvlm.device.type == "cuda"
    found_all = _by_others(reader, asked(), workers, pinned) if workers else map(reader, asked())
    for found in found_all:
        tag, group = given.popleft()
        if isinstance(found, _Wrong):
            raise ValueError(found.message)
        if isinstance(found, Unreadable):
            yield tag, group, found
        else:
            encoded = _with_tensors(found)
            photo = unopened(group[0])
            if isinstance(photo, Photo) and encoded.layout.image_size is not None:
                photo.remember(encoded.layout.image_size)  # masks are drawn at it, none is opened
            yield tag, group, encoded


def _by_others(
    reader: _Reader, asked: Iterable[_Asked], workers: int, pinned: bool
) -> Iterator[Any]:
    loader = DataLoader(
        reader,
        sampler=asked,  # what it draws is what a worker is sent
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        pin_memory=pinned,
        worker_init_fn=partial(_begin, os.getpid()),
        multiprocessing_context=FORK,
        generator=torch.Generator(),  # else it draws from the caller's
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "killed by signal" not in str(error) and "exited unexpectedly" not in str(error):
            raise
        raise RuntimeError(
            f"workers must live while images are read, but {' '.join(str(error).split())} What was "
            "written is kept; if memory ran out, take fewer workers"
        ) from error


class _Reader(Dataset[Any]):
    """What a worker does with each image it is sent."""

    def __init__(self, lvlm: LVLM, recipe: Recipe, keep_images: bool) -> None:
        self.lvlm, self.recipe, self.keep_images = lvlm, recipe, keep_images

    def __getitem__(self, asked: _Asked) -> _Read | Unreadable | _Wrong:
        return self(asked)

    def __call__(self, asked: _Asked) -> _Read | Unreadable | _Wrong:
        image = opened(asked.image)
        if isinstance(image, Unreadable):
            return image
        try:
            encoded = self.lvlm.encode(image, list(asked.expressions), self.recipe)
        except ValueError as error:
            return _Wrong(f"{error} ({asked.name})")
        except Exception as error:
            raise RuntimeError(
                f"{asked.name} must be read, but {type(error).__name__}: {error}"
            ) from error
        return _without_tensors(encoded, image if self.keep_images else None)


def _begin(parent: int, worker: int) -> None:
    """Ctrl-C goes to all processes of a terminal; what it means is for the first one to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_without, args=(parent,), daemon=True).start()


def _leave_without(parent: int) -> None:
    """Ends this process when its parent is gone.

    The DataLoader's own way waits until what was read has been taken, which nobody may do: the end
    of the pipe that the parent had is held open by the other workers.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _as_it_is(found: Any) -> Any:
    return found


def _without_tensors(encoded: Encoded, image: Image | None) -> _Read:
    """A few words' tokens as arrays: a tensor costs a file of shared memory, however small."""
    ids: Any = tuple(ids.numpy() for ids in encoded.token_ids)
    places: Any = encoded.prefix_positions
    places = None if places is None else places.numpy()
    bare = replace(encoded, token_ids=ids, prefix_positions=places, image_inputs={})
    pixels = None if image is None else torch.from_numpy(np.array(image))
    return _Read(bare, encoded.image_inputs, pixels)


def _with_tensors(found: _Read) -> Encoded:
    bare = found.encoded
    places: Any = bare.prefix_positions
    return replace(
        bare,
        token_ids=tuple(torch.from_numpy(ids) for ids in bare.token_ids),
        prefix_positions=None if places is None else torch.from_numpy(places),
        image_inputs=found.inputs,
        image=None if found.pixels is None else fromarray(found.pixels.numpy()),
    )


def _name(group: Sequence[Sample]) -> str:
    first, last = group[0].sample_id, group[-1].sample_id
    ids = f"{first} to {last}" if len(group) > 1 else f"{first}"
    return f"image_id {group[0].image_id}, sample_id {ids}"
