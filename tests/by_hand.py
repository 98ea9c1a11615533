"""The method a second time, from its description alone: plain, slow, one thing at a time.

    look -> statistics -> elbow, kept, elect -> ranking          discovery
    look -> cleared -> smooth -> regions -> found                grounding
    found beside a sample -> row -> scores                       evaluation

float64 NumPy, SciPy's labels, OpenCV's hulls, the model's own eager attention; no line is shared
with fastground. Maps are (layers, heads, grid_h, grid_w); a head is (layer, head), both 0-based.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
import scipy.ndimage
import scipy.signal
import torch
from PIL import Image

EPS = 1e-3


class Place(NamedTuple):
    """Where the cells of a map lie in the image, in pixels."""

    size: tuple[int, int]  # (height, width)
    cell: tuple[float, float]  # (x, y)
    origin: tuple[float, float]  # (x, y) of the grid's corner


class View(NamedTuple):
    """What the asking token sees of an image."""

    maps: np.ndarray
    sums: np.ndarray  # (layers, heads): its attention on all of the image's tokens
    place: Place


class Found(NamedTuple):
    """An object in an image."""

    box: np.ndarray  # x1, y1, x2, y2 in pixels
    mask: np.ndarray
    score: float
    mass: float
    share: float  # of the attention of all foreground


# One expression -> maps. Families: "llava" pads an image to a square, "qwen" resizes it to whole
# cells, "next" squeezes it to a square and sees it once more in tiles.


def squeezed(image, grid):
    (width, height), (rows, columns) = image.size, grid
    return Place((height, width), (width / columns, height / rows), (0.0, 0.0))


def llava(image, made, count, blocks):
    side, cells = max(image.size), math.isqrt(count)
    left, top = ((side - length) // 2 for length in image.size)
    place = Place(image.size[::-1], (side / cells, side / cells), (-left, -top))
    return (cells, cells), range(count), place


def qwen(image, made, count, blocks):
    _, rows, columns = (int(n) for n in made["image_grid_thw"][0])
    grid = rows // 2, columns // 2  # patches are merged two by two
    return grid, range(count), squeezed(image, grid)


def llava_next(image, made, count, blocks, *, base=4, pixels=4):
    """The base's 4 x 4 cells, then lines of the tiles' cells, each with a token more at its end."""
    if blocks == "base":
        return (base, base), range(base * base), squeezed(image, (base, base))
    (width, height), side = image.size, base * pixels

    def fits(canvas):  # the most of the image's own pixels, then the least waste
        factor = min(canvas[0] / height, canvas[1] / width)
        seen = min(int(height * factor) * int(width * factor), height * width)
        return seen, -(canvas[0] * canvas[1] - seen)

    shapes = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    canvas = max(((side * rows, side * columns) for rows, columns in shapes), key=fits)
    if canvas[1] / width < canvas[0] / height:
        new = min(math.ceil(height * canvas[1] / width), canvas[0]), canvas[1]
    else:
        new = canvas[0], min(math.ceil(width * canvas[0] / height), canvas[1])
    grid, cut = [n // pixels for n in canvas], [0, 0]
    axis = 0 if width / height > grid[1] / grid[0] else 1  # along which the canvas was padded
    long = (height, width)[axis] * grid[1 - axis] / (height, width)[1 - axis]
    cut[axis] = (grid[axis] - int(round(long, 7))) // 2
    grid[axis] -= 2 * cut[axis]
    scale = width / new[1], height / new[0]
    pad = [(canvas[1] - new[1]) // 2, (canvas[0] - new[0]) // 2]
    origin = tuple((cut[1 - i] * pixels - pad[i]) * scale[i] for i in (0, 1))
    place = Place((height, width), (pixels * scale[0], pixels * scale[1]), origin)
    picks = [base * base + i * (grid[1] + 1) + j for i in range(grid[0]) for j in range(grid[1])]
    return tuple(grid), picks, place


FAMILIES = {"llava": llava, "qwen2_5_vl": qwen, "llava_next": llava_next}


def prompt_of(processor, mark, text, template):
    if template == "plain":
        return f"{mark}\n{text}"
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


@torch.no_grad()
def look(model, processor, family, image, expression, recipe):
    """The View of one expression, by a forward of its own that keeps all attention."""
    text = expression.strip()
    if recipe.ensure_period and not text.endswith("."):
        text += "."
    mark = processor.image_token
    if family == "qwen2_5_vl":
        mark = f"<|vision_start|>{mark}<|vision_end|>"
    prompt = prompt_of(processor, mark, text, recipe.template)
    inputs = dict(processor(images=[image], text=[prompt], return_tensors="pt"))
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    words = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = inputs["input_ids"][0].tolist()
    (start,) = (i for i in range(len(ids)) if ids[i : i + len(words)] == words)
    rows = {
        "last_expression": [start + len(words) - 1],
        "last_prompt": [len(ids) - 1],
        "phrase_mean": range(start, start + len(words)),
        "first_generated": [len(ids)],
    }[recipe.query]
    if recipe.query == "first_generated":
        said = model(**inputs).logits[0, -1].argmax()
        for name, new in {"input_ids": said, "attention_mask": 1, "mm_token_type_ids": 0}.items():
            if name in inputs:
                longer = torch.nn.functional.pad(inputs[name], (0, 1))
                longer[0, -1] = new
                inputs[name] = longer
    attention = model(**inputs, output_attentions=True).attentions
    seen = np.stack([layer[0][:, list(rows)].mean(1).numpy() for layer in attention])
    image_tokens = np.flatnonzero(np.array(ids) == model.config.image_token_id)
    grid, picks, place = FAMILIES[family](image, inputs, len(image_tokens), recipe.blocks)
    maps = seen[..., image_tokens[list(picks)]].reshape(*seen.shape[:2], *grid)
    return View(maps, seen[..., image_tokens].sum(-1), place)


# One map -> its numbers.


def inside(place, grid):
    """(grid_h, grid_w) the cells that are no padding: their centre is not outside the image."""
    (height, width), (cell_x, cell_y), (left, top) = place
    y = np.round(top + cell_y * (np.arange(grid[0]) + 0.5), 6)
    x = np.round(left + cell_x * (np.arange(grid[1]) + 0.5), 6)
    return np.outer((y >= 0) & (y <= height), (x >= 0) & (x <= width))


def regions(mask):
    """8-connected regions in raster order of their first cells."""
    labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
    return sorted((labels == i + 1 for i in range(count)), key=lambda part: part.argmax())


def entropy(cells, recipe):
    if recipe.bottom_row is not None and cells[-1].max() > recipe.bottom_row:
        return math.inf
    mean = cells.mean()
    level = {"mean": mean, "mean+eps": mean + EPS, "2mean+eps": 2 * mean + EPS}[recipe.cut]
    parts = regions(cells > level)
    if not parts:
        return math.inf if recipe.empty == "inf" else 0.0
    over = np.ones_like(cells) if recipe.weight == "area" else cells - mean
    p = np.array([over[part].sum() for part in parts])
    p /= p.sum()
    return -float((p * np.log(p)).sum())


def statistics(view, recipe):
    """(layers, heads) each: attention sums and spatial entropies."""
    maps, sums = view.maps, view.sums
    if recipe.padding_stats == "exclude":
        valid = inside(view.place, maps.shape[2:])
        sums = sums - maps[..., ~valid].sum(-1)
        maps = maps[..., valid.any(1), :][..., valid.any(0)]
    return sums, np.array([[entropy(cells, recipe) for cells in layer] for layer in maps])


def ious(view, mask, ignore, recipe):
    """(layers, heads): of each binarized map, resized to the mask, with the mask."""
    valid = np.ones(view.maps.shape[2:], bool)
    if recipe.padding_stats == "exclude":
        valid = inside(view.place, valid.shape)
    counts = np.ones_like(mask) if ignore is None else ~ignore
    grid = view.maps.shape[2:]
    rows, columns = (np.floor(c).astype(int) for c in on_grid(view.place))
    out = np.zeros(view.maps.shape[:2])
    for head in np.ndindex(out.shape):
        cells = view.maps[head]
        mean = cells[valid].mean()
        level = {"mean": mean, "mean+eps": mean + EPS, "2mean+eps": 2 * mean + EPS}[recipe.cut]
        large = np.pad(valid & (cells > level), 1)[
            np.ix_(np.clip(rows, -1, grid[0]) + 1, np.clip(columns, -1, grid[1]) + 1)
        ]
        out[head] = (large & mask & counts).sum() / max(((large | mask) & counts).sum(), 1)
    return out


# Many samples -> heads.


def elbow(values, method):
    if not isinstance(method, str):
        return method
    curve = np.sort(np.ravel(values))
    place, height = np.linspace(0, 1, len(curve)), (curve - curve[0]) / np.ptp(curve)
    if method == "chord":
        bend = place - height
    else:
        sigma = max(1.0, len(curve) / 32)
        reach = min(len(curve) - 1, round(4 * sigma))
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        longer = np.pad(height, reach, "reflect", reflect_type="odd")
        slope = np.gradient(np.convolve(longer, taps / taps.sum(), "valid"), place)
        bend = np.gradient(slope, place) / (1 + slope**2) ** 1.5
    if bend.max() <= 1e-12:
        return curve[0]
    return curve[np.flatnonzero(bend > bend.max() - 1e-9)[0]]  # of equals the lowest


def kept(sums, recipe):
    """(layers, heads) bool: criterion 1, of one sample's sums or of the mean."""
    passed = np.ones(sums.shape, bool)
    if recipe.criteria == "both":
        passed = sums >= elbow(sums, recipe.elbow)
    passed[: recipe.skip_layers] = False
    return passed


