"""What a run keeps of some samples as a Parquet file, whole or not there at all.

    sample_ids, image_ids, expressions    int64, the last a hash by which samples are recognised
    discovery: sums, entropies[, ious]    fixed-size lists of L * H float32, zstd
    evaluation: boxes, masks, truth, ...  as `scoring.py` names them
    metadata                              what the run is; skipped: whose image is unreadable

Every page has a checksum, so that a damaged file is an error and never a number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastground.phrases import Phrase
from fastground.strict_json import dumps
from fastground.table import Columns
from fastground.types import Sample

IDS = ("sample_ids", "image_ids")
MATRICES = ("sums", "entropies", "ious")
EXPRESSIONS = "expressions"

Key = tuple[int, int, int]
"""sample_id, image_id, and a hash of the expression."""
Skipped = tuple[int, int, str]
"""sample_id, image_id, and why its image could not be read."""


class Measured(NamedTuple):
    """What discovery writes: who was read, who was not, and the matrices of numbers by name."""

    keys: list[Key]
    skipped: list[Skipped]
    matrices: dict[str, np.ndarray]


def key(sample: Sample) -> Key:
    """What a sample is recognised by."""
    said = sample.expression
    if isinstance(said, Phrase):  # asked in its place it is another than alone
        said = f"{said}\0{said.start}\0{said.sentence}"
    words = blake2b(said.encode(), digest_size=8).digest()
    return sample.sample_id, sample.image_id, int.from_bytes(words, "little", signed=True)


@dataclass
class Shard:
    """A shard's file, and what is in it."""

    path: Path
    rows: int
    skipped: list[Skipped]
    names: tuple[str, ...]
    """Of its columns, those of `Key` left out."""

    @classmethod
    def open(cls, path: Path, needed: Sequence[str] = ()) -> Shard:
        """What is in a file.

        Args:
            path: of the file.
            needed: columns that it must have.

        Raises:
            ValueError: it is damaged.
        """

        def look(file: Any) -> Shard:
            names = file.schema_arrow.names
            if not {*IDS, EXPRESSIONS, *needed} <= set(names):
                raise ValueError(f"its columns are {', '.join(names)}")
            skipped = json.loads(file.schema_arrow.metadata[b"skipped"])
            rows = file.metadata.num_rows
            own = tuple(n for n in names if n not in (*IDS, EXPRESSIONS))
            return cls(path, rows, [tuple(s) for s in skipped], own)

        return read(path, look)

    @classmethod
    def write(
        cls,
        path: Path,
        keys: Sequence[Key],
        skipped: Sequence[Skipped],
        columns: dict[str, np.ndarray],
        about: dict[str, Any],
    ) -> Shard:
        """Write a file, whole or not at all.

        Args:
            path: of the file.
            keys: of the samples that were read.
            skipped: the others.
            columns: (N, ...) numbers, bools or texts by name.
            about: what the run is, as JSON has it; into the file's metadata.

        Raises:
            OSError: the disk is full, or the like.
        """
        import pyarrow as pa
        from pyarrow import parquet

        arrays = {}
        for name, values in columns_of(keys, columns).items():
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            if values.ndim > 1:
                flat = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
            arrays[name] = flat
        table = pa.table(arrays).replace_schema_metadata(
            {k: dumps(v, indent=None) for k, v in (about | {"skipped": skipped}).items()}
        )
        sink = pa.BufferOutputStream()
        parquet.write_table(
            table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True
        )
        write_whole(path, sink.getvalue())
        return cls(path, len(keys), list(skipped), tuple(columns))

    def keys(self) -> list[Key]:
        """Of each row the key of the sample it was made from."""
        names = [*IDS, EXPRESSIONS]
        there = read(self.path, lambda file: file.read(columns=names).to_pydict())
        return list(zip(*(there[name] for name in names), strict=True))

    def columns(self, names: Sequence[str]) -> Columns:
        """These columns: (rows,) each, (rows, size) where it is of lists."""

        def take(file: Any) -> Columns:
            there = file.read(columns=list(dict.fromkeys(names)))
            return tuple(_array(there[name].combine_chunks()) for name in names)

        return read(self.path, take)


class Held:
    """A shard of a run that is kept nowhere: in memory, and read as a `Shard` is."""

    def __init__(
        self, keys: Sequence[Key], skipped: Sequence[Skipped], columns: dict[str, np.ndarray]
    ) -> None:
        """As `Shard.write`."""
        self.rows, self.skipped, self.names = len(keys), list(skipped), tuple(columns)
        self._columns = columns_of(keys, columns)

    def columns(self, names: Sequence[str]) -> Columns:
        """These columns: (rows, ...) each."""
        return tuple(self._columns[name] for name in names)


def _array(values: Any) -> np.ndarray:
    size = getattr(values.type, "list_size", None)
    if size is None:
        return values.to_numpy(zero_copy_only=False)
    return values.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)


def columns_of(keys: Sequence[Key], columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of these samples by name."""
    ids = np.array(keys, dtype=np.int64).reshape(-1, 3).T
    return dict(zip((*IDS, EXPRESSIONS), ids, strict=True)) | columns


def read(path: Path, reader: Callable[[Any], Any]) -> Any:
    """What the reader makes of the Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            return reader(file)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"shard must be as it was written, but {path} is damaged ({error}); delete it and run "
            "again with the same folder: its samples alone are done anew"
        ) from error


def write_whole(path: Path, content: Any) -> None:
    """The file, on the disk, whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too
    finally:
        os.close(folder)
