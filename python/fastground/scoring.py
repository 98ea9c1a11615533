"""Groundings beside the truth as columns, one row a sample; every score is made of these alone.

    sample, grounding --measured--> boxes, map_boxes, mask_boxes, truths, peaks, hits,
                                    intersections, unions, areas, kinds, firsts, ...
                      --encoded---> sentences, and the masks themselves, run-length encoded
    columns --scored--> Scores: of all samples, and of parts of them by kind, size, sentence

So whatever stopped a run, in whatever order its parts were made: the same rows, the same scores.
Where a sample lacks a truth its number is nan, or -1 in a column of integers. An empty true mask
says that there is no such object: nothing found has an empty union and counts 1 in the gIoU, all
that is found adds to the cIoU's unions and counts 0; no box is to be hit, nothing to be pointed at.

Source: of the empty mask, the evaluation of LISA (Lai et al., CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fastground.datasets.annotated import check_box
from fastground.grounding import mask_box, peaks
from fastground.metrics import (
    accuracy,
    average_recall,
    bootstrap_interval,
    box_iou,
    mask_overlap,
    mask_scores,
    matched,
    mean,
    points_inside,
    size_class,
)
from fastground.result import Grounding, rle
from fastground.types import Recipe, Sample

Columns = dict[str, np.ndarray]
THIRDS = ("smallest third", "middle third", "largest third")
NO_BOX = (float("nan"),) * 4
OBJECTS = ("objects", "objects_found", "objects_right")
OF_SETTINGS: dict[str, tuple[int, ...]] = {
    "boxes": (4,), "map_boxes": (4,), "mask_boxes": (4,), "peaks": (2,), "hits": (),
    "intersections": (), "unions": (), "found": (), "scores": (), "masses": (),
    "objects_found": (), "objects_right": (),
}  # fmt: skip
"""Columns that hang on how a sample is grounded, and the shape of each of their values."""


@dataclass(frozen=True)
class Part:
    """How well boxes and masks match the truth; nan where it is not known.

    Every interval is of 95 %, images resampled: the expressions of an image are no independent
    samples.
    """

    num_samples: int
    accuracy: float
    """Acc@0.5: share of expressions with a true box whose box has IoU >= 0.5; a box not found is a
    miss."""
    interval: tuple[float, float]
    """Of the accuracy."""
    by_box: dict[str, float]
    """Acc@0.5 of the map's box and of the mask's, whichever of them `Recipe.box_from` has taken."""
    mean_iou: float
    """Of the boxes."""
    pointing: float
    """Share whose combined map peaks inside the true mask."""
    ciou: float
    """Of the masks: sum of intersections over sum of unions."""
    ciou_interval: tuple[float, float]
    giou: float
    """Of the masks: mean of the samples; an empty union counts 1."""
    giou_interval: tuple[float, float]
    average_recall: float
    """Of the masks, over all IoU thresholds; an empty union counts 0."""
    object_recall: float
    """Where an expression means several objects: the share of these that a box of
    `Grounding.objects` matches with IoU >= 0.5, each box and each object once."""
    object_precision: float
    """Likewise the share of the boxes that match."""


@dataclass(frozen=True)
class TextBoxes:
    """The boxes that the model itself writes when it is asked for coordinates."""

    accuracy: float
    """Acc@0.5; a text that holds no box is a miss."""
    interval: tuple[float, float]
    parsed: float
    """Share of texts that hold a box."""


@dataclass(frozen=True)
class Scores(Part):
    """The scores of all samples, and of parts of them."""

    parts: dict[str, dict[str, Part]]
    """kind: what the expressions use, as attribute, long query, thing; size: COCO's small, medium,
    large; third: by share of the image; sentence: first, where others follow."""
    answer_accuracy: float
    """Share of questions that greedy decoding answers right, word for word."""
    text_boxes: TextBoxes | None
    """The text-box baseline, where it was asked for."""
    skipped: int = 0
    """How many samples beside these had no readable image."""
    without_object: int = 0
    """How many of the samples say what is not there: their true mask is empty."""

    @property
    def by_kind(self) -> dict[str, float]:
        """Acc@0.5 by what the expressions use."""
        return {name: part.accuracy for name, part in self.parts["kind"].items()}

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, as JSON keeps it."""
        return asdict(self)


