"""Some samples' rows of the head-statistics table as a Parquet file, whole or not there at all.

    sample_ids, image_ids, expressions    int64, the last a hash by which samples are recognised
    sums, entropies[, ious]               fixed-size lists of L * H float32, zstd
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
from typing import Any

import numpy as np

from fastground.table import Columns
from fastground.types import Sample

IDS = ("sample_ids", "image_ids")
MATRICES = ("sums", "entropies", "ious")
EXPRESSIONS = "expressions"

Key = tuple[int, int, int]
"""sample_id, image_id, and a hash of the expression."""
Skipped = tuple[int, int, str]
"""sample_id, image_id, and why its image could not be read."""


def key(sample: Sample) -> Key:
    """What a sample is recognised by."""
    words = blake2b(sample.expression.encode(), digest_size=8).digest()
    return sample.sample_id, sample.image_id, int.from_bytes(words, "little", signed=True)


@dataclass
class Shard:
    """A shard's file, and how many of its rows count."""

    path: Path
    rows: int
    skipped: list[Skipped]
    has_ious: bool

    @classmethod
    def open(cls, path: Path) -> Shard:
        """What is in a file.

        Raises:
            ValueError: it is damaged.
        """

        def look(file: Any) -> Shard:
            names = file.schema_arrow.names
            if not {*IDS, *MATRICES[:2], EXPRESSIONS} <= set(names):
                raise ValueError(f"its columns are {', '.join(names)}")
            skipped = json.loads(file.schema_arrow.metadata[b"skipped"])
            rows = file.metadata.num_rows
            return cls(path, rows, [tuple(s) for s in skipped], "ious" in names)

        return read(path, look)

    @classmethod
    def write(
        cls,
        path: Path,
        keys: Sequence[Key],
        skipped: Sequence[Skipped],
        matrices: dict[str, np.ndarray],
        about: dict[str, Any],
    ) -> Shard:
        """Write a file, whole or not at all.

        Args:
            path: of the file.
            keys: of the samples that were read.
            skipped: the others.
            matrices: sums and entropies (N, L, H) float32, and where there are masks, ious.
            about: what the run is, as JSON has it; into the file's metadata.

        Raises:
            OSError: the disk is full, or the like.
        """
        import pyarrow as pa
        from pyarrow import parquet

        arrays = {}
        for name, values in columns_of(keys, matrices).items():
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            if values.ndim > 1:
                flat = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
            arrays[name] = flat
        table = pa.table(arrays).replace_schema_metadata(
            {**{k: json.dumps(v) for k, v in about.items()}, "skipped": json.dumps(skipped)}
        )
        sink = pa.BufferOutputStream()
        parquet.write_table(
            table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True
        )
        write_whole(path, sink.getvalue())
        return cls(path, len(keys), list(skipped), "ious" in matrices)

    def keys(self) -> list[Key]:
        """Of each row the key of the sample it was made from."""
        names = [*IDS, EXPRESSIONS]
        there = read(self.path, lambda file: file.read(columns=names).to_pydict())
        return list(zip(*(there[name] for name in names), strict=True))

    def columns(self, names: Sequence[str], shape: tuple[int, int]) -> Columns:
        """These columns of the rows that count; without masks, IoUs that are nan."""

        def take(file: Any) -> Columns:
            there = file.read(columns=[n for n in names if n != "ious" or self.has_ious])
            found = {}
            for name in there.column_names:
                values = there[name].combine_chunks()
                if name in MATRICES:
                    values = values.flatten().to_numpy().reshape(-1, *shape)
                else:
                    values = values.to_numpy()
                found[name] = values[: self.rows]
            if "ious" in names and not self.has_ious:
                found["ious"] = np.full((self.rows, *shape), np.nan, dtype=np.float32)
            return tuple(found[name] for name in names)

        return read(self.path, take)


def columns_of(keys: Sequence[Key], matrices: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of these samples by name."""
    ids = np.array(keys, dtype=np.int64).reshape(-1, 3).T
    return dict(zip((*IDS, EXPRESSIONS), ids, strict=True)) | matrices


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
            "discover again with the same folder: its samples alone are done anew"
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
