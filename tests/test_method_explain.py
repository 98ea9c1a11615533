"""Every number of an explanation beside the method by hand, under random recipes."""

import dataclasses
from random import Random

import by_hand
import fastground as fg
import numpy as np
import pytest
import test_method as whole
from fastground import explain
from fastground.ranking import rank

HEADS, SCORES = by_hand.heads, by_hand.scores
TRUTH = (10.0, 5.0, 40.0, 42.0)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_every_step(family):
    random = Random(family)
    for _ in range(12):
        check(family, random)


def check(family, random):
    known, sample = whole.lvlm(family), random.choice(whole.samples(family)[::2])
    recipe = whole.recipe_of(random, family, selection="fixed", bottom_row=None)
    recipe = recipe.replace(elbow=0.02)
    some = np.random.default_rng(random.randrange(1000)).random((2, 9, 3, 4))
    ranking = rank(*some, recipe=recipe, trials=1)
    about = {"architecture": known.architecture, "checkpoint": known.checkpoint}
    ranking = dataclasses.replace(ranking, **about)
    order = [tuple(h.head) for h in ranking.heads]
    grounder = fg.Grounder(known, ranking)
    told = explain.explain(grounder, sample.image, sample.expression, TRUTH)
    view = whole.look(family, sample, recipe)
    generic = whole.look(family, sample, recipe, recipe.generic)
    sums, entropies = HEADS.statistics(view, recipe)
    maps = by_hand.grounding.cleared(view, order[: recipe.k], generic, recipe)
    for look, head, cells in zip(told.looks, order[: recipe.k], maps, strict=True):
        assert tuple(look.head) == head
        assert look.attention_sum == pytest.approx(sums[head], abs=1e-5)
        assert look.entropy == pytest.approx(entropies[head], abs=1e-5)
        peak = SCORES.peak(by_hand.grounding.smooth(cells, recipe), view.place, recipe)
        assert look.peak == pytest.approx(peak)
    combined, kept, others = by_hand.grounding.found(maps, view.place, recipe)
    mean, counts = by_hand.segments.level(combined, view.place, recipe)
    assert told.mean == pytest.approx(mean, rel=1e-4)
    parts = HEADS.regions(counts & (combined > mean))
    parts.sort(key=lambda part: -combined[part].sum())
    assert len(told.parts) == len(parts)
    for ours, part in zip(told.parts, parts, strict=True):
        one = by_hand.grounding.pixel_box(part, view.place)
        assert ours.box == pytest.approx(tuple(one), abs=1e-3) and ours.cells == part.sum()
        share = combined[part].sum() / sum(combined[p].sum() for p in parts)
        assert ours.share == pytest.approx(share, rel=1e-4)
        assert ours.iou == pytest.approx(SCORES.iou(one, TRUTH), abs=1e-4)
    if kept is None:
        return
    assert sum(part.other for part in told.parts) == len(others)
    assert sum(part.kept for part in told.parts) == (len(parts) if recipe.region == "all" else 1)
    box = SCORES.box_of(kept, recipe)
    assert told.iou == pytest.approx(SCORES.iou(box, TRUTH), abs=1e-4)
    mask = np.zeros(view.place.size, bool)
    mask[5:42, 10:40] = True
    cells = by_hand.segments.coverage(mask, view.place, combined.shape)
    _, best, _ = by_hand.grounding.found([cells], view.place, recipe)
    ceiling = SCORES.iou(best.box, TRUTH) if best else 0.0
    assert told.ceiling == pytest.approx(ceiling, abs=1e-4)
