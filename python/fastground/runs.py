"""A run as a folder, which may be killed at any instant and goes on from there.

    RUN/run.json                what the run is: command, model, data set, recipe, versions
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

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fastground.datasets.images import by_image
from fastground.shards import IDS, MATRICES, Key, Shard, Skipped, columns_of, key, write_whole
from fastground.table import DECIDED_BY, HeadTable
from fastground.types import Recipe, Sample

MANIFEST, SHARDS, LOCK = "run.json", "shards", "lock"
SHARD_SAMPLES = 1024
"""Samples of a shard, at least: 8 MB of head statistics at 1,024 heads."""
FORMAT = 2
DISCOVER = "discover"
"""The command whose runs hold the head-statistics table."""
NEEDED = {DISCOVER: ("sums", "entropies")}
"""Columns without which a shard of a command's is damaged."""

_locks: set[Any] = set()
"""Files by which this process holds folders. Its forks, such as workers, let go of them: whoever
goes on with a run that was killed must not wait until the last of them has noticed."""


def _let_go() -> None:
    for file in _locks:
        file.close()  # of the fork's own; the lock is its parent's as before
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
T = TypeVar("T")


@dataclass
class InMemory:
    """Where a run's shards go that is kept nowhere: the same doors as `Run`."""

    about: dict[str, Any]
    shard_samples: int = SHARD_SAMPLES
    pieces: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    skipped: dict[int, Sequence[Skipped]] = field(default_factory=dict)

    def holds(self, index: int) -> bool:
        """False: nothing is there of earlier runs."""
        return False

    def write(
        self, index: int, keys: Sequence[Key], skipped: Sequence[Skipped], **columns: np.ndarray
    ) -> None:
        """Add a shard; as `Run.write`."""
        self.pieces[index] = columns_of(keys, columns)
        self.skipped[index] = skipped

    def left_out(self) -> list[Skipped]:
        """The samples whose image could not be read."""
        return [each for part in _in_order(self.skipped) for each in part]

    def columns(self) -> dict[str, np.ndarray]:
        """All columns of all samples, by name."""
        pieces = [piece for piece in _in_order(self.pieces) if len(piece[IDS[0]])]
        names = pieces[0] if pieces else {}
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}

    def table(self, recipe: Recipe) -> HeadTable:
        """The table of all shards."""
        pieces = _in_order(self.pieces)
        names = (*IDS, *(n for n in MATRICES if any(n in piece for piece in pieces)))
        parts = [[_column(piece, name) for piece in pieces] for name in names]
        columns = dict(zip(names, map(np.concatenate, parts), strict=True))
        about = {**self.about, "recipe": recipe, "skipped": tuple(self.left_out())}
        about.pop("weights", None)
        return HeadTable.of(columns, **about)


@dataclass
class Run:
    """A run's folder, to be filled."""

    folder: Path
    about: dict[str, Any]
    shard_samples: int
    retry_skipped: bool = False
    """Whether shards with images that could not be read are done anew."""
    _used: dict[int, Shard] = field(default_factory=dict)

    def holds(self, index: int) -> bool:
        """Whether an earlier run wrote the shard of this number."""
        return _path(self.folder, index).exists()

    def kept(self, index: int, samples: Sequence[Sample]) -> list[Skipped] | None:
        """What an earlier run skipped of these samples, or None where they are still to be done.

        A shard of fewer samples, which an earlier run ended with, is to be done anew; likewise,
        under `retry_skipped`, one of which some were skipped.

        Args:
            index: of a shard that is there.
            samples: all of it.

        Raises:
            ValueError: the shard is of other samples, or its file is damaged.
        """
        path = _path(self.folder, index)
        shard = Shard.open(path, NEEDED.get(self.about["command"], ()))
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
        shard.rows = len(asked)
        ids = {sample.sample_id for sample in samples}
        shard.skipped = [skipped for skipped in shard.skipped if skipped[0] in ids]
        if shard.skipped and self.retry_skipped:
            return None
        self._used[index] = shard
        return shard.skipped

    def write(
        self, index: int, keys: Sequence[Key], skipped: Sequence[Skipped], **columns: np.ndarray
    ) -> None:
        """Write a shard, whole or not at all.

        Args:
            index: its number; shards may be written in any order.
            keys: of the samples that were read.
            skipped: the others.
            columns: (N, ...) each, by name; of discovery sums and entropies (N, L, H) float32, and
                where there are masks, ious.

        Raises:
            OSError: the disk is full, or the like; what was written before is kept.
        """
        path = _path(self.folder, index)
        done = sum(shard.rows for shard in self._used.values())
        try:
            shard = Shard.write(path, keys, skipped, columns, self.about)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{path} could not be written ({error.strerror}); the {done:,} samples in others "
                "are kept: make room and run again with the same folder",
            ) from error
        self._used[index] = shard

    def left_out(self) -> list[Skipped]:
        """The samples whose image could not be read, of those written or kept."""
        return _left_out(_in_order(self._used))

    def columns(self) -> dict[str, np.ndarray]:
        """All columns of all samples written or kept, by name."""
        return _columns(_in_order(self._used))

    def table(self, recipe: Recipe) -> HeadTable:
        """The table of all shards written or kept, read from the disk block by block."""
        return _table(_in_order(self._used), self.about, recipe)