def elect(sums, entropies, passed, recipe):
    """All heads that a sample may elect, best first, and what each is judged by."""
    value = -sums if recipe.criteria == "attention_sum" else entropies
    heads = [h for h in np.ndindex(sums.shape) if passed[h] and np.isfinite(value[h])]
    return sorted(heads, key=lambda h: (value[h], -sums[h], h)), value


def ranking(sums, entropies, recipe):
    """Of a table (samples, layers, heads): heads best first, how often each is elected, ties."""
    mean = sums.mean(0)
    votes, ties = np.zeros(mean.shape), 0
    for s, e in zip(sums, entropies, strict=True):
        heads, value = elect(s, e, kept(mean if recipe.scope == "mean" else s, recipe), recipe)
        for head in heads[: recipe.top_n]:
            votes[head] += 1
        border = [value[h] for h in heads[recipe.top_n - 1 : recipe.top_n + 1]]
        ties += len(border) == 2 and border[0] == border[1]
    by = mean if recipe.criteria == "attention_sum" else votes
    order = sorted(
        (h for h in np.ndindex(mean.shape) if mean[h] > 0),
        key=lambda h: (h[0] < recipe.skip_layers, -by[h], -mean[h], h),
    )
    return order, votes / len(sums), ties


def own_heads(sums, entropies, mean, recipe):
    """A sample's own k heads; where too few pass, those with the largest attention sum follow."""
    passed = kept(mean if recipe.scope == "mean" else sums, recipe)
    heads, _ = elect(sums, entropies, passed, recipe)
    rest = [h for h in np.ndindex(sums.shape) if h not in heads]
    rest.sort(key=lambda h: (h[0] < recipe.skip_layers, -sums[h], h))
    return (heads + rest)[: recipe.k]


