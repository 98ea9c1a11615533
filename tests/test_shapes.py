"""The synthetic world: unique expressions, true masks, disjoint and repeatable splits."""

import importlib
from collections import Counter

import numpy as np
import pytest
from fastground import datasets
from hypothesis import given
from hypothesis import strategies as st

world = importlib.import_module("fastground.datasets.shapes")


def meant(scene, text):
    """Who an expression means, read anew from its words."""

    def fitting(words):
        said = [w for w in words if w in world.COLOURS or w in world.SHAPES or w in world.SIZES]
        return [i for i, t in enumerate(scene.things) if set(said) <= {t.size, t.colour, t.shape}]

    words = text.split()
    for relation, (axis, sign) in {
        ("left", "of"): (0, -1), ("right", "of"): (0, 1), ("above",): (1, -1), ("below",): (1, 1)
    }.items():  # fmt: skip
        for at in range(len(words)):
            if tuple(words[at : at + len(relation)]) == relation:
                (anchor,) = fitting(words[at + len(relation) :])
                place = [sign * (t.x, t.y)[axis] for t in scene.things]
                return [i for i in fitting(words[:at]) if place[i] > place[anchor]]
    for direction, (axis, sign) in {
        "left": (0, -1), "leftmost": (0, -1), "right": (0, 1), "rightmost": (0, 1),
        "top": (1, -1), "topmost": (1, -1), "bottom": (1, 1), "lowest": (1, 1),
    }.items():  # fmt: skip
        if direction in words:
            place = [sign * (t.x, t.y)[axis] for t in scene.things]
            return [max(fitting(words), key=place.__getitem__)]
    return fitting(words)


@given(st.integers(0, 10**6), st.sampled_from(world.SPLITS))
def test_every_expression_names_exactly_its_object(index, split):
    scene, _ = world.scene(split, 0, index)
    found = world.expressions(scene)
    for kind in world.KINDS:
        for target, texts in enumerate(found[kind]):
            for text in texts:
                assert meant(scene, text) == [target], text
                assert set(text.split()) <= set(world.VOCABULARY)
    assert all(any(found[kind][i] for kind in world.KINDS) for i in range(len(scene.things))) or (
        len({(t.size, t.colour, t.shape) for t in scene.things}) < len(scene.things)
    )


@given(st.integers(0, 10**6))
def test_objects_do_not_overlap_and_differ_in_texture(index):
    scene, _ = world.scene("val", 3, index)
    pixels, masks = world.render(scene)
    assert pixels.shape == (192, 192, 3) and pixels.dtype == np.uint8
    assert 3 <= len(scene.things) <= 6
    assert masks.sum(0).max() == 1
    assert masks.reshape(len(masks), -1).sum(1).min() > 300
    assert len({t.texture for t in scene.things}) == len(scene.things)


def test_stream_is_deterministic_grouped_and_mixed():
    first = list(datasets.shapes("test", 300))
    again = list(datasets.load("shapes", split="test", num_samples=300))
    assert [s.expression for s in first] == [s.expression for s in again]
    assert all(
        np.array_equal(a.image, b.image) for a, b in zip(first[::30], again[::30], strict=True)
    )
    ids = [s.image_id for s in first]
    assert ids == sorted(ids) and 5 < len(first) / len(set(ids)) <= 7
    kinds = Counter(s.kind for s in first)
    assert set(kinds) == set(world.KINDS) and min(kinds.values()) > 50
    for s in first:
        ys, xs = np.nonzero(s.mask)
        assert s.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert s.answer[0] in world.TEXTURES and s.answer[0] not in s.expression.split()


def test_expressions_of_several_objects_name_all_of_a_class():
    found = list(datasets.load("shapes", split="test", num_samples=150, several=True))
    assert [s.sample_id for s in found] == list(range(150))
    assert {s.kind for s in found} == {"plural, two", "plural, more"}
    for s in found:
        scene, _ = world.scene("test", 0, s.image_id)
        masks = world.render(scene)[1][meant(scene, s.expression)]
        assert len(s.boxes) == len(masks) > 1 and s.expression != "the thing"
        assert set(s.boxes) == {world.mask_box(mask) for mask in masks}
        assert np.array_equal(s.mask, masks.any(0)) and s.box == world.mask_box(s.mask)
        assert (s.kind == "plural, two") == (len(masks) == 2) and s.answer == ()
    with pytest.raises(ValueError, match="several must be true or false, but got 'yes'"):
        datasets.load("shapes", several="yes")
    again = datasets.load("shapes", split="test", num_samples=150, several=True)
    assert [s.expression for s in again] == [s.expression for s in found]
    assert len({(s.image_id, s.expression) for s in found}) == 150


def test_splits_and_seeds_share_no_scene():
    scenes = [
        world.scene(split, seed, index)[0]
        for split in world.SPLITS
        for seed in range(3)
        for index in range(60)
    ]
    assert len({s.things for s in scenes}) == len(scenes)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="split must be one of train, val, test, but got 'dev'"):
        next(datasets.shapes("dev"))
    for options in (
        {"num_samples": -1},
        {"num_samples": 10**23},
        {"num_samples": 2.5},
        {"seed": -1},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be an integer"):
            datasets.shapes(**options)
    with pytest.raises(
        ValueError, match=r"0 to 10,000,000, .* are drawn without end, so ask for few"
    ):
        datasets.load("shapes", num_samples=10**23, several=True)
    with pytest.raises(
        ValueError, match=r"dataset must be one of shapes, refcoco, .* but got 'coco'"
    ):
        datasets.load("coco")
    with pytest.raises(ValueError, match="must have no data, sentences, masks=False"):
        datasets.load("shapes", data="here", sentences="all", masks=False)
    with pytest.raises(ValueError, match="must have no num_samples=None"):
        datasets.load("shapes", num_samples=None)
    with pytest.raises(ValueError, match="check_sizes must be True or False, but got 'no'"):
        datasets.load("reasonseg", data="here", check_sizes="no")
