"""A run of discovery as a folder, which may be killed at any instant and goes on from there.

    RUN/run.json                what the run is: model, data set, recipe, versions
        shards/00000.parquet    the first thousand samples' rows of the head-statistics table
        shards/00001.parquet    the next: zstd, fixed-size lists of float32, checksums
        ranking.json            what came of it

A shard is there whole or not at all: it is written beside its place, forced to the disk and then
renamed. It holds all samples of some images that follow one another, and is made by forwards of its
own; so the numbers do not depend on when a run was stopped. Images that could not be read are
listed in the shard where they would be. The same samples in the same order are asked of whoever
goes on: each shard is held to their ids and expressions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from fastground.shards import IDS, MATRICES, Key, Shard, Skipped, columns_of, key, write_whole
from fastground.table import DECIDED_BY, HeadTable
from fastground.types import Recipe, Sample

MANIFEST, SHARDS, LOCK = "run.json", "shards", "lock"
SHARD_SAMPLES = 1024
"""Samples of a shard, at least: 8 MB at 1,024 heads."""
FORMAT = 1


@dataclass
class InMemory:
    """Where a run's shards go that is kept nowhere: the same doors as `Run`."""

    about: dict[str, Any]
    shard_samples: int = SHARD_SAMPLES
    pieces: list[dict[str, np.ndarray]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def holds(self, index: int) -> bool:
        """False: nothing is there of earlier runs."""
        return False

    def write(
        self, index: int, keys: Sequence[Key], skipped: Sequence[Skipped], **matrices: np.ndarray
    ) -> None:
        """Add a shard; as `Run.write`."""
        self.pieces.append(columns_of(keys, matrices))
        self.skipped += skipped

    def table(self, recipe: Recipe) -> HeadTable:
        """The table of all shards."""
        names = (*IDS, *(n for n in MATRICES if any(n in piece for piece in self.pieces)))
        parts = [[_column(piece, name) for piece in self.pieces] for name in names]
        columns = dict(zip(names, map(np.concatenate, parts), strict=True))
        about = {**self.about, "recipe": recipe, "skipped": tuple(self.skipped)}
        about.pop("weights", None)
        return HeadTable.of(columns, **about)


@dataclass
class Run:
    """A run's folder, to be filled."""

    folder: Path
    about: dict[str, Any]
    shard_samples: int
    _used: dict[int, Shard] = field(default_factory=dict)

    def holds(self, index: int) -> bool:
        """Whether an earlier run wrote the shard of this number."""
        return _path(self.folder, index).exists()

    def kept(self, index: int, samples: Sequence[Sample]) -> list[Skipped] | None:
        """What an earlier run skipped of these samples, or None where they are still to be done.

        A shard of fewer samples, which an earlier run ended with, is to be done anew.

        Args:
            index: of a shard that is there.
            samples: all of it.

        Raises:
            ValueError: the shard is of other samples, or its file is damaged.
        """
        path = _path(self.folder, index)
        shard = Shard.open(path)
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
        if len(asked) > len(there):
            if _path(self.folder, index + 1).exists():
                raise ValueError(
                    f"samples must be those that {self.folder} was made from, but there are "
                    f"{len(asked) - len(there)} more than in {path.name}; choose another folder"
                )
            return None
        shard.rows = len(asked)
        ids = {sample.sample_id for sample in samples}
        shard.skipped = [skipped for skipped in shard.skipped if skipped[0] in ids]
        self._used[index] = shard
        return shard.skipped

    def write(
        self, index: int, keys: Sequence[Key], skipped: Sequence[Skipped], **matrices: np.ndarray
    ) -> None:
        """Write a shard, whole or not at all.

        Args:
            index: its number.
            keys: of the samples that were read.
            skipped: the others.
            matrices: sums and entropies (N, L, H) float32, and where there are masks, ious.

        Raises:
            OSError: the disk is full, or the like; what was written before is kept.
        """
        path = _path(self.folder, index)
        done = sum(shard.rows for number, shard in self._used.items() if number < index)
        try:
            shard = Shard.write(path, keys, skipped, matrices, self.about)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{path} could not be written ({error.strerror}); the {done:,} samples before it "
                "are kept: make room and run again with the same folder",
            ) from error
        self._used[index] = shard

    def table(self, recipe: Recipe) -> HeadTable:
        """The table of all shards written or kept, read from the disk block by block."""
        return _table([shard for _, shard in sorted(self._used.items())], self.about, recipe)