def left(
    run: Run | InMemory,
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
            skipped = run.kept(index, asked)  # type: ignore[union-attr]
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
) -> Iterator[Run]:
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
        about = {"command": command, **about}
        manifest = {"format": FORMAT, "shard_samples": shard_samples, **about}
        if (folder / MANIFEST).exists():
            if not resume:
                raise ValueError(
                    f"out must hold no run where resume is False, but {folder} does; choose "
                    "another folder, or delete it"
                )
            made = _manifest(folder, command)
            _same(folder, made, about)
            _tell_versions(folder, made.get("versions", {}), about.get("versions", {}))
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
        yield Run(folder, about, manifest["shard_samples"], retry_skipped)


def load(folder: str | Path) -> HeadTable:
    """The table of all of a run's samples, read from the disk block by block.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a shard is missing or damaged.
    """
    shards, about = _opened(Path(folder), DISCOVER)
    return _table(shards, about, Recipe(**about["recipe"]))


def load_columns(folder: str | Path, command: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All columns of all samples of a command's run; what its manifest says, and who was skipped.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a shard is missing or damaged, or the run is another command's.
    """
    shards, about = _opened(Path(folder), command)
    return _columns(shards), {**about, "skipped": _left_out(shards)}


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

    def columns(shard: Shard, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
        there = [n for n in names if n not in MATRICES or n in shard.names]
        found = dict(zip(there, shard.columns(there), strict=True))
        nothing = np.full((shard.rows, *shape), np.nan, dtype=np.float32)
        matrices = {n: found.get(n, nothing).reshape(-1, *shape) for n in names if n in MATRICES}
        return tuple((found | matrices)[n] for n in names)

    return HeadTable(
        num_samples=sum(shard.rows for shard in shards),
        read=lambda names: (columns(shard, names) for shard in shards if shard.rows),
        recipe=recipe,
        checkpoint=about["checkpoint"],
        architecture=about["architecture"],
        dataset=about["dataset"],
        split=about["split"],
        versions=about["versions"],
        has_ious=any("ious" in shard.names for shard in shards),
        skipped=tuple(_left_out(shards)),
    )


def _opened(folder: Path, command: str) -> tuple[list[Shard], dict[str, Any]]:
    about = _manifest(folder, command)
    paths = sorted((folder / SHARDS).glob("*.parquet"))
    for index, path in enumerate(paths):
        if path != _path(folder, index):
            raise ValueError(
                f"{folder} must hold all shards, but {_path(folder, index).name} is missing; run "
                f"{command} again with the same folder, and it alone is done anew"
            )
    if not paths:
        raise ValueError(f"{folder} must hold shards, but has none yet; run {command} to its end")
    return [Shard.open(path, NEEDED.get(command, ())) for path in paths], about


def _left_out(shards: Sequence[Shard]) -> list[Skipped]:
    return [skipped for shard in shards for skipped in shard.skipped]


def _columns(shards: Sequence[Shard]) -> dict[str, np.ndarray]:
    shards = [shard for shard in shards if shard.rows]
    if not shards:
        return {}
    names = (*IDS, *shards[0].names)
    pieces = [shard.columns(names) for shard in shards]
    return dict(zip(names, map(np.concatenate, zip(*pieces, strict=True)), strict=True))


def _in_order(shards: dict[int, T]) -> list[T]:
    return [shards[index] for index in sorted(shards)]


def _column(piece: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name in piece:
        return piece[name]
    return np.full_like(piece["sums"], np.nan)


def _path(folder: Path, index: int) -> Path:
    return folder / SHARDS / f"{index:05d}.parquet"


def _manifest(folder: Path, command: str) -> dict[str, Any]:
    path = folder / MANIFEST
    needed = f"run must be a folder written by fastground {command} --out"
    if not path.is_file():
        raise FileNotFoundError(f"{needed}, but {folder} has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}")
        if manifest["command"] != command:
            raise ValueError(f"it was written by fastground {manifest['command']}")
        return manifest
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{needed}, but {path} is not ({type(error).__name__}: {error}); choose another folder"
        ) from error


def _same(folder: Path, made: dict[str, Any], asked: dict[str, Any]) -> None:
    """Nothing where a folder's run is of the same as what is asked for.

    Raises:
        ValueError: something differs that decides the numbers.
    """
    recipe = DECIDED_BY if asked["command"] == DISCOVER else tuple(asked["recipe"])
    names = [name for name in asked if name not in ("recipe", "versions")]
    pairs = [(name, made.get(name), asked[name]) for name in names]
    pairs += [(f"recipe.{n}", made["recipe"].get(n), asked["recipe"][n]) for n in recipe]
    for name, before, now in pairs:
        if before != now:
            raise ValueError(
                f"{name} must be {before!r}, with which {folder} was made, but got {now!r}; choose "
                "another folder"
            )


def _tell_versions(folder: Path, made: dict[str, str], here: dict[str, str]) -> None:
    """A warning that names each library whose version differs: numbers may in their last digits."""
    none = "none"
    differ = [
        f"{name} {made.get(name, none)} (now {here.get(name, none)})"
        for name in sorted({*made, *here})
        if made.get(name) != here.get(name)
    ]
    if differ:
        warnings.warn(
            f"versions of libraries should be those with which {folder} was made, but differ: "
            f"{', '.join(differ)}; what is there is kept, and what is added may be rounded in "
            "another way: install those versions, or choose another folder, for the same numbers",
            stacklevel=5,
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
        _locks.add(file)
        try:
            yield
        finally:
            _locks.discard(file)
