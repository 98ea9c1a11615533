"""Panoptic Narrative Grounding: the noun phrases of a caption, each with the segments it names.

    DATA/annotations/png_coco_val2017.json         captions: phrases with segment ids
         annotations/panoptic_val2017.json         which picture, which category a segment is of
         annotations/panoptic_segmentation/val2017/000000000139.png    colours number the segments
         images/val2017/000000000139.jpg

Every phrase with segments is a sample: its mask is their union, its box that mask's. The kind says
how it is counted: thing or stuff, by its first segment, and singular or plural, by the file's flag.
(F-LMM goes by the flag, too, and has every plural a thing; the benchmark's own program goes by the
number of segments, and by the last of them.) The expression is a `phrases.Phrase`, asked in its
place in the caption:

    In this picture we can see two dogs. Behind them there is grass.      caption
                               |------|                      |---|        expressions

With in_place=False it is the phrase alone.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from fastground.datasets import masks
from fastground.datasets.annotated import AnnotatedImage, Phrase
from fastground.datasets.files import by_id, needed, one_of, read_json
from fastground.phrases import Phrase as InPlace

SPLITS = ("train", "val")
FROM = (
    "get it from https://bcv-uniandes.github.io/panoptic-narrative-grounding, and COCO's 2017 "
    "images and panoptic annotations from https://cocodataset.org/#download"
)


def annotated_images(
    data: str | Path, split: str = "val", *, in_place: bool = True
) -> list[AnnotatedImage]:
    """The images of a split, in the order of the file, with their phrases.

    Args:
        data: the folder that holds annotations and images.
        split: train or val.
        in_place: whether the model is to read the whole caption, or the phrase alone.

    Raises:
        FileNotFoundError: a file is missing; says which, and where to get it.
        ValueError: an unknown split, a file of another form, a duplicate id, an unknown segment.
    """
    year = one_of(split, SPLITS, "png") + "2017"
    notes = Path(data) / "annotations"
    captions_path = needed([notes / f"png_coco_{year}.json"], "captions", FROM)
    panoptic_path = needed([notes / f"panoptic_{year}.json"], "panoptic annotations", FROM)
    pictures = needed(
        [notes / "panoptic_segmentation" / year, notes / f"panoptic_{year}"], "segments", FROM
    )
    photos = needed([Path(data) / "images" / year, Path(data) / year], "images", FROM)
    captions, panoptic = read_json(captions_path), read_json(panoptic_path)
    try:
        categories = by_id(panoptic["categories"], "id", panoptic_path, "category")
        segments = by_id(panoptic["annotations"], "image_id", panoptic_path, "image")
        sizes = by_id(panoptic["images"], "id", panoptic_path, "image")
        groups: dict[int, list[Phrase]] = {}
        number = 0
        for caption in captions:
            image_id = int(caption["image_id"])
            of_image = by_id(segments[image_id]["segments_info"], "id", panoptic_path, "segment")
            picture = pictures / segments[image_id]["file_name"]
            parts = caption["segments"]
            told = [part["utterance"] for part in parts]
            expressions = _in_place(told, caption.get("caption", "")) if in_place else told
            for part, expression in zip(parts, expressions, strict=True):
                ids = tuple(int(i) for i in part["segment_ids"])
                if ids:
                    phrase = Phrase(
                        expression, number, None, partial(masks.panoptic, picture, ids),
                        _kind(part, categories[of_image[ids[0]]["category_id"]]),
                    )  # fmt: skip
                    groups.setdefault(image_id, []).append(phrase)
                    number += 1
        return [
            AnnotatedImage(
                photos / Path(segments[i]["file_name"]).with_suffix(".jpg").name, i,
                tuple(phrases), (int(sizes[i]["height"]), int(sizes[i]["width"])),
            )
            for i, phrases in groups.items()
        ]  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{captions_path} and {panoptic_path.name} must be PNG's, but something is missing: "
            f"{type(error).__name__} {error}; {FROM}"
        ) from error


def _in_place(told: list[str], caption: str) -> list[str]:
    """The utterances, each in its place in the caption, which has them in this order.

    Where it does not have them, it is taken for these utterances with a space between.
    """
    for text in (caption, " ".join(told)):
        placed: list[str] = []
        end = 0
        for words in told:
            start = text.find(words, end)
            if start < 0:
                break
            end = start + len(words)
            placed.append(InPlace(text, start, end) if words.strip() else words)
        else:
            return placed
    raise AssertionError("joined words are in their own text")


def _kind(part: dict[str, Any], category: dict[str, Any]) -> str:
    number = "plural" if part["plural"] else "singular"
    return f"{'thing' if category['isthing'] else 'stuff'}, {number}"
