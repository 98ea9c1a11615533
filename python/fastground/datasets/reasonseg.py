"""ReasonSeg: an image, a question whose answer must be reasoned out, and labelled polygons.

    DATA/val/123.jpg
         val/123.json    {"text": [...], "is_sentence": true, "shapes": [{"label", "points"}, ...]}

A long query is a sentence, a short one a phrase. Of several texts the first is the query, as
published scores take it. How the polygons become a mask: `masks.labelled`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fastground.datasets import masks
from fastground.datasets.annotated import AnnotatedImage, Phrase
from fastground.datasets.files import needed, one_of, read_json

SIZES = {"train": 239, "val": 200, "test": 779}
"""Images."""
SENTENCES = ("first", "all")
FROM = "get train.zip, val.zip and test.zip of ReasonSeg: https://github.com/dvlab-research/LISA"


def annotated_images(
    data: str | Path, split: str = "val", *, sentences: str = "first", check_sizes: bool = True
) -> list[AnnotatedImage]:
    """The images of a split by name, each with its query and a mask; the box is the mask's.

    Args:
        data: the folder that holds train, val and test.
        split: one of these.
        sentences: the first text of each image, or all.
        check_sizes: refuse a split that has not as many images as it should.

    Raises:
        FileNotFoundError: no such folder, or an image is missing.
        ValueError: an unknown split or choice, a JSON file of another form, or another number of
            images.
    """
    one_of(split, SIZES, "reasonseg")
    if sentences not in SENTENCES:
        raise ValueError(f"sentences must be first or all, but got {sentences!r}")
    folder = needed([Path(data) / split], f"ReasonSeg's {split}", FROM)
    found: list[AnnotatedImage] = []
    number = 0
    for path in sorted(folder.glob("*.json")):
        facts = read_json(path)
        photo = needed([path.with_suffix(s) for s in (".jpg", ".jpeg", ".png")], "image", FROM)
        try:
            texts = [facts["text"]] if isinstance(facts["text"], str) else list(facts["text"])
            polygons = tuple((str(s["label"]), s["points"]) for s in facts["shapes"])
            kind = "long query" if facts["is_sentence"] else "short query"
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path} must have text, is_sentence and shapes, but has not "
                f"({type(error).__name__}: {error}); {FROM}"
            ) from error
        draw = partial(masks.labelled, polygons)
        phrases = tuple(
            Phrase(str(text), number + i, None, draw, kind, first=i == 0)
            for i, text in enumerate(texts[: 1 if sentences == "first" else None])
        )
        number += len(phrases)
        found.append(AnnotatedImage(photo, len(found), phrases))
    if check_sizes and len(found) != SIZES[split]:
        raise ValueError(
            f"reasonseg {split} must have {SIZES[split]} images, but {folder} has {len(found)}; "
            f"{FROM}, or take it as it is with check_sizes=False (--option check_sizes=false)"
        )
    return found
