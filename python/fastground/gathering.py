"""Samples with truths -> their rows of numbers: what every score is made of, kept shard by shard.

    samples --image by image, read ahead by workers--> one forward each --measure--> rows
    rows --> a shard --> RUN/shards/00000.parquet, if a folder is asked for

Evaluation measures one grounder, a comparison many settings on the same maps; all else is the same
and is here. A run that is stopped goes on where it was (`runs.py`), an image that cannot be read is
skipped, listed and counted (`watch.py`). A row hangs on its own image alone, so the scores are the
same as of a run that never stopped, with workers and without.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastground import manifest, runs, sinks
from fastground.ahead import Unreadable, default_workers, opened, read_ahead
from fastground.counts import check_whole
from fastground.datasets.images import unopened
from fastground.scoring import Columns
from fastground.shards import Key, Skipped, key, write_whole
from fastground.strict_json import dumps
from fastground.table import installed_versions
from fastground.types import Recipe, Sample
from fastground.watch import MAX_BAD, Watch

if TYPE_CHECKING:
    from fastground.models import LVLM

SCORES_FILE = "scores.json"
SHARD_SAMPLES = 256
"""Samples of a shard, at least."""

Images = Iterable[tuple[int, list[Sample]]]
"""Of each image its shard's number and its samples."""
Measure = Callable[[list[Sample], Any], Columns]
"""From the samples of an image, and the image as it was read, to their rows."""


@dataclass(frozen=True)
class Way:
    """How rows are made and where they are kept; `evaluation.evaluate` tells of each."""

    dataset: str = ""
    split: str = ""
    options: Mapping[str, Any] | None = None
    out: str | Path | None = None
    resume: bool = True
    shard_samples: int = SHARD_SAMPLES
    max_bad: float = MAX_BAD
    workers: int | None = None
    progress: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        check_whole("shard_samples", self.shard_samples, 1)
        runs.needs_folder(self.out, resume=not self.resume)

    def about(self, lvlm: LVLM, recipe: Recipe, **more: Any) -> dict[str, Any]:
        """What decides the numbers of a run, by which its folder is known again."""
        return {
            **manifest.identity(lvlm),
            "dataset": self.dataset,
            "split": self.split,
            "options": dict(self.options or {}),
            "recipe": recipe.to_dict(),
            "versions": installed_versions(),
            **more,
        }

    def save(self, told: dict[str, Any]) -> None:
        """Write the scores into the folder, if there is one; what JSON lacks, nan, becomes null."""
        if self.out is not None:
            write_whole(Path(self.out) / SCORES_FILE, f"{dumps(told)}\n".encode())


def gathered(
    samples: Iterable[Sample],
    read: Callable[[Images], Generator[tuple[int, list[Sample], Any]]],
    measure: Measure,
    way: Way,
    about: Callable[[], dict[str, Any]],
    command: str,
) -> tuple[Columns, int]:
    """The rows of all samples, and how many had no readable image.

    Args:
        samples: those of an image one after another.
        read: opens the images, as `of_model` or `alone`.
        measure: makes an image's rows.
        way: where they are kept, and how many may be unreadable.
        about: what decides the numbers; asked where there is a folder.
        command: whose folder it is.

    Raises:
        ValueError: no samples, too many unreadable images, or a folder with a run of something
            else; finished shards are kept.
        OSError: the folder cannot be written.
    """
    watch = Watch(way.max_bad, way.progress)
    place: Any = nullcontext(runs.Run({}, way.shard_samples))
    if way.out is not None:
        place = runs.begin(
            way.out, about(), resume=way.resume, shard_samples=way.shard_samples, command=command
        )
    with place as run:
        with closing(read(runs.left(run, samples, watch.kept))) as images:
            for index, several in groupby(images, key=itemgetter(0)):
                watch.begin(index)
                keys, skipped, columns = _shard(several, measure, watch)
                run.write(index, keys, skipped, **columns)
        watch.end()
        run.keep_rest(watch.done)
        return run.columns(), len(run.left_out())


def of_model(
    lvlm: LVLM, recipe: Recipe, workers: int | None, *, keep_images: bool = False
) -> Callable[[Images], Generator[tuple[int, list[Sample], Any]]]:
    """Reads images as a model takes them, ahead of it, with the prompt that the sinks ask for.

    Args:
        lvlm: the model.
        recipe: as in `LVLM.encode`, and its sinks.
        workers: processes that read; None: as many as there are cores for beside a GPU.
        keep_images: whether the pixels are wanted, too.
    """
    if workers is None:
        workers = default_workers(lvlm.device)
    more = sinks.asked((), recipe)
    return partial(
        read_ahead, lvlm, recipe=recipe, workers=workers, more=more, keep_images=keep_images
    )


def alone(images: Images) -> Generator[tuple[int, list[Sample], Any]]:
    """Images as they are, for a grounder that reads them itself; or why one cannot be read."""
    for index, group in images:
        image = opened(unopened(group[0]))
        yield index, group, image if isinstance(image, Unreadable) else group[0].image


def _shard(
    images: Iterable[tuple[int, list[Sample], Any]], measure: Measure, watch: Watch
) -> tuple[list[Key], Sequence[Skipped], Columns]:
    keys: list[Key] = []
    skipped: list[Skipped] = []
    pieces: list[Columns] = []
    for _, group, image in images:
        if isinstance(image, Unreadable):
            skipped += watch.skip(group, image.reason)
            continue
        pieces.append(measure(group, image))
        keys += map(key, group)
        watch.count(len(group))
    if not pieces:
        return keys, skipped, {}
    columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    del columns["image_ids"]  # a key has it
    return keys, skipped, columns