# k maps -> boxes and masks.


def cleared(view, heads, generic, recipe):
    """The heads' maps without what they see whatever is asked."""
    out = []
    for layer, head in heads:
        cells, mean = view.maps[layer, head], view.maps[layer].mean(0)
        if recipe.sinks == "relative":
            ratio = cells / (generic.maps[layer, head] + 1e-3 * generic.maps[layer, head].mean())
            cells = ratio * cells.sum() / ratio.sum()
        elif recipe.sinks == "centre":
            cells = np.maximum(cells - mean, 0)
        elif recipe.sinks == "drop":
            cells = np.where(mean > recipe.sink_share * mean.sum(), 0, cells)
        out.append(cells)
    return out


def smooth(cells, recipe):
    if recipe.sigma == 0:
        return cells
    reach = recipe.kernel_size // 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / recipe.sigma) ** 2)
    taps /= taps.sum()
    border = {"reflect101": "reflect", "reflect": "symmetric"}[recipe.border]
    return scipy.signal.convolve2d(np.pad(cells, reach, border), np.outer(taps, taps), "valid")


def on_grid(place):
    """Where the centres of the image's rows and columns lie, in cells."""
    (height, width), (cell_x, cell_y), (left, top) = place
    return (np.arange(height) + 0.5 - top) / cell_y, (np.arange(width) + 0.5 - left) / cell_x


def hull(part):
    cells = np.argwhere(part)[:, ::-1]
    corners = np.concatenate([cells + corner for corner in np.ndindex(2, 2)]).astype(np.int32)
    return cv2.convexHull(corners)


def in_hull(part):
    """The cells whose centre lies in the convex hull of a region."""
    corners = hull(part)[:, 0]
    y, x = np.indices(part.shape) + 0.5
    sides = [
        (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])
        for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)
    ]
    return np.all(np.array(sides) >= 0, 0) | np.all(np.array(sides) <= 0, 0)


