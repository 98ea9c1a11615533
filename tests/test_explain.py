"""Explanations: the numbers of every step, what is said of a failure, and the picture."""

import dataclasses

import numpy as np
import pytest
import small_world
import torch
from fastground import explain, figures, grounding
from fastground.attention import attention_maps
from fastground.grounder import Grounder
from fastground.metrics import box_iou
from fastground.stats import head_statistics
from fastground.types import Recipe
from test_grounding import attention, block, layout

IMAGE = small_world.samples()[0].image


def explained(truth=None, **changes):
    recipe = small_world.RECIPE.replace(**changes)
    grounder = Grounder(small_world.lvlm(), small_world.ranking(), recipe=recipe)
    return explain.explain(grounder, IMAGE, "the red mug", truth)


def told(maps, truth, recipe=Recipe(kernel_size=1), mask_box=None):
    """What would be said of these maps: a grounder whose model saw them."""
    where = layout(image=(60, 60))

    class Planted:
        lvlm, ranking = None, small_world.ranking()

        def __call__(self, image, expression):
            given = attention(np.asarray(maps)[None], where)
            (found,) = grounding.ground(given, [expression], recipe=recipe)
            box = found.box if mask_box is None else torch.tensor(mask_box)
            return dataclasses.replace(found, image=image, box=box)

    Planted.recipe = recipe
    from PIL import Image

    whole = attention(np.asarray(maps)[None], where)
    keep, explain.attention_maps = explain.attention_maps, lambda *_, **__: whole
    try:
        return explain.explain(Planted(), Image.new("RGB", (60, 60)), "it", truth)
    finally:
        explain.attention_maps = keep


def test_the_numbers_are_those_of_the_steps():
    truth = (2.0, 2.0, 12.0, 12.0)
    e = explained(truth)
    every = attention_maps(
        small_world.lvlm(),
        IMAGE,
        ["the red mug"],
        recipe=small_world.RECIPE,
        heads=e.grounding.heads,
    )
    stats = head_statistics(every, small_world.RECIPE)
    assert [look.head for look in e.looks] == list(e.grounding.heads)
    assert [look.attention_sum for look in e.looks] == pytest.approx(every.sums[0].tolist())
    assert [look.entropy for look in e.looks] == pytest.approx(stats.entropy[0].tolist())
    assert torch.allclose(e.captured, every.maps[0], atol=1e-6)
    assert sum(part.share for part in e.parts) == pytest.approx(1)
    (kept,) = [part for part in e.parts if part.kept]
    assert list(kept.box) == e.grounding.box.tolist()
    assert e.iou == pytest.approx(float(box_iou(e.grounding.box, truth)))
    assert e.tau == small_world.ranking().tau
    content = e.to_dict()
    assert content["box"] == e.grounding.box.tolist() and content["truth"] == truth
    assert len(content["heads"]) == 2 and len(content["regions"]) == len(e.parts)
    alone = explained()
    assert np.isnan(alone.iou) and alone.truth is None and np.isnan(alone.ceiling)


def test_it_says_that_all_is_well():
    right = block(slice(2, 4), slice(2, 4))
    e = told([right, right], (20, 20, 40, 40))
    assert e.remarks[-1] == "IoU 1.00 with the truth: right at 0.5" and e.ceiling == 1


def test_it_says_that_heads_look_elsewhere():
    away, right = block(slice(0, 2), slice(0, 2), value=9.0), block(5, 5)
    e = told([away, away], (40, 40, 60, 60))
    assert "no region touches the true box: the heads look elsewhere" in e.remarks
    assert "the peak of L3 H0, L3 H1 lies outside the true box" in e.remarks
    e = told([away, right], (40, 40, 60, 60))
    assert "the peak of L3 H0 lies outside the true box" in e.remarks


