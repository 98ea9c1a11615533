"""Data sets of one's own: a JSONL file of image, expression, box and mask, or a COCO-style one.

    {"image": "photos/1.jpg", "expression": "the red mug", "box": [x1, y1, x2, y2]}
    {"image": "photos/1.jpg", "expression": "left cup", "bbox": [x, y, width, height]}
    {"image": "photos/2.jpg", "expression": "a dog", "segmentation": ..., "mask": "masks/2.png"}
    {"image": "photos/2.jpg", "expression": "two dogs", "boxes": [[x1, y1, x2, y2], ...]}

Of box, bbox, boxes (of each object where several are meant), segmentation (COCO polygons or runs)
and mask (a picture) one is enough, or none: discovery needs no truth. image_id, id, kind (several
with commas between) and split may be told. A COCO-style file has images (id, file_name, width,
height) and annotations (image_id, expression, bbox, segmentation). Paths are from the file's
folder. Lines of one image need not follow one another.

Pixels are those of the image as it is shown: turned as its EXIF data says, unless width and height
are told which it only has as it is stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastground.datasets import masks
from fastground.datasets.annotated import AnnotatedImage, Box, Phrase, around, xyxy
from fastground.datasets.files import by_id, needed, read_json
from fastground.metrics import box_iou

WAYS = {"box": "[x1, y1, x2, y2]", "bbox": "[x, y, width, height]"}
FORM = 'a line is {"image": "1.jpg", "expression": "the red mug", "box": [x1, y1, x2, y2]}'


def annotated_images(
    data: str | Path, split: str = "train", *, images: str | Path | None = None
) -> list[AnnotatedImage]:
    """The images of a file, in the order in which they are first named.

    Args:
        data: a .jsonl or COCO-style .json file, or a folder that holds SPLIT.jsonl or SPLIT.json.
        split: of the folder; of a file, keeps the lines of that split where they tell one.
        images: the folder from which paths are; the file's own unless given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line of another form, an id twice, or no line of this split.
    """
    path = Path(data)
    if path.is_dir():
        path = needed([path / f"{split}.jsonl", path / f"{split}.json"], f"split {split!r}", FORM)
    needed([path], "data", FORM)
    root = path.parent if images is None else Path(images)
    records = _coco(path) if path.suffix == ".json" else _lines(path)
    named: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    ids: set[Any] = set()
    for where, record in records:
        if not isinstance(record, dict) or not {"image", "expression"} <= record.keys():
            raise ValueError(f"{where} must have an image and an expression, but has not; {FORM}")
        for name in ("image", "expression"):
            if not isinstance(record[name], str):
                raise ValueError(f"{where} must have a text as {name}, but has {record[name]!r}")
        if record.get("split", split) != split:
            continue
        if "id" in record:
            if record["id"] in ids:
                raise ValueError(f"{where} must have its own id, but {record['id']!r} is twice")
            ids.add(record["id"])
        named.setdefault(str(root / record["image"]), []).append((where, record))
    if not named:
        raise ValueError(f"split {split!r} must have lines, but {path} has none of it")
    # Numbers given here beside ids given there could be the same.
    whole = len(ids) == sum(map(len, named.values())) and all(isinstance(i, int) for i in ids)
    found: list[AnnotatedImage] = []
    number = 0
    for name, members in named.items():
        phrases = []
        for where, record in members:
            phrases.append(_phrase(where, record, number, root, whole))
            number += 1
        first = members[0][1]
        image_id = first.get("image_id")
        size = (first["height"], first["width"]) if {"height", "width"} <= first.keys() else None
        image_id = image_id if isinstance(image_id, int) else len(found)
        found.append(AnnotatedImage(Path(name), image_id, tuple(phrases), size, upright=True))
    if len({image.image_id for image in found}) != len(found):
        raise ValueError(
            f"{path} must give every image an image_id of its own, but gives one twice"
        )
    return found


def _lines(path: Path) -> list[tuple[str, Any]]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                found.append((f"{path}, line {number},", json.loads(line)))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}, must be JSON, but {error}") from error
    return found


def _coco(path: Path) -> list[tuple[str, Any]]:
    """A COCO-style file as the lines that would say the same."""
    whole = read_json(path)
    try:
        images = by_id(whole["images"], "id", path, "image")
        found = []
        for number, annotation in enumerate(whole["annotations"]):
            image = images[annotation["image_id"]]
            where = f"{path}, annotation {annotation.get('id', number)},"
            facts = {k: image[k] for k in ("height", "width") if k in image}
            found.append((where, {"image": image["file_name"], **facts, **annotation}))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must have images (id, file_name) and annotations (image_id, expression, "
            f"bbox), but something is missing: {type(error).__name__} {error}"
        ) from error
    return found


def _phrase(where: str, record: dict[str, Any], number: int, root: Path, whole: bool) -> Phrase:
    box: Box | None = None
    try:
        boxes = tuple(map(_corners, record.get("boxes") or ()))
        if record.get("box") is not None:
            box = _corners(record["box"])
        elif record.get("bbox") is not None:
            box = xyxy(record["bbox"])
        elif boxes:
            box = around(boxes)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where} must have four numbers as box or bbox, and as each of boxes ({error})"
        ) from error
    draw: Callable[[tuple[int, int]], masks.Drawn] | None = None
    if record.get("segmentation"):
        draw = partial(masks.coco, record["segmentation"])
    elif record.get("mask") is not None:
        draw = partial(masks.picture, root / str(record["mask"]))
    name = "bbox" if record.get("box") is None else "box"
    if draw is not None and record.get(name) is not None:
        draw = partial(_drawn_beside, draw, name, _corners(record[name]))
    sample_id = record["id"] if whole and "id" in record else number
    kind = str(record.get("kind") or "")
    return Phrase(record["expression"], sample_id, box, draw, kind, boxes=boxes)


def _corners(numbers: Any) -> Box:
    x1, y1, x2, y2 = map(float, numbers)
    return x1, y1, x2, y2


def _drawn_beside(
    draw: Callable[[tuple[int, int]], masks.Drawn], name: str, numbers: Box, size: tuple[int, int]
) -> masks.Drawn:
    """The mask, which shows whether the box beside it is written in the other way.

    Raises:
        ValueError: it is; or the mask cannot be drawn.
    """
    drawn = draw(size)
    if drawn.mask.any():
        fits = {
            way: float(box_iou(corners, masks.box_of(drawn.mask)))
            for way, corners in (("box", numbers), ("bbox", xyxy(numbers)))
        }
        other = "bbox" if name == "box" else "box"
        if fits[other] > 0.9 and fits[name] < 0.5:
            raise ValueError(
                f"{name} must be {WAYS[name]}, but {list(numbers)} is {WAYS[other]} by its mask; "
                f"call it {other}"
            )
    return drawn
