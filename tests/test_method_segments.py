"""Segmenters beside what they are told and give by hand: SAM by transformers' own forward.

Groundings of random maps on noise; SAM is random, its frame 64 pixels, its own processor used here.
"""

import dataclasses
from random import Random

import by_hand
import numpy as np
import pytest
import test_method_scores as worlds
import torch
from fastground import grounding, sam, segmentation
from fastground.types import AttentionMaps, HeadId, ImageLayout
from random_sam import random_sam

PROMPTS = ("box", "box+mask", "box+points")


def case(seed, **fixed):
    """(image, grounding, combined map by hand, kept by hand, place, recipe): of a random map."""
    rng, random = np.random.default_rng(seed), Random(seed)
    size = tuple(rng.integers(12, 150, 2).tolist())
    grid = tuple(rng.integers(2, 8, 2).tolist())
    cell = tuple((size[1 - i] / grid[1 - i] * rng.uniform(0.9, 1.4)) for i in (0, 1))
    origin = tuple(min(0.0, (size[1 - i] - cell[i] * grid[1 - i]) / 2) for i in (0, 1))
    place = by_hand.look.Place(size, cell, origin)
    maps = (rng.gamma(0.6, 1, (2, *grid)) / 50).astype(np.float32)
    recipe = worlds.recipe_of(random, prompt=random.choice(PROMPTS), **fixed)
    layout = ImageLayout(grid, tuple(range(grid[0] * grid[1])), None, size, cell, origin)
    told = torch.from_numpy(maps)[None]
    told = AttentionMaps(told, told.sum((2, 3)), (HeadId(2, 0), HeadId(2, 1)), layout)
    (found,) = grounding.ground(told, ["it"], recipe=recipe)
    combined, kept, _ = by_hand.grounding.found(maps.astype(float), place, recipe)
    return by_hand.look.image_of(seed, size[::-1]), found, combined, kept, place, recipe


@pytest.mark.parametrize("seed", range(20))
def test_prompts(seed):
    check_prompts(seed)


def check_prompts(seed):
    _, found, combined, kept, place, recipe = case(seed)
    if kept is None:
        assert not found.found
        return
    rng = np.random.default_rng(seed)
    y, x = (rng.uniform(-20, side + 20, 40) for side in place.size)
    odds = segmentation.log_odds(found, recipe)(torch.from_numpy(y), torch.from_numpy(x))
    by = by_hand.segments.log_odds(combined, kept.box, place, recipe, x, y)
    np.testing.assert_allclose(odds, by, atol=2e-3)
    points = segmentation.peaks_in_box(found, recipe)
    by = by_hand.segments.peaks(combined, kept.box, place, recipe)
    np.testing.assert_allclose(points.numpy().reshape(-1, 2), np.reshape(by, (-1, 2)), atol=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_of_three(seed):
    check_best(seed)


def check_best(seed):
    _, found, combined, _, place, recipe = case(seed)
    rng = np.random.default_rng(seed)
    masks = np.stack([np.kron(rng.random((4, 4)) < p, np.ones((40, 40)))
                      [: place.size[0], : place.size[1]] > 0 for p in rng.random(3)])  # fmt: skip
    ours = segmentation.best(torch.from_numpy(masks), found, recipe)
    by = by_hand.segments.best(masks, combined, place, recipe)
    np.testing.assert_array_equal(ours, by)


@pytest.mark.parametrize("masks", ["one", "best of three"])
def test_a_sam_from_prompt_to_box(masks):
    model = random_sam("sam")
    ours = segmentation.Prompted(sam.TransformersSam(model))
    for seed in range(8):
        check_sam(seed, model, ours, masks)


def check_sam(seed, model, ours, masks):
    image, found, combined, kept, place, recipe = case(seed, masks=masks)
    if kept is None:
        return
    found = dataclasses.replace(found, image=image)
    (told,) = segmentation.segmented(ours, [dataclasses.replace(found, others=())], recipe)
    logits = by_hand.segments.sam(model, image, combined, kept, place, recipe)
    sure = np.abs(logits).min(0) > 1e-3
    mask = by_hand.segments.best(logits > 0, combined, place, recipe)
    assert (told.mask.numpy() == mask)[sure].all() and sure.mean() > 0.95
    box = by_hand.scores.tight(mask) if recipe.box_from == "mask" and mask.any() else kept.box
    if sure.all():
        np.testing.assert_allclose(told.box, box, atol=1e-3)
    np.testing.assert_allclose(told.map_box, kept.box, atol=1e-3)