@contextmanager
def begin(
    folder: str | Path,
    about: dict[str, Any],
    *,
    resume: bool = True,
    shard_samples: int = SHARD_SAMPLES,
) -> Iterator[Run]:
    """A run's folder, new or to go on with; no other process may write it meanwhile.

    Args:
        folder: made where it is not there.
        about: checkpoint, architecture, weights, dataset, split, recipe, versions, as JSON has
            them.
        resume: whether there may be shards already.
        shard_samples: samples of a shard, at least; of an earlier run's folder, that run's.

    Raises:
        ValueError: pyarrow is not installed, the folder holds a run of something else or is in use,
            or holds a run and `resume` is false.
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
        manifest = {"format": FORMAT, "shard_samples": shard_samples, **about}
        if (folder / MANIFEST).exists():
            if not resume:
                raise ValueError(
                    f"out must hold no run where resume is False, but {folder} does; choose "
                    "another folder, or delete it"
                )
            made = _manifest(folder)
            _same(folder, made, about)
            manifest = made
        elif any((folder / SHARDS).glob("*.parquet")):
            raise ValueError(
                f"{folder} must hold {MANIFEST} beside its shards, but does not; choose another "
                "folder, or delete it"
            )
        else:
            write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
        for part in (folder / SHARDS).glob("*.part"):
            part.unlink()  # of a run that was killed
        yield Run(folder, about, manifest["shard_samples"])


def load(folder: str | Path) -> HeadTable:
    """The table of all of a run's samples, read from the disk block by block.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a shard is missing or damaged.
    """
    folder = Path(folder)
    about = _manifest(folder)
    recipe = Recipe(**about["recipe"])
    paths = sorted((folder / SHARDS).glob("*.parquet"))
    for index, path in enumerate(paths):
        if path != _path(folder, index):
            raise ValueError(
                f"{folder} must hold all shards, but {_path(folder, index).name} is missing; run "
                "discover again with the same folder, and it alone is done anew"
            )
    if not paths:
        raise ValueError(f"{folder} must hold shards, but has none yet; run discover to its end")
    return _table([Shard.open(path) for path in paths], about, recipe)


def fingerprint(parameters: Iterable[tuple[str, Any]]) -> str:
    """A few letters that tell weights from others under the same name.

    Args:
        parameters: names and torch tensors; of each its shape, type and first values count.
    """
    digest = blake2b(digest_size=8)
    for name, tensor in parameters:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:
            digest.update(tensor.detach().reshape(-1)[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _table(shards: Sequence[Shard], about: dict[str, Any], recipe: Recipe) -> HeadTable:
    shape = (about["architecture"]["num_layers"], about["architecture"]["num_heads"])
    shards = list(shards)
    return HeadTable(
        num_samples=sum(shard.rows for shard in shards),
        read=lambda names: (shard.columns(names, shape) for shard in shards if shard.rows),
        recipe=recipe,
        checkpoint=about["checkpoint"],
        architecture=about["architecture"],
        dataset=about["dataset"],
        split=about["split"],
        versions=about["versions"],
        has_ious=any(shard.has_ious for shard in shards),
        skipped=tuple(skipped for shard in shards for skipped in shard.skipped),
    )


def _column(piece: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name in piece:
        return piece[name]
    return np.full_like(piece["sums"], np.nan)


def _path(folder: Path, index: int) -> Path:
    return folder / SHARDS / f"{index:05d}.parquet"


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"run must be a folder written by fastground discover --out, but {folder} has no "
            f"{MANIFEST}"
        )
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}")
        return manifest
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"run must be a folder written by fastground discover --out, but {path} is not "
            f"({type(error).__name__}: {error}); choose another folder"
        ) from error


def _same(folder: Path, made: dict[str, Any], asked: dict[str, Any]) -> None:
    """Nothing where a folder's run is of the same as what is asked for.

    Raises:
        ValueError: something differs that decides the numbers.
    """
    names = ("checkpoint", "architecture", "weights", "dataset", "split")
    pairs = [(name, made.get(name), asked[name]) for name in names]
    pairs += [(f"recipe.{n}", made["recipe"].get(n), asked["recipe"][n]) for n in DECIDED_BY]
    for name, before, now in pairs:
        if before != now:
            raise ValueError(
                f"{name} must be {before!r}, with which {folder} was made, but got {now!r}; choose "
                "another folder"
            )


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
        yield