def measured(samples: Sequence[Sample], found: Sequence[Grounding], recipe: Recipe) -> Columns:
    """The rows of one image's samples.

    Args:
        samples: n of them, with true boxes or masks.
        found: their groundings.
        recipe: padding is read, for the peaks.

    Returns:
        (n, ...) arrays by name: image_ids, kinds, firsts, sizes (height, width), truths, boxes,
        map_boxes and mask_boxes (n, 4), peaks (n, 2) x, y, hits, intersections and unions in
        pixels that count, truth_areas in pixels, found, scores and masses; what `counted` gives,
        of objects that are not united yet, completes them.

    Raises:
        ValueError: a sample without a box whose mask does not say that there is no object, a true
            box that does not lie in the image, or a mask of another size than the true one.
    """
    for sample, grounding in zip(samples, found, strict=True):
        if sample.box is None and (sample.mask is None or np.any(sample.mask)):
            raise ValueError(
                f"samples must have true boxes to be scored, but sample {sample.sample_id} "
                f"({sample.expression!r}) has none; leave it out, or give it one"
            )
        for box in (*([] if sample.box is None else [sample.box]), *sample.boxes):
            try:
                check_box(box, grounding.mask.shape)
            except ValueError as error:
                raise ValueError(f"{error} (sample {sample.sample_id})") from error
    rows = [_row(s, g, recipe) for s, g in zip(samples, found, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def counted(samples: Sequence[Sample], found: Sequence[Grounding], recipe: Recipe) -> Columns:
    """How many objects there are, are found and are right, where samples tell them apart.

    Args:
        samples: n of them.
        found: their groundings, of each the objects not yet united.
        recipe: region is read; with "all" what is kept is no object beside its parts.

    Returns:
        (n,) integers: objects, objects_found, objects_right; -1 where it is not known.
    """
    rows = []
    for sample, grounding in zip(samples, found, strict=True):
        surest = sorted(_objects(grounding, recipe), key=lambda one: -one.mass)
        boxes = [one.box.tolist() for one in surest]
        right = matched(boxes, sample.boxes)
        rows.append((len(sample.boxes), len(boxes), right) if sample.boxes else (-1, -1, -1))
    return dict(zip(OBJECTS, np.array(rows, dtype=np.int64).reshape(-1, 3).T, strict=True))


def _row(sample: Sample, grounding: Grounding, recipe: Recipe) -> dict[str, Any]:
    mask = grounding.mask.cpu()
    map_box = grounding.map_box.tolist()
    peak = peaks(grounding.map, grounding.layout, recipe).tolist()
    hit, area, (intersection, union) = -1, -1, (-1, -1)
    if sample.mask is not None:
        area = int(np.count_nonzero(sample.mask))
        hit = int(points_inside(peak, sample.mask)) if area else -1
        intersection, union = mask_overlap(mask, sample.mask, sample.ignore)
    return {
        "image_ids": sample.image_id,
        "kinds": sample.kind,
        "firsts": sample.first,
        "sizes": tuple(mask.shape),
        "truths": np.array(NO_BOX if sample.box is None else sample.box, dtype=np.float64),
        "boxes": grounding.box.tolist(),
        "map_boxes": map_box,
        "mask_boxes": mask_box(mask).tolist() if mask.any() else map_box,
        "peaks": peak,
        "hits": hit,
        "intersections": intersection,
        "unions": union,
        "truth_areas": area,
        "found": grounding.found,
        "scores": grounding.score,
        "masses": grounding.mass,
    }


def united(
    samples: Sequence[Sample], found: Sequence[Grounding], recipe: Recipe
) -> list[Grounding]:
    """The same groundings, all objects as one where a sample is of the kind plural.

    Args:
        samples: n of them.
        found: their groundings.
        recipe: region is read, as in `counted`.
    """
    return [
        _as_one(grounding, recipe) if "plural" in _kinds(sample.kind) else grounding
        for sample, grounding in zip(samples, found, strict=True)
    ]


def _objects(grounding: Grounding, recipe: Recipe) -> tuple[Grounding, ...]:
    parts = grounding.others if recipe.region == "all" else ()
    return parts or grounding.objects


def _as_one(grounding: Grounding, recipe: Recipe) -> Grounding:
    first, *rest = _objects(grounding, recipe) or (grounding,)
    one = replace(first, others=tuple(rest)).united()
    return replace(grounding, box=one.box, map_box=one.map_box, mask=one.mask, others=())


def _kinds(kind: str) -> set[str]:
    return set(filter(None, kind.split(", ")))


def encoded(samples: Sequence[Sample], found: Sequence[Grounding]) -> Columns:
    """What else a run keeps of these samples, so that other scores can be made of it.

    Args:
        samples: n of them.
        found: their groundings.

    Returns:
        (n,) arrays by name: sentences; masks, true_masks and ignored in COCO's run-length encoding
        of the image's size, empty where there is none; layers_heads (n, k, 2) of the heads used.

    Raises:
        ModuleNotFoundError: pycocotools is not installed.
    """
    return {
        "sentences": _texts(str(sample.expression) for sample in samples),
        "masks": _texts(g.to_rle()["counts"] for g in found),
        "true_masks": _texts(_runs(sample.mask) for sample in samples),
        "ignored": _texts(_runs(sample.ignore) for sample in samples),
        "layers_heads": np.array([g.heads for g in found]).reshape(len(found), -1, 2),
    }


def stacked(pieces: Sequence[Columns]) -> Columns:
    """The same samples' rows under several settings as one row each.

    Args:
        pieces: of each setting the columns that `measured` gives, (n, ...).

    Returns:
        By the same names: once what hangs on the sample alone, and (n, settings, ...) the others.
    """
    of_setting = {name: np.stack([p[name] for p in pieces], axis=1) for name in OF_SETTINGS}
    return pieces[0] | of_setting


def unstacked(columns: Columns, count: int) -> list[Columns]:
    """Of each of so many settings the columns that were stacked.

    Args:
        columns: as `stacked` gives them, or as a file has them: what has axes beside that of
            samples is flat there.
        count: of the settings.
    """
    n = len(columns["image_ids"])
    shaped = {
        name: columns[name].reshape(n, count, *shape)
        for name, shape in OF_SETTINGS.items()
        if name in columns
    }
    return [columns | {name: values[:, i] for name, values in shaped.items()} for i in range(count)]


def _texts(words: Any) -> np.ndarray:
    return np.array(list(words), dtype=object)


def _runs(mask: Any) -> str:
    return "" if mask is None else rle(mask)["counts"]


def scored(columns: Columns, seed: int = 0, *, skipped: int = 0) -> Scores:
    """The scores of these rows.

    Args:
        columns: as `measured` names them; with rights (1, 0, -1: not asked) and text_boxes (nan:
            no box) where the model was asked for these.
        seed: of the intervals.
        skipped: samples that have no row, since their image could not be read.

    Raises:
        ValueError: no rows.
    """
    if not columns or not len(columns["boxes"]):
        raise ValueError("samples must hold at least one sample, but are empty")
    everything = np.ones(len(columns["boxes"]), dtype=bool)
    parts = {
        of: {name: _part(columns, where, seed) for name, where in members.items() if where.any()}
        for of, members in _members(columns).items()
    }
    rights = columns.get("rights", np.full(len(everything), -1))
    texts = None
    if "text_boxes" in columns:
        boxed, written = _boxed(columns), columns["text_boxes"]
        parsed = np.asarray(np.isfinite(written).all(axis=1))
        hits = box_iou(np.nan_to_num(written[boxed]), columns["truths"][boxed]) >= 0.5
        hits &= parsed[boxed]
        interval = bootstrap_interval(hits, columns["image_ids"][boxed], seed=seed)
        texts = TextBoxes(mean(hits), interval, mean(parsed))
    return Scores(
        **vars(_part(columns, everything, seed)),
        parts=parts,
        answer_accuracy=mean(rights[rights >= 0]),
        text_boxes=texts,
        skipped=skipped,
        without_object=int((~_boxed(columns)).sum()),
    )


def _boxed(columns: Columns) -> np.ndarray:
    """(n,) bool: the rows with a true box."""
    return np.asarray(np.isfinite(columns["truths"]).all(axis=1))


def _members(columns: Columns) -> dict[str, dict[str, np.ndarray]]:
    """By what, and by name, the rows of each part."""
    of_each = [_kinds(kind) for kind in columns["kinds"].tolist()]
    named = sorted(set().union(*of_each))
    height, width = columns["sizes"].T
    x1, y1, x2, y2 = columns["truths"].T
    areas = np.where(columns["truth_areas"] >= 0, columns["truth_areas"], (x2 - x1) * (y2 - y1))
    sized = np.asarray(areas > 0)
    classes = np.where(sized, size_class(areas), "")
    shares = areas / (height * width)
    third = np.full(len(areas), -1)
    if sized.any():
        ends = np.quantile(shares[sized], (1 / 3, 2 / 3))
        third[sized] = np.searchsorted(ends, shares[sized])
    firsts = columns["firsts"]
    return {
        "kind": {name: np.array([name in own for own in of_each]) for name in named},
        "size": {name: classes == name for name in ("small", "medium", "large")},
        "third": {name: third == i for i, name in enumerate(THIRDS)},
        "sentence": {} if firsts.all() else {"first": firsts},
    }


def _part(columns: Columns, where: np.ndarray, seed: int) -> Part:
    boxed = where & _boxed(columns)
    ious, of_map, of_mask = (
        box_iou(columns[name][boxed], columns["truths"][boxed])
        for name in ("boxes", "map_boxes", "mask_boxes")
    )
    known = where & (columns["unions"] >= 0)
    inter, union = columns["intersections"][known], columns["unions"][known]
    each = np.divide(inter, union, out=np.ones(len(union)), where=union > 0)
    ciou, giou = mask_scores(inter, union)
    hits = columns["hits"][where]
    objects, told, right = (_sum(columns, name, where) for name in OBJECTS)
    mask_images = columns["image_ids"][known]
    return Part(
        num_samples=int(where.sum()),
        accuracy=accuracy(ious),
        interval=bootstrap_interval(ious >= 0.5, columns["image_ids"][boxed], seed=seed),
        by_box={"map": accuracy(of_map), "mask": accuracy(of_mask)},
        mean_iou=mean(ious),
        pointing=mean(hits[hits >= 0]),
        ciou=ciou,
        ciou_interval=bootstrap_interval(inter, mask_images, weights=union, seed=seed),
        giou=giou,
        giou_interval=bootstrap_interval(each, mask_images, seed=seed),
        average_recall=average_recall(np.where(union > 0, each, 0)),
        object_recall=right / objects if objects else float("nan"),
        object_precision=right / told if told else float("nan"),
    )


def _sum(columns: Columns, name: str, where: np.ndarray) -> int:
    """Of a column that counts, over the rows in which it does; a run of before may lack it."""
    return int(columns[name][where].clip(0).sum()) if name in columns else 0
