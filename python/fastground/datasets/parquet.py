"""RefCOCO as it lies on the Hugging Face hub, from a downloaded folder: Parquet or Arrow files.

Two layouts are read, by pyarrow and without a network. Both hold traps:

    jxu124/refcoco, refcocoplus, refcocog
        a row is a reference; image_path into COCO's train2014, which must be there; bbox is
        x1, y1, x2, y2. The split that RefCOCO calls testA is called test, and val validation.
    lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg
        a row is a reference; the image inside; bbox is x, y, width, height; the expressions are
        the column answer. There is no train, val of RefCOCO and RefCOCOg is mixed with Google's,
        and test of RefCOCO is Google's alone.

A split is asked for by its true name and found under its name here; its size is then checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastground.datasets.annotated import Reference, xyxy
from fastground.datasets.photos import Stored

CALLED = {"val": ("val", "validation"), "testA": ("testA", "test")}
"""Names under which copies keep a split, the right one first."""
IMAGE_ID = re.compile(r"COCO_train2014_0*(\d+)")


def files(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The Parquet and Arrow files of the first of these splits that has any, in order."""
    for name in names:
        found = [
            path
            for path in sorted(folder.rglob("*"))
            if path.suffix in (".parquet", ".arrow")
            and (path.parent.name == name or re.match(rf"{re.escape(name)}(?![A-Za-z])", path.name))
        ]
        if found:
            return found
    return []


def references(folder: Path, variant: str, split: str, images: Path) -> list[Reference]:
    """The references of a split, their images not yet read.

    Args:
        folder: what was downloaded, as it is.
        variant: the data set it is a copy of.
        split: by its name in the original.
        images: COCO's train2014, for the layout that holds no images.

    Raises:
        ValueError: no such split here, another layout, or pyarrow is missing.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{folder} must be read by pyarrow, but it is not installed; pip install pyarrow"
        ) from error
    found = files(folder, CALLED.get(split, (split,)))
    if not found:
        none = "; lmms-lab's copies have no train: take jxu124's or the original files"
        raise ValueError(
            f"split {split!r} of {variant} must have files, but {folder} has none"
            + (none if split == "train" else "")
        )
    called_test = split == "testA" and not files(folder, ("testA",))
    out: list[Reference] = []
    for source, row in _rows(found):
        out.append(_reference(source, row, len(out), images, folder))
    if called_test and out and isinstance(out[0].source, Stored):
        raise ValueError(
            f"split testA must have files of its own, but {folder} has only test, which in "
            "lmms-lab's RefCOCO is Google's and no testA; get testA too"
        )
    return out


def _rows(paths: list[Path]) -> Iterator[tuple[Stored, dict[str, Any]]]:
    """Every row without its image, and where that is."""
    import pyarrow
    from pyarrow import parquet

    for path in paths:
        try:
            if path.suffix == ".arrow":
                yield from _arrow_rows(path)
                continue
            with parquet.ParquetFile(path) as file:
                columns = [name for name in file.schema_arrow.names if name != "image"]
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=columns)
                    for row, values in enumerate(table.to_pylist()):
                        yield Stored(path, group, row, "image"), values
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"{path} must be a Parquet or Arrow file, but cannot be read ({error}); get it anew"
            ) from error


def _arrow_rows(path: Path) -> Iterator[tuple[Stored, dict[str, Any]]]:
    """As `_rows`, from what `datasets` writes with save_to_disk: a stream of batches."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        for group, batch in enumerate(pyarrow.ipc.open_stream(file)):
            names = [name for name in batch.schema.names if name != "image"]
            for row, values in enumerate(batch.select(names).to_pylist()):
                yield Stored(path, group, row, "image"), values


def _reference(
    stored: Stored, row: dict[str, Any], number: int, images: Path, folder: Path
) -> Reference:
    try:
        if "raw_anns" in row:
            annotation, photo = json.loads(row["raw_anns"]), json.loads(row["raw_image_info"])
            x1, y1, x2, y2 = map(float, row["bbox"])
            return Reference(
                row["ref_id"], row["image_id"],
                tuple((s["sent_id"], s["sent"]) for s in row["sentences"]),
                (x1, y1, x2, y2), annotation["segmentation"], images / Path(row["image_path"]).name,
                (int(photo["height"]), int(photo["width"])),
            )  # fmt: skip
        texts = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        parts = row.get("segmentation")
        if parts and not isinstance(parts[0], list):
            parts = [parts]
        name = IMAGE_ID.search(row["file_name"])
        if name is None:
            raise KeyError(row["file_name"])
        return Reference(
            number, int(name[1]), tuple((100 * number + i, t) for i, t in enumerate(texts)),
            xyxy(row["bbox"]), parts, stored, None,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder} must hold RefCOCO in the layout of jxu124 or lmms-lab, but {stored} does "
            f"not ({type(error).__name__}: {error})"
        ) from error
