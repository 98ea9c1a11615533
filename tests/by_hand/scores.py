"""Groundings beside the truth: a row a sample; scores of rows."""

import itertools
import math

import numpy as np

from by_hand.look import inside


def iou(a, b):
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - across * down
    return across * down / area if area else 0.0


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def tight(mask):
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def peak(combined, place, recipe):
    """x, y in pixels: the centre of the highest cell."""
    if recipe.padding == "exclude":
        combined = np.where(inside(place, combined.shape), combined, -math.inf)
    row, column = np.unravel_index(combined.argmax(), combined.shape)
    (_, (cell_x, cell_y), (left, top)) = place
    return left + cell_x * (column + 0.5), top + cell_y * (row + 0.5)


def matched(boxes, truths):
    """How many of the boxes, the surest first, take an object of their own."""
    left = list(truths)
    for box in boxes:
        reached = [t for t in left if iou(box, t) >= 0.5]
        if reached:
            left.remove(max(reversed(reached), key=lambda t: iou(box, t)))  # of equals the last
    return len(truths) - len(left)


def box_of(one, recipe):
    if recipe.box_from == "mask" and one.mask.any():
        return tight(one.mask)
    return one.box


def united(objects, recipe):
    """All objects of an expression as one: their masks, the boxes around theirs and the map's."""
    boxes = [[box_of(o, recipe) for o in objects], [o.box for o in objects]]
    around = [np.concatenate([np.min(b, 0)[:2], np.max(b, 0)[2:]]) for b in boxes]
    return np.any([o.mask for o in objects], 0), *around


def row(sample, combined, kept, others, place, recipe, unite=False):
    """What one sample gives, by the names of the columns that fastground keeps."""
    nothing = np.zeros(place.size, bool)
    objects = [o for o in ([] if recipe.region == "all" and others else [kept]) + others if o]
    objects.sort(key=lambda o: -o.mass)
    mask, box, map_box = nothing, np.zeros(4), np.zeros(4)
    if kept is not None:
        mask, box, map_box = kept.mask, box_of(kept, recipe), kept.box
    if unite and objects:
        mask, box, map_box = united(objects, recipe)
    mask_box = tight(mask) if mask.any() else map_box
    there = sample.mask is not None
    truth, counts = sample.mask if there else nothing, True
    if sample.ignore is not None:
        counts = ~sample.ignore
    x, y = peak(combined, place, recipe)
    (height, width), (i, j) = place.size, (math.floor(y), math.floor(x))
    told = bool(sample.boxes)
    right = matched([box_of(o, recipe) for o in objects], sample.boxes)
    return {
        "truths": [math.nan] * 4 if sample.box is None else sample.box,
        "boxes": box,
        "map_boxes": map_box,
        "mask_boxes": mask_box,
        "peaks": (x, y),
        "hits": 0 <= i < height and 0 <= j < width and truth[i, j] if truth.any() else -1,
        "intersections": (mask & truth & counts).sum() if there else -1,
        "unions": ((mask | truth) & counts).sum() if there else -1,
        "truth_areas": truth.sum() if there else area(sample.box),
        "objects": len(sample.boxes) if told else -1,
        "objects_found": len(objects) if told else -1,
        "objects_right": right if told else -1,
    }


def average_recall(overlaps):
    """PNG's: the area under the share of samples that reach an IoU threshold, over [0, 1)."""
    steps = np.arange(100_000) / 100_000
    reached = len(overlaps) - np.searchsorted(np.sort(overlaps), steps, side="left")
    return float(np.mean(reached / len(overlaps)))


def hit_rate(boxes, truths):
    """Acc@0.5 of those with a true box; what was not found, or said, is a miss."""
    hits = [
        not np.isnan(box[0]) and iou(box, truth) >= 0.5
        for box, truth in zip(boxes, truths, strict=True)
        if not np.isnan(truth[0])
    ]
    return np.mean(hits) if hits else math.nan


def scores(rows):
    """Of rows, by the names that fastground gives them; ratios are of sums."""
    truths = [r["truths"] for r in rows]
    boxed = [r for r in rows if not np.isnan(r["truths"][0])]
    overlaps = [iou(r["boxes"], r["truths"]) for r in boxed]
    masked = [r for r in rows if r["unions"] >= 0]
    pointed = [r["hits"] for r in rows if r["hits"] >= 0]

    def mean(values):
        return float(np.mean(values)) if len(values) else math.nan

    def ratio(part, whole, empty=math.nan):
        over = [r for r in rows if r[whole] >= 0]
        total = sum(r[whole] for r in over)
        return sum(r[part] for r in over) / total if total else empty

    def each(empty):
        return [r["intersections"] / r["unions"] if r["unions"] else empty for r in masked]

    return {
        "num_samples": len(rows),
        "accuracy": hit_rate([r["boxes"] for r in rows], truths),
        "by_box": {
            name: hit_rate([r[f"{name}_boxes"] for r in rows], truths) for name in ("map", "mask")
        },
        "mean_iou": mean(overlaps),
        "pointing": mean(pointed),
        "ciou": ratio("intersections", "unions", empty=1.0 if masked else math.nan),
        "giou": mean(each(1.0)),
        "average_recall": average_recall(each(0.0)) if masked else math.nan,
        "object_recall": ratio("objects_right", "objects"),
        "object_precision": ratio("objects_right", "objects_found"),
    }


def parts(samples, rows):
    """By what and by name, which rows a part has."""
    areas = np.array([r["truth_areas"] for r in rows])
    there, shares = areas > 0, areas / [s.image.width * s.image.height for s in samples]
    ends = np.quantile(shares[there], [0, 1 / 3, 2 / 3, 1]) if there.any() else [0] * 4
    kinds = [set(s.kind.split(", ")) - {""} for s in samples]
    return {
        "kind": {name: np.array([name in k for k in kinds]) for name in set().union(*kinds)},
        "size": {
            "small": there & (areas < 32**2),
            "medium": (areas >= 32**2) & (areas <= 96**2),
            "large": areas > 96**2,
        },
        "third": {
            "smallest third": there & (shares <= ends[1]),
            "middle third": there & (shares > ends[1]) & (shares <= ends[2]),
            "largest third": there & (shares > ends[2]),
        },
        "sentence": {"first": np.array([s.first for s in samples])},
    }


def every_draw(values, weights, images):
    """A mean, or a ratio of sums, of every way to draw as many images as there are, in order."""
    groups = sorted(set(images))
    of = [[sum(v[np.array(images) == g]) for g in groups] for v in map(np.array, (values, weights))]
    draws = np.array(list(itertools.product(range(len(groups)), repeat=len(groups))))
    above, below = (np.array(each)[draws].sum(1) for each in of)
    return np.sort(np.divide(above, below, out=np.ones(len(draws)), where=below > 0))


def outside(interval, draws):
    """How many of all draws lie below an interval, and how many above: where it is right, 2.5 % of
    them each, as far as equal ones allow; (least, most) for either end."""
    low, high = (np.searchsorted(draws, end - 1e-9) / len(draws) for end in interval)
    low_too, high_too = (np.searchsorted(draws, end + 1e-9) / len(draws) for end in interval)
    return (low, low_too), (1 - high_too, 1 - high)
