"""Sinks: what each choice computes, what it reads, and that it takes a planted sink away."""

import dataclasses

import numpy as np
import pytest
import small_world
import torch
from fastground import sinks
from fastground.attention import attention_maps
from fastground.comparison import compare
from fastground.grounder import Grounder
from fastground.grounding import ground
from fastground.types import AttentionMaps, HeadId, ImageLayout, Recipe

HEADS = (HeadId(2, 0), HeadId(2, 1), HeadId(4, 1))
LAYOUT = ImageLayout((6, 6), tuple(range(36)), None, (60, 60), (10.0, 10.0))
CLEARING = ("relative", "centre", "drop")


def attention(maps):
    maps = torch.as_tensor(maps, dtype=torch.float32)
    return AttentionMaps(maps, maps.sum((-2, -1)), HEADS, LAYOUT)


def planted():
    """Two expressions' objects seen by one head of each layer, a sink seen by all; generic last."""
    maps = np.full((3, 3, 6, 6), 0.001)
    maps[:, :, :2, :3] = 0.3  # the sink
    maps[0, [0, 2], 3:5, 3:5] = 0.04
    maps[1, [0, 2], 4:6, 0:2] = 0.04
    return maps


def test_keep_changes_nothing():
    given = attention(planted())
    assert sinks.asked(["a"], Recipe()) == ["a"] and sinks.read(HEADS[:1], 4, Recipe()) == HEADS[:1]
    captured, cleared = sinks.cleared(given, Recipe())
    assert captured is given and cleared is given


def test_relative_divides_by_the_generic_map():
    recipe = Recipe(sinks="relative", generic="the thing")
    assert sinks.asked(["a", "b"], recipe) == ["a", "b", "the thing"]
    maps = np.random.default_rng(0).random((3, 3, 6, 6))
    captured, cleared = sinks.cleared(attention(maps), recipe)
    assert captured.maps.equal(attention(maps).maps[:2])
    generic = maps[2:] + 1e-3 * maps[2:].mean((-2, -1), keepdims=True)
    ratio = maps[:2] / generic
    ratio *= maps[:2].sum((-2, -1), keepdims=True) / ratio.sum((-2, -1), keepdims=True)
    np.testing.assert_allclose(cleared.maps, ratio, rtol=1e-5)
    np.testing.assert_allclose(cleared.maps.sum((-2, -1)), captured.sums, rtol=1e-5)


def test_centre_subtracts_and_drop_looks_at_the_mean_of_the_layer():
    maps = np.random.default_rng(1).random((2, 3, 6, 6))
    mean = np.stack([maps[:, :2].mean(1), maps[:, :2].mean(1), maps[:, 2]], axis=1)
    _, centred = sinks.cleared(attention(maps), Recipe(sinks="centre"))
    np.testing.assert_allclose(centred.maps, (maps - mean).clip(0), atol=1e-6)
    _, dropped = sinks.cleared(attention(maps), Recipe(sinks="drop", sink_share=0.04))
    sink = mean > 0.04 * mean.sum((-2, -1), keepdims=True)
    assert sink.any() and not sink.all()
    np.testing.assert_allclose(dropped.maps, np.where(sink, 0, maps), rtol=1e-6)
    for name in ("centre", "drop"):
        wanted = sinks.read(HEADS[1:], 3, Recipe(sinks=name))
        assert wanted == tuple(HeadId(layer, head) for layer in (2, 4) for head in range(3))


@pytest.mark.parametrize("name", CLEARING)
def test_a_planted_sink_no_longer_hides_the_object(name):
    maps = planted()
    recipe = Recipe(sinks=name, kernel_size=1, k=1)
    given = attention(maps if name == "relative" else maps[:2])
    plain, cleared = sinks.cleared(given, recipe)
    expressions = ["a", "b"]
    for maps_of, right in ((plain, False), (cleared, True)):
        found = ground(maps_of.select(HEADS[:1]), expressions, recipe=recipe)
        boxes = [g.box.tolist() for g in found]
        assert (boxes == [[30, 30, 50, 50], [0, 40, 20, 60]]) == right


def test_a_head_that_the_generic_prompt_does_not_reach_keeps_its_map():
    maps = planted()
    maps[2, 1] = 0  # a window ends before the image
    plain, cleared = sinks.cleared(attention(maps), Recipe(sinks="relative"))
    torch.testing.assert_close(cleared.maps[:, 1], plain.maps[:, 1])


def test_a_head_that_sees_nothing_stays_empty():
    maps = planted()
    maps[:, 1] = 0
    for name in CLEARING:
        _, cleared = sinks.cleared(attention(maps), Recipe(sinks=name))
        assert cleared.maps.isfinite().all() and not cleared.maps[:, 1].any()


@pytest.mark.parametrize("name", CLEARING)
@pytest.mark.parametrize("selection", ["fixed", "greedy"])
def test_a_grounder_clears_what_it_read_in_one_forward(name, selection):
    recipe = small_world.RECIPE.replace(
        sinks=name, generic="what is x", selection=selection, criteria="entropy", sink_share=0.03
    )
    lvlm, image = small_world.lvlm(), small_world.samples()[0].image
    grounder = Grounder(lvlm, small_world.ranking(), recipe=recipe)
    forwards = []
    hook = lvlm.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    found = grounder(image, ["the red mug", "a dog"])
    hook.remove()
    assert len(forwards) == 1
    every = attention_maps(lvlm, image, ["the red mug", "a dog", "what is x"], recipe=recipe)
    given = every if name == "relative" else attention_maps(
        lvlm, image, ["the red mug", "a dog"], recipe=recipe
    )  # fmt: skip
    _, cleared = sinks.cleared(given, recipe)
    plain = Grounder(lvlm, small_world.ranking(), recipe=recipe.replace(sinks="keep"))
    for i, (one, kept) in enumerate(
        zip(found, plain(image, ["the red mug", "a dog"]), strict=True)
    ):
        assert one.heads == kept.heads  # chosen by the maps as captured
        expected = cleared.select(one.heads).maps[i]
        assert torch.allclose(one.maps, expected, atol=1e-5)
        assert not torch.allclose(one.maps, kept.maps, atol=1e-5)


def test_a_comparison_scores_cleared_maps():
    tables = {}
    for name in ("keep", "centre"):
        recipe = small_world.RECIPE.replace(sinks=name)
        ranking = dataclasses.replace(small_world.ranking(), recipe=recipe)
        found = compare(small_world.lvlm(), small_world.table(), ranking, small_world.samples())
        tables[name] = [row.scores.mean_iou for row in found.rows]
    assert tables["keep"][:-1] != tables["centre"][:-1]
    assert tables["keep"][-1] == tables["centre"][-1]  # the ceiling needs no map


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sinks": "away"}, "keep, relative, centre, drop"),
        ({"sink_share": 0}, "must be a share"),
        ({"sink_share": None}, "must be a share"),
        ({"generic": "  "}, "must be a prompt"),
    ],
)
def test_bad_choices_are_said(changes, says):
    with pytest.raises(ValueError, match=says):
        Recipe(**changes)