def found(maps, place, recipe):
    """The combined map; what is kept, or None; further objects, the largest share first."""
    combined = sum(smooth(cells, recipe) for cells in maps)
    counts = np.ones(combined.shape, bool)
    if recipe.padding == "exclude":
        counts = inside(place, combined.shape)
    mean = combined[counts].mean()
    foreground = counts & (combined > mean)
    parts = regions(foreground)
    if not parts:
        return combined, None, []
    size = {
        "hull": lambda part: cv2.contourArea(hull(part)),
        "component": np.sum,
        "mass": lambda part: combined[part].sum(),
        "all": np.sum,
    }[recipe.region]
    best = max(parts, key=lambda part: (size(part), combined[part].sum(), -part.argmax()))
    if recipe.region == "all":
        best = foreground

    def one(part):
        rows, columns = part.any(1).nonzero()[0], part.any(0).nonzero()[0]
        corners = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        (height, width), cell, origin = place
        box = corners * np.tile(cell, 2) + np.tile(origin, 2)
        box = np.clip(box, 0, [width, height, width, height])
        within = counts & (in_hull(part) if recipe.region == "hull" else part)
        outside = combined[counts & ~within]
        inner = combined[within]
        score = inner.mean() / outside.mean() if outside.any() else math.inf
        mass, share = inner.sum() / combined[counts].sum(), combined[part].sum()
        share /= combined[foreground].sum()
        return Found(box, pixels(part), score, mass, share)

    def pixels(part):
        y, x = on_grid(place)
        at = np.meshgrid(y - 0.5, x - 0.5, indexing="ij")
        large = scipy.ndimage.map_coordinates(combined, at, order=1, mode="nearest")
        i, j = np.floor(y).astype(int), np.floor(x).astype(int)
        there = np.outer((i >= 0) & (i < part.shape[0]), (j >= 0) & (j < part.shape[1]))
        cells = part[np.ix_(i.clip(0, part.shape[0] - 1), j.clip(0, part.shape[1] - 1))]
        return (large > mean) & cells & there

    others = []
    if recipe.objects is not None:
        others = [one(part) for part in parts if not np.array_equal(part, best)]
        others = [o for o in others if o.share >= recipe.objects]
    return combined, one(best), sorted(others, key=lambda o: -o.share)


# Groundings beside the truth.


def iou(a, b):
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - across * down
    return across * down / area if area else 0.0


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
            left.remove(max(reached, key=lambda t: iou(box, t)))
    return len(truths) - len(left)


def box_of(one, recipe):
    if recipe.box_from == "mask" and one.mask.any():
        return tight(one.mask)
    return one.box


def row(sample, combined, kept, others, place, recipe):
    """What one sample gives, by the names of the columns that fastground keeps."""
    nothing = np.zeros(place.size, bool)
    mask = nothing if kept is None else kept.mask
    box, map_box = [np.zeros(4)] * 2 if kept is None else (box_of(kept, recipe), kept.box)
    mask_box = tight(mask) if mask.any() else map_box
    truth, counts = sample.mask, ~(nothing if sample.ignore is None else sample.ignore)
    x, y = peak(combined, place, recipe)
    (height, width), (i, j) = place.size, (math.floor(y), math.floor(x))
    objects = [o for o in ([] if recipe.region == "all" and others else [kept]) + others if o]
    objects.sort(key=lambda o: -o.mass)
    told = bool(sample.boxes)
    return {
        "truths": [math.nan] * 4 if sample.box is None else sample.box,
        "boxes": box,
        "map_boxes": map_box,
        "mask_boxes": mask_box,
        "peaks": (x, y),
        "hits": 0 <= i < height and 0 <= j < width and truth[i, j] if truth.any() else -1,
        "intersections": (mask & truth & counts).sum(),
        "unions": ((mask | truth) & counts).sum(),
        "truth_areas": truth.sum(),
        "objects": len(sample.boxes) if told else -1,
        "objects_found": len(objects) if told else -1,
        "objects_right": matched([box_of(o, recipe) for o in objects], sample.boxes)
        if told
        else -1,
    }


def scores(rows):
    """Of rows, by the names that fastground gives them; ratios are of sums."""
    truths = [r for r in rows if not np.isnan(r["truths"][0])]
    overlaps = [iou(r["boxes"], r["truths"]) for r in truths]
    each = [r["intersections"] / r["unions"] if r["unions"] else 1.0 for r in rows]

    def ratio(part, whole, over=rows):
        over = [r for r in over if r[whole] >= 0]
        return sum(r[part] for r in over) / (sum(r[whole] for r in over) or math.nan)

    return {
        "num_samples": len(rows),
        "accuracy": np.mean([o >= 0.5 for o in overlaps]),
        "mean_iou": np.mean(overlaps),
        "pointing": np.mean([r["hits"] for r in rows if r["hits"] >= 0]),
        "ciou": ratio("intersections", "unions"),
        "giou": np.mean(each),
        "object_recall": ratio("objects_right", "objects"),
        "object_precision": ratio("objects_right", "objects_found"),
    }


def drawn_again(rows, images, draws=500):
    """Of each score the ends between which 95 % of it lie, images drawn anew."""
    rng, groups = np.random.default_rng(0), sorted(set(images))
    members = {g: [r for r, image in zip(rows, images, strict=True) if image == g] for g in groups}
    found = [
        scores([r for g in rng.choice(groups, len(groups)) for r in members[g]])
        for _ in range(draws)
    ]
    return {name: np.quantile([f[name] for f in found], [0.025, 0.975]) for name in found[0]}


def image_of(seed, size):
    """Noise of (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise)
