"""A run as a folder, which may be killed at any instant and goes on from there.

    RUN/run.json                what the run is: command, model, data set, versions, and the recipe
                                    that was last asked for
        shards/00000.parquet    the first thousand samples: discovery's rows of the head-statistics
        shards/00001.parquet        table, or evaluation's boxes and masks; zstd, checksums
        ranking.json            what came of it; of an evaluation scores.json

A shard is there whole or not at all: it is written beside its place, forced to the disk and then
renamed. It holds all samples of some images that follow one another, and is made by forwards of its
own; so the numbers do not depend on when a run was stopped. Images that could not be read are
listed in the shard where they would be. The same samples in the same order are asked of whoever
goes on: each shard is held to their ids and expressions.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastground import manifest
from fastground.datasets.images import by_image
from fastground.manifest import DISCOVER, MANIFEST
from fastground.shards import IDS, MATRICES, Held, Key, Shard, Skipped, key
from fastground.table import HeadTable
from fastground.types import Recipe, Sample

SHARDS, LOCK = "shards", "lock"
SHARD_SAMPLES = 1024
"""Samples of a shard, at least: 8 MB of head statistics at 1,024 heads."""

_locks: set[Any] = set()
"""Files by which this process holds folders. Its forks, such as workers, let go of them: whoever
goes on with a run that was killed must not wait until the last of them has noticed."""


def _let_go() -> None:
    for file in _locks:
        file.close()  # of the fork's own; the lock is its parent's as before
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@dataclass
class Run:
    """A run that is kept nowhere: its shards stay in memory."""

    about: dict[str, Any]
    shard_samples: int = SHARD_SAMPLES
    shards: dict[int, Shard | Held] = field(default_factory=dict)
    """Those written or kept, by number."""

    def holds(self, index: int) -> bool:
        """Whether an earlier run wrote the shard of this number."""
        return False

    def kept(self, index: int, samples: Sequence[Sample]) -> list[Skipped] | None:
        """What an earlier run skipped of these samples, or None where they are still to be done.

        Args:
            index: of a shard that is there.
            samples: all of it.
        """
        return None

    def write(
        self, index: int, keys: Sequence[Key], skipped: Sequence[Skipped], **columns: np.ndarray
    ) -> None:
        """Add a shard.

        Args:
            index: its number; shards may be written in any order.
            keys: of the samples that were read.
            skipped: the others.
            columns: (N, ...) each, by name; of discovery sums and entropies (N, L, H) float32, and
                where there are masks, ious.
        """
        self.shards[index] = Held(keys, skipped, columns)

    def keep_rest(self, asked: int) -> None:
        """Take in what an earlier run holds beyond the samples that were asked for, so many."""

    def left_out(self) -> list[Skipped]:
        """The samples whose image could not be read, of those written or kept."""
        return [skipped for shard in self._in_order for skipped in shard.skipped]

    def columns(self) -> dict[str, np.ndarray]:
        """All columns of all samples written or kept, by name."""
        shards = [shard for shard in self._in_order if shard.rows]
        if not shards:
            return {}
        names = (*IDS, *shards[0].names)
        pieces = [shard.columns(names) for shard in shards]
        return dict(zip(names, map(np.concatenate, zip(*pieces, strict=True)), strict=True))

    def table(self, recipe: Recipe) -> HeadTable:
        """The table of all shards written or kept, read block by block from where they are."""
        about, shards = self.about, self._in_order
        shape = (about["architecture"]["num_layers"], about["architecture"]["num_heads"])

        def columns(shard: Shard | Held, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
            there = [n for n in names if n not in MATRICES or n in shard.names]
            found = dict(zip(there, shard.columns(there), strict=True))
            nothing = np.full((shard.rows, *shape), np.nan, dtype=np.float32)
            of_heads = [n for n in names if n in MATRICES]
            matrices = {n: found.get(n, nothing).reshape(-1, *shape) for n in of_heads}
            return tuple((found | matrices)[n] for n in names)

        return HeadTable(
            num_samples=sum(shard.rows for shard in shards),
            read=lambda names: (columns(shard, names) for shard in shards if shard.rows),
            recipe=recipe,
            checkpoint=about["checkpoint"],
            revision=about.get("revision", ""),
            architecture=about["architecture"],
            dataset=about["dataset"],
            split=about["split"],
            versions=about["versions"],
            has_ious=any("ious" in shard.names for shard in shards),
            skipped=tuple(self.left_out()),
        )

    @property
    def _in_order(self) -> list[Shard | Held]:
        return [self.shards[index] for index in sorted(self.shards)]


@dataclass
class Folder(Run):
    """A run's folder, to be filled."""

    folder: Path = field(kw_only=True)
    retry_skipped: bool = False
    """Whether shards with images that could not be read are done anew."""

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns without which a shard is damaged."""
        return ("sums", "entropies") if self.about["command"] == DISCOVER else ()

    def holds(self, index: int) -> bool:
        """As `Run.holds`."""
        return _path(self.folder, index).exists()

    def kept(self, index: int, samples: Sequence[Sample]) -> list[Skipped] | None:
        """As `Run.kept`.

        A shard of fewer samples, which an earlier run ended with, is to be done anew; likewise,
        under `retry_skipped`, one of which some were skipped, unless that would lose samples of it
        that are not asked for.

        Raises:
            ValueError: the shard is of other samples, or its file is damaged.
        """
        path = _path(self.folder, index)
        shard = Shard.open(path, self.needed)
        absent = {skipped[0] for skipped in shard.skipped}
        asked = [key(sample) for sample in samples if sample.sample_id not in absent]
        there = shard.keys()
        for mine, theirs in zip(asked, there, strict=False):
            if mine != theirs:
                what = "expression" if mine[:2] == theirs[:2] else "sample"
                raise ValueError(
                    f"samples must be those that {self.folder} was made from, but the {what} of "
                    f"sample_id {mine[0]} is another than that of sample_id {theirs[0]} in "
                    f"{path.name}; choose another folder, or the same data set, split and seed"
                )
        if len(asked) > len(there):  # whether or not later ones are there: Ray's come in any order
            return None
        whole = len(samples) == shard.rows + len(shard.skipped)
        if shard.skipped and self.retry_skipped and whole:
            return None
        self.shards[index] = shard
        ids = {sample.sample_id for sample in samples}
        return [skipped for skipped in shard.skipped if skipped[0] in ids]

    def write(
        self, index: int, keys: Sequence[Key], skipped: Sequence[Skipped], **columns: np.ndarray
    ) -> None:
        """Write a shard into the folder, whole or not at all.

        Raises:
            OSError: the disk is full, or the like; what was written before is kept.
        """
        path = _path(self.folder, index)
        done = sum(shard.rows for shard in self.shards.values())
        try:
            shard = Shard.write(path, keys, skipped, columns, self.about)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{path} could not be written ({error.strerror}); the {done:,} samples in others "
                "are kept: make room and run again with the same folder",
            ) from error
        self.shards[index] = shard

    def keep_rest(self, asked: int) -> None:
        """As `Run.keep_rest`: a folder tells of all that it holds, and says so.

        Warns:
            UserWarning: it holds more samples than were asked for.
        """
        while self.holds(index := len(self.shards)):
            self.shards[index] = Shard.open(_path(self.folder, index), self.needed)
        held = sum(shard.rows + len(shard.skipped) for shard in self.shards.values())
        if held > asked:
            warnings.warn(
                f"samples should be at least the {held:,} that {self.folder} holds, but were "
                f"{asked:,}; what is told is of all {held:,}: for fewer choose another folder",
                stacklevel=4,
            )


def left(
    run: Run,
    samples: Iterable[Sample],
    kept: Callable[[int, int, list[Skipped]], None],
) -> Iterator[tuple[int, list[Sample]]]:
    """The images that no earlier run has done, each with the number of its shard.

    Args:
        run: where the shards go.
        samples: those of an image one after another.
        kept: told of each shard that is there its number, how many samples it is of, and which of
            them were skipped.

    Raises:
        ValueError: an earlier run was of other samples.
    """
    for index, groups in enumerate(_parts(by_image(samples), run.shard_samples)):
        if run.holds(index):
            groups = list(groups)
            asked = [sample for group in groups for sample in group]
            skipped = run.kept(index, asked)
            if skipped is not None:
                kept(index, len(asked), skipped)
                continue
        for group in groups:
            yield index, group


def _parts(groups: Iterator[list[Sample]], size: int) -> Iterator[Iterable[list[Sample]]]:
    """The images in parts of at least so many samples; each is read before the next one."""

    def part(group: list[Sample] | None) -> Iterator[list[Sample]]:
        count = 0
        while group is not None:
            yield group
            count += len(group)
            group = next(groups, None) if count < size else None

    for first in groups:
        yield part(first)


def needs_folder(out: str | Path | None, **asked: bool) -> None:
    """Nothing, where there is a folder or nothing is asked of one.

    Raises:
        ValueError: what is asked of an earlier run, without the folder that would hold it.
    """
    for name, given in asked.items():
        if given and out is None:
            raise ValueError(
                f"{name} says what becomes of an earlier run's folder, but there is none; give "
                "out=FOLDER (--out FOLDER), or leave it out"
            )


@contextmanager
def begin(
    folder: str | Path,
    about: dict[str, Any],
    *,
    resume: bool = True,
    retry_skipped: bool = False,
    shard_samples: int = SHARD_SAMPLES,
    command: str = DISCOVER,
) -> Iterator[Folder]:
    """A run's folder, new or to go on with; no other process may write it meanwhile.

    Args:
        folder: made where it is not there.
        about: checkpoint, architecture, weights, dataset, split, recipe, versions, and whatever
            else decides the numbers, as JSON has them.
        resume: whether there may be shards already.
        retry_skipped: whether those with images that could not be read are done anew.
        shard_samples: samples of a shard, at least; of an earlier run's folder, that run's.
        command: whose run it is.

    Warns:
        UserWarning: it goes on with other versions of the libraries than it was made with.

    Raises:
        ValueError: pyarrow is not installed, the folder holds shards of something else or is in
            use, or holds some and `resume` is false.
    """
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            "pyarrow must be installed to keep a run in a folder, but is not; pip install "
            "'fastground[io]', or leave out the folder"
        ) from error
    folder = Path(folder)
    (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        about = {"command": command, **about}
        kept = any((folder / SHARDS).glob("*.parquet"))
        if (folder / MANIFEST).exists() and kept:
            if not resume:
                raise ValueError(
                    f"out must hold no run where resume is False, but {folder} does; choose "
                    "another folder, or delete it"
                )
            made = manifest.read(folder, command)
            manifest.check(folder, made, about)
            manifest.tell_versions(folder, made.get("versions", {}), about.get("versions", {}))
            shard_samples = made["shard_samples"]
            if made["recipe"] != about["recipe"]:  # in what only reads the numbers
                manifest.write(folder, {**made, "recipe": about["recipe"]})
        elif kept:
            raise ValueError(
                f"{folder} must hold {MANIFEST} beside its shards, but does not; choose another "
                "folder, or delete it"
            )
        else:
            if (folder / MANIFEST).exists():  # of a run that ended before it kept anything
                manifest.read(folder, command)
            manifest.write(folder, {"shard_samples": shard_samples, **about})
        for part in (folder / SHARDS).glob("*.part"):
            part.unlink()  # of a run that was killed
        yield Folder(about, shard_samples, folder=folder, retry_skipped=retry_skipped)


def load(folder: str | Path) -> HeadTable:
    """The table of all of a run's samples, read from the disk block by block.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a shard is missing or damaged.
    """
    run = _opened(Path(folder), DISCOVER)
    return run.table(Recipe(**run.about["recipe"]))


def load_columns(folder: str | Path, command: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All columns of all samples of a command's run; what its manifest says, and who was skipped.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a shard is missing or damaged, or the run is another command's.
    """
    run = _opened(Path(folder), command)
    return run.columns(), {**run.about, "skipped": run.left_out()}


def _opened(folder: Path, command: str) -> Folder:
    about = manifest.read(folder, command)
    paths = sorted((folder / SHARDS).glob("*.parquet"))
    for index, path in enumerate(paths):
        if path != _path(folder, index):
            raise ValueError(
                f"{folder} must hold all shards, but {_path(folder, index).name} is missing; run "
                f"{command} again with the same folder, and it alone is done anew"
            )
    if not paths:
        raise ValueError(f"{folder} must hold shards, but has none yet; run {command} to its end")
    run = Folder(about, folder=folder)
    run.shards.update((i, Shard.open(path, run.needed)) for i, path in enumerate(paths))
    return run


def _path(folder: Path, index: int) -> Path:
    return folder / SHARDS / f"{index:05d}.parquet"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder is this process's own until it is left, or killed."""
    import fcntl

    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"out must be a folder that no other process writes, but {folder} is in use; "
                "choose another, or wait"
            ) from error
        _locks.add(file)
        try:
            yield
        finally:
            _locks.discard(file)
