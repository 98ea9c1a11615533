"""Scores beside those made by hand: averages, parts, objects, unions and intervals.

Groundings of random maps on images of random shape, of which samples lack a box, a mask or an
object, count some pixels neither way, or mean several objects. Five images: of these every draw of
the bootstrap can be made.
"""

from dataclasses import replace
from random import Random

import by_hand
import fastground as fg
import numpy as np
import pytest
import torch
from fastground import grounding, segmentation
from fastground.recipe import CHOICES
from fastground.types import AttentionMaps, HeadId, ImageLayout, Sample
from PIL import Image

KINDS = ("thing, singular", "thing, plural", "stuff, singular", "stuff, plural", "short query", "")


def world(seed):
    """(samples, {expression: (maps, place)}): of random maps, cells and truths."""
    rng, random = np.random.default_rng(seed), Random(seed)
    samples, seen = [], {}
    for image_id in range(5):
        size = tuple(rng.integers(12, 150, 2).tolist())
        grid = tuple(rng.integers(2, 7, 2).tolist())
        cell = tuple((size[1 - i] / grid[1 - i] * rng.uniform(0.9, 1.4)) for i in (0, 1))
        origin = tuple(min(0.0, (size[1 - i] - cell[i] * grid[1 - i]) / 2) for i in (0, 1))
        place, image = by_hand.look.Place(size, cell, origin), Image.new("RGB", size[::-1])
        for _ in range(random.randint(1, 4)):
            text = f"number {len(samples)}"
            maps = rng.gamma(0.4, 1, (2, *grid)) / 50
            seen[text] = maps.astype(np.float32), place
            samples.append(sample_of(rng, random, image, text, image_id, len(samples)))
    return samples, seen


def sample_of(rng, random, image, text, image_id, number):
    size = image.size[::-1]

    def rectangle():
        mask = np.zeros(size, bool)
        (top, bottom), (left, right) = (np.sort(rng.choice(n + 1, 2, replace=False)) for n in size)
        mask[top:bottom, left:right] = True
        return mask

    parts = [rectangle() for _ in range(random.choice([1, 1, 2, 3]))]
    boxes = [tuple(map(float, by_hand.scores.tight(p))) for p in parts]
    mask = np.any(parts, 0)
    box = tuple(map(float, by_hand.scores.tight(mask)))
    ignore = rectangle() if random.random() < 0.3 else None
    kind, first = random.choice(KINDS), random.random() < 0.7
    told = {"boxes": tuple(boxes)} if len(boxes) > 1 and random.random() < 0.7 else {}
    lacks = random.choice(["", "", "", "mask", "object"])
    if lacks == "mask":
        mask = ignore = None
    if lacks == "object":
        mask, box, told = np.zeros(size, bool), None, {}
    return Sample(
        image, text, box, mask, image_id, number, kind, ignore=ignore, first=first, **told
    )


def grounder_of(seen, recipe):
    """Anything that takes an image and expressions, over these maps."""
    heads = (HeadId(2, 0), HeadId(2, 1))

    def one(text):
        maps, (size, cell, origin) = seen[text]
        grid, maps = maps.shape[1:], torch.tensor(maps)[None]
        layout = ImageLayout(grid, tuple(range(grid[0] * grid[1])), None, size, cell, origin)
        told = AttentionMaps(maps, maps.sum((2, 3)), heads, layout)
        (found,) = grounding.ground(told, [text], recipe=recipe)
        each = segmentation.segmented(None, [replace(found, others=()), *found.others], recipe)
        return replace(each[0], others=tuple(each[1:]))

    def grounder(image, texts):
        return [one(text) for text in texts]

    grounder.recipe = recipe
    return grounder


def recipe_of(random, **fixed):
    names = ("border", "region", "padding", "box_from")
    return fg.Recipe(
        k=2, sigma=random.choice([0.0, 0.7]), objects=random.choice([None, 0.05, 0.2]),
        **{name: random.choice(CHOICES[name]) for name in names},
    ).replace(**fixed)  # fmt: skip


def rows_of(samples, seen, recipe, plurals="region"):
    for sample in samples:
        maps, place = seen[sample.expression]
        told = by_hand.grounding.found(maps.astype(float), place, recipe)
        yield by_hand.scores.row(
            sample, *told, place, recipe, unite=plurals == "union" and "plural" in sample.kind
        )


def assert_part(part, rows):
    for name, value in by_hand.scores.scores(rows).items():
        ours = getattr(part, name)
        assert ours == pytest.approx(value, abs=1e-3, nan_ok=True), name


@pytest.mark.parametrize("seed", range(12))
def test_scores_of_all_and_of_parts(seed):
    check(seed)


def check(seed):
    random = Random(seed)
    samples, seen = world(seed)
    plurals = random.choice(["region", "union"])
    recipe = recipe_of(random, **({"objects": 0.1} if plurals == "union" else {}))
    scores = fg.evaluate(grounder_of(seen, recipe), samples, plurals=plurals)
    rows = list(rows_of(samples, seen, recipe, plurals))
    assert_part(scores, rows)
    for by, named in by_hand.scores.parts(samples, rows).items():
        named = {name: where for name, where in named.items() if where.any()}
        if by == "sentence" and named.get("first", np.ones(1)).all():
            named = {}
        assert set(scores.parts.get(by, ())) == set(named), by
        for name, where in named.items():
            of, some = ([a[i] for i in np.flatnonzero(where)] for a in (rows, samples))
            assert_part(scores.parts[by][name], of)
            assert_intervals(scores.parts[by][name], some, of)
    assert_intervals(scores, samples, rows)


def assert_intervals(part, samples, rows):
    """An end of each has 2.5 % of all draws beyond it, as far as equal ones and a sample allow."""
    images = np.array([s.image_id for s in samples])
    boxed = np.array([s.box is not None for s in samples])
    masked = np.array([s.mask is not None for s in samples])
    hits = [by_hand.scores.iou(r["boxes"], r["truths"]) >= 0.5 for r in rows]
    each = [r["intersections"] / r["unions"] if r["unions"] else 1.0 for r in rows]
    areas = [[r[name] for r in rows] for name in ("intersections", "unions")]
    ones = np.ones(len(rows))
    for name, values, weights, where in (
        ("interval", hits, ones, boxed),
        ("giou_interval", each, ones, masked),
        ("ciou_interval", *areas, masked),
    ):
        if len(set(images[where])) < 2:
            assert np.isnan(getattr(part, name)).all()
            continue
        draws = by_hand.scores.every_draw(
            np.array(values)[where], np.array(weights)[where], images[where]
        )
        for least, most in by_hand.scores.outside(getattr(part, name), draws):
            assert least <= 0.05 and most >= 0.005, name