def test_it_says_that_the_choice_of_region_lost_it():
    maps = block(slice(0, 2), slice(0, 6), value=1.0) + block(slice(4, 6), slice(4, 6), value=3.0)
    e = told([maps], (40, 40, 60, 60))
    assert any("the choice of the region (region=hull) lost it" in r for r in e.remarks)
    assert "every head peaks inside the true box" in e.remarks
    e = told([maps], (40, 40, 60, 60), Recipe(kernel_size=1, region="mass"))
    assert e.iou < 0.5  # 12 of twelve cells beat 12 of four: equal, and first in raster order
    maps = block(slice(0, 2), slice(0, 6), value=1.0) + block(slice(4, 6), slice(4, 6), value=3.5)
    assert told([maps], (40, 40, 60, 60), Recipe(kernel_size=1, region="mass")).iou == 1


def test_it_says_that_the_box_is_too_large_or_the_grid_too_coarse():
    wide = block(slice(0, 4), slice(0, 5))
    e = told([wide], (0, 0, 20, 20))
    assert "the right region is kept, and its box has 5.0 times the true box's area" in e.remarks
    e = told([block(2, 2)], (20, 20, 50, 50))
    assert "the right region is kept, and its box has 11 % of the true box's area" in e.remarks
    e = told([block(2, 2)], (22, 22, 26, 26))
    assert any("the 6 x 6 cells of the grid are too coarse" in r for r in e.remarks)


def test_it_says_that_the_mask_or_all_regions_together_lost_it():
    recipe = Recipe(kernel_size=1, box_from="mask")
    e = told([block(slice(2, 4), slice(2, 4))], (20, 20, 40, 40), recipe, mask_box=(0, 0, 60, 60))
    assert "the map's box has IoU 1.00: the mask's (box_from=mask) lost it" in e.remarks
    maps = block(slice(0, 2), slice(0, 2)) + block(slice(4, 6), slice(4, 6))
    e = told([maps], (0, 0, 20, 20), Recipe(kernel_size=1, region="all"))
    assert any("one of the regions alone has IoU 1.00" in r for r in e.remarks)


def test_it_says_that_nothing_was_found():
    e = told([np.ones((6, 6))], (20, 20, 40, 40))
    assert e.remarks[-1] == "no cell of the sum exceeds its mean: nothing was found"
    assert e.parts == () and not e.grounding.found
    assert figures.rendered(explain.figure(e)).width > 500


def test_it_says_that_a_head_sees_little():
    ranking = dataclasses.replace(small_world.ranking(), tau=2.0)
    e = explain.explain(Grounder(small_world.lvlm(), ranking), IMAGE, "the red mug")
    assert sum("sees little of the image here" in r for r in e.remarks) == 2


@pytest.mark.parametrize("changes", [{}, {"sinks": "centre"}, {"region": "all"}, {"k": 5}])
def test_the_picture_has_every_step(changes):
    e = explained((2.0, 2.0, 12.0, 12.0), **changes)
    drawn = explain.figure(e)
    names = [axis.get_title() for axis in drawn.axes if axis.get_title()]
    k = len(e.looks)
    assert len(names) == 1 + k + k * ("sinks" in changes) + k + 6
    assert [n for n in names if n.startswith("kept: ")] and names[-1].startswith("mask, ")
    assert f"IoU {e.iou:.2f}" in names[-2]
    assert drawn.get_supxlabel() == "\n".join(e.remarks)
    assert figures.encoded(drawn).startswith(b"\x89PNG")


def test_a_true_box_must_be_in_the_image():
    for truth in ((0, 0, 0, 5), (5, 5, 2, 9), (0, 0, 99, 9), (-1, 0, 5, 5)):
        with pytest.raises(ValueError, match="truth must be x1, y1, x2, y2 in the image"):
            explained(truth)


def test_a_part_that_reaches_as_far_as_all_is_an_object_besides_them():
    """A ring with a spot in it, as a grounding has it."""
    maps = block(slice(0, 6), slice(0, 6)) - block(slice(1, 5), slice(1, 5))
    maps += block(2, 2, value=4.0)
    e = told(maps[None], None, Recipe(kernel_size=1, region="all", objects=0.1))
    assert [part.other for part in e.parts] == [True] * len(e.grounding.others) == [True, True]
    assert all(part.kept for part in e.parts)
