"""Shapes in RefCOCO's own file formats, so that all that reads RefCOCO can be run on them.

    DIR/refcoco/refs(unc).p       a pickle as Python 2 writes it
        refcoco/instances.json    images, annotations with polygons, categories
        refcoco/sizes.json        what each split holds, since it is not what RefCOCO's does
        train2014/COCO_train2014_000000000001.jpg

Images are shared among the splits about as RefCOCO's are. train and val are those of `shapes`, in
its order; testA and testB are the even and the odd scenes of its test.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from fastground.datasets.shapes import SHAPES, SIDE, expressions, mask_box, render, said, scene
from fastground.strict_json import dumps

SHARES = {"val": 0.075, "testA": 0.0375, "testB": 0.0375}
"""Of the images; train has the rest."""
SCENES = {
    "train": ("train", 1, 0),
    "val": ("val", 1, 0),
    "testA": ("test", 2, 0),
    "testB": ("test", 2, 1),
}
"""Split of `shapes`, step and start of its scenes."""
QUALITY = 95
NAME = "COCO_train2014_{:012d}"


def export(
    folder: str | Path,
    images: int = 200,
    per_image: float = 7.1,
    *,
    side: int = SIDE,
    seed: int = 0,
) -> dict[str, tuple[int, int, int]]:
    """Writes the files of a data set.

    Args:
        folder: to write into; it must not hold a refcoco yet.
        images: how many, of all splits together; at least one a split.
        per_image: expressions an image, on average, as far as a scene has them.
        side: height and width of an image in pixels.
        seed: another world of the same kind.

    Returns:
        For each split the number of images, references and expressions.

    Raises:
        ValueError: too few images or expressions, or there is a refcoco already.
    """
    folder = Path(folder)
    if images < len(SCENES):
        raise ValueError(f"images must be >= {len(SCENES)}, one a split, but got {images}")
    if not 1 <= per_image <= 1000 or side < 16:
        raise ValueError(
            f"per_image must be in [1, 1000] and side >= 16, but got {per_image} and {side}"
        )
    refs_path = folder / "refcoco" / "refs(unc).p"
    if refs_path.exists():
        raise ValueError(f"{refs_path} must not be there yet, or it would be lost; choose another")
    (folder / "train2014").mkdir(parents=True, exist_ok=True)
    refs_path.parent.mkdir(exist_ok=True)

    counts = {split: max(1, round(images * share)) for split, share in SHARES.items()}
    counts = {"train": images - sum(counts.values()), **counts}
    refs: list[dict[str, Any]] = []
    instances: dict[str, list[Any]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(SHAPES, 1)],
    }
    sizes = {}
    sentences = 0
    for split, count in counts.items():
        before = len(refs), sentences
        made = images_made = number = 0
        while images_made < count:
            quota = math.floor((images_made + 1) * per_image) - math.floor(images_made * per_image)
            found = _image(folder / "train2014", split, number, quota, made, side, seed, instances)
            number += 1
            images_made += bool(found)
            for target, texts in found.items():
                refs.append(_ref(len(refs), split, target, texts, sentences, instances))
                sentences += len(texts)
                made += len(texts)
        sizes[split] = (count, len(refs) - before[0], sentences - before[1])
    (refs_path.parent / "instances.json").write_text(dumps(instances, indent=None))
    (refs_path.parent / "sizes.json").write_text(dumps({refs_path.name: sizes}))
    refs_path.write_bytes(python2_pickle(refs))
    return sizes


def _image(
    folder: Path,
    split: str,
    number: int,
    quota: int,
    made: int,
    side: int,
    seed: int,
    instances: dict[str, list[Any]],
) -> dict[int, list[str]]:
    """Writes an image and its annotations, and returns what is said of each; none, nothing."""
    from PIL import Image

    source, step, start = SCENES[split]
    this, rng = scene(source, seed, start + step * number)
    texts = said(expressions(this), rng, quota, made)
    if not texts:  # every object has a double: a scene of which nothing can be said
        return {}
    pixels, masks = render(this, side)
    image_id = len(instances["images"]) + 1
    name = f"{NAME.format(image_id)}.jpg"
    Image.fromarray(pixels).save(folder / name, quality=QUALITY, subsampling=0)
    instances["images"].append(
        {"id": image_id, "file_name": name, "height": side, "width": side, "license": 0}
    )
    first = len(instances["annotations"]) + 1
    for i, (thing, mask) in enumerate(zip(this.things, masks, strict=True)):
        x1, y1, x2, y2 = mask_box(mask)
        instances["annotations"].append(
            {
                "id": first + i, "image_id": image_id, "iscrowd": 0,
                "category_id": SHAPES.index(thing.shape) + 1, "area": float(mask.sum()),
                "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": outlines(mask),
            }
        )  # fmt: skip
    found: dict[int, list[str]] = {}
    for _, target, text in texts:
        found.setdefault(first + target, []).append(text)
    return found


def _ref(
    ref_id: int, split: str, ann_id: int, texts: list[str], sent_id: int,
    instances: dict[str, list[Any]],
) -> dict[str, Any]:  # fmt: skip
    annotation = instances["annotations"][ann_id - 1]
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "split": split,
        "file_name": f"{NAME.format(annotation['image_id'])}_{ref_id}.jpg",
        "sent_ids": [sent_id + i for i in range(len(texts))],
        "sentences": [
            {"sent_id": sent_id + i, "raw": text, "sent": text, "tokens": text.split()}
            for i, text in enumerate(texts)
        ],
    }


def outlines(mask: np.ndarray) -> list[list[float]]:
    """A mask as COCO polygons along the edges of its pixels, one for each 4-connected part.

    A walk keeps the inside on its right. Where two parts touch at a corner it turns right too, and
    so stays with its part.

    Args:
        mask: (height, width) bool, without holes, which polygons of COCO cannot tell.

    Returns:
        For each part x, y, x, y, ...: its corners in pixels.
    """
    height, width = mask.shape
    padded = np.pad(mask, 1)
    edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (dx, dy), (ny, nx), (ox, oy) in (
        ((1, 0), (0, 1), (0, 0)),  # above a pixel, to the right
        ((0, 1), (1, 2), (1, 0)),  # right of it, down
        ((-1, 0), (2, 1), (1, 1)),  # below, to the left
        ((0, -1), (1, 0), (0, 1)),  # left, up
    ):
        beyond = padded[ny : ny + height, nx : nx + width]
        for y, x in np.argwhere(mask & ~beyond).tolist():
            edges.setdefault((x + ox, y + oy), []).append((dx, dy))
    parts = []
    while edges:
        place = next(p for p, ways in edges.items() if len(ways) == 1)  # of one part alone
        step, corners = (0, 0), []
        while place in edges:
            ways = edges[place]
            right = (-step[1], step[0])
            way = right if right in ways else ways[0]
            ways.remove(way)
            if not ways:
                del edges[place]
            if way != step:
                corners += [float(place[0]), float(place[1])]
            step, place = way, (place[0] + way[0], place[1] + way[1])
        parts.append(corners)
    return parts


def python2_pickle(value: Any) -> bytes:
    """Lists, dicts, strings and integers as Python 2 pickles them: protocol 0, strings of bytes."""
    out: list[bytes] = []

    def write(value: Any) -> None:
        if isinstance(value, list):
            out.append(b"(l")
            for item in value:
                write(item)
                out.append(b"a")
        elif isinstance(value, dict):
            out.append(b"(d")
            for key, item in value.items():
                write(key)
                write(item)
                out.append(b"s")
        elif isinstance(value, str):
            out.append(b"S" + repr(value.encode("latin-1"))[1:].encode("ascii") + b"\n")
        elif isinstance(value, int):
            out.append(b"I%d\n" % value)
        else:
            raise ValueError(f"value must be plain data, but got {type(value).__name__}")

    write(value)
    return b"".join(out) + b"."
