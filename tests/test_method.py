"""The whole method beside itself by hand (`by_hand/`): tables, heads, boxes, masks and scores.

`tiny` on scenes of `shapes`, one of them cut to a strip, and random models that pad an image to a
square, resize it to whole cells, or see it in tiles. Weights are in float64, so that no cell lies
within rounding of its map's cut.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from random import Random

import by_hand
import fastground as fg
import numpy as np
import pytest
import torch
from fastground import grounding, models, runs
from fastground.attention import attention_maps
from fastground.datasets.images import by_image
from fastground.election import greedy, kept_heads
from fastground.phrases import Phrase as phrase
from fastground.ranking import rank
from fastground.recipe import CHOICES as NAMED
from fastground.recipe import PROFILES
from fastground.types import HeadId, Sample
from random_llava import random_llava

sys.path.append(str(Path(__file__).parent / "adapters"))

import tiny_llava_next
import tiny_qwen_vl

FAMILIES = ("tiny", *by_hand.look.FAMILIES)
LOOKS = {}
FEWER = {"k": 2, "top_n": 4, "skip_layers": 1}


@functools.cache
def lvlm(family):
    if family == "tiny":
        return models.load("tiny", dtype=torch.float64)
    build = {
        "llava": lambda seed: random_llava(seed, grid=6),
        "qwen2_5_vl": tiny_qwen_vl.FAMILIES[0].build,
        "llava_next": tiny_llava_next.llava_next,
    }[family]
    model, processor = build(3)
    return models.wrap(model.double(), processor, checkpoint=family)


@functools.cache
def samples(family):
    """Three images of three expressions, of different shapes, with masks."""
    if family == "tiny":
        first, second = by_image(fg.datasets.shapes(split="val", num_samples=10))
        strip = second[0].image.crop((0, 0, 192, 130))
        return *first[:2], *(cut(sample, strip) for sample in second[:2])
    rng, found = np.random.default_rng(7), []
    for image_id, size in enumerate([(97, 61), (61, 97), (50, 44)]):
        image = by_hand.look.image_of(image_id, size)
        for text in ("the red mug", "A dog on the left. ", "what is x"):
            mask = np.zeros(size[::-1], bool)
            y, x = rng.integers(0, 30, 2)
            mask[y : y + rng.integers(5, 40), x : x + rng.integers(5, 40)] = True
            box = tuple(map(float, by_hand.scores.tight(mask)))
            kind = "attribute, short" if "red" in text else "location, short"
            found.append(Sample(image, text, box, mask, image_id, len(found), kind))
    found[1] = dataclasses.replace(found[1], boxes=(box, found[1].box), first=False)
    found[3] = dataclasses.replace(found[3], ignore=found[4].mask, first=False)
    found[5] = dataclasses.replace(found[5], mask=np.zeros_like(found[5].mask), box=None)
    return tuple(found)


def cut(sample, strip):
    """Of the upper part of a scene, wider than high, so that it is padded; in capital letters."""
    mask = sample.mask[: strip.height]
    box = tuple(map(float, by_hand.scores.tight(mask))) if mask.any() else None
    text = sample.expression.upper()
    return dataclasses.replace(sample, image=strip, mask=mask, box=box, expression=text)


def look(family, sample, recipe, expression=None):
    """By hand; kept, since few choices of a recipe are read."""
    expression = sample.expression if expression is None else expression
    read = {
        name: getattr(recipe, name) for name in ("blocks", "query", "template", "ensure_period")
    }
    place = getattr(expression, "sentence", ""), getattr(expression, "start", 0)
    key = (family, sample.image_id, expression, *place, *read.values())
    if key not in LOOKS:
        model, processor = lvlm(family).model, lvlm(family).processor
        before = model.config.get_text_config()._attn_implementation
        model.set_attn_implementation("eager")
        name = "llava" if family == "tiny" else family
        LOOKS[key] = by_hand.look.look(model, processor, name, sample.image, expression, recipe)
        model.set_attn_implementation(before)
    return LOOKS[key]


CHOICES = NAMED | {
    "bottom_row": (None, 0.01, 0.05),
    "elbow": ("chord", "curvature", 0.02),
    "skip_layers": (0, 1, 2),
    "top_n": (1, 2, 4, 7),
    "k": (1, 2, 3, 4),
    "sink_share": (0.03, 0.1),
    "kernel_size": (1, 3, 5, 7, 9, 31),
    "sigma": (0.0, 0.3, 1.0, 2.5),
    "objects": (None, 0.05, 0.3),
    "ensure_period": (False, True),
}


def recipe_of(random, family, **fixed):
    """A random one of all recipes that this model can be asked for."""
    drawn = {name: random.choice(values) for name, values in CHOICES.items()}
    drawn["generic"] = "the thing" if family == "tiny" else "what is x"
    if family in ("tiny", "llava"):  # these know no template
        drawn["template"] = "plain"
    if family != "llava_next":
        drawn["blocks"] = "base"
    return fg.Recipe(**drawn | fixed)


def assert_same(found, combined, kept, others, recipe):
    """A Grounding is what by_hand found."""
    assert found.found == (kept is not None) and len(found.others) == len(others)
    if kept is None:
        assert found.box.tolist() == [0] * 4 and not found.mask.any()
    np.testing.assert_allclose(found.map, combined, atol=1e-6)
    for one, hand in zip((found, *found.others), (kept, *others), strict=True):
        if hand is None:
            continue
        mask = one.mask.numpy()
        assert (mask != hand.mask).sum() <= 1  # a pixel may be at its map's mean but for 1e-8
        np.testing.assert_allclose(one.map_box, hand.box, atol=1e-3)
        np.testing.assert_allclose(one.box, by_hand.scores.box_of(hand, recipe), atol=1e-3)
        assert one.score == pytest.approx(hand.score, rel=1e-4)
        assert one.mass == pytest.approx(hand.mass, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_and_masks_of_maps_under_many_recipes(family):
    random = Random(1)
    blocks = ("base", "stitch") if family == "llava_next" else ("base",)
    seen = [
        attention_maps(lvlm(family), s.image, [s.expression], recipe=fg.Recipe(blocks=b))
        for s in samples(family)[::4]
        for b in blocks
    ]
    for _ in range(30 if family == "tiny" else 80):
        attention = random.choice(seen)
        recipe = recipe_of(random, family, sinks="keep")
        chosen = random.sample(range(len(attention.heads)), recipe.k)
        heads = [attention.heads[i] for i in chosen]
        (found,) = grounding.ground(attention.select(heads), ["it"], recipe=recipe)
        recipe = recipe.replace(box_from="map")  # the mask's is the grounder's
        where = attention.layout
        place = by_hand.look.Place(where.image_size, where.cell_size, where.origin)
        maps = attention.maps[0, chosen].numpy().astype(float)
        assert_same(found, *by_hand.grounding.found(maps, place, recipe), recipe)


SENTENCES = {
    "tiny": "the red star left of the small circle on top",
    "other": " A small blue dog on the left of the red mug. ",
}
PARTS = ("red", "the red", "small", "left of", "on top", "mug", "A small blue dog", "mug. ")


@pytest.mark.parametrize("family", FAMILIES)
def test_phrases_in_their_place_in_a_sentence(family):
    """A phrase's own tokens ask: its last, or all of them; the sentence is read whole."""
    sentence, image = SENTENCES.get(family, SENTENCES["other"]), samples(family)[0].image
    places = [(sentence.find(part), len(part)) for part in PARTS]
    phrases = [phrase(sentence, i, i + n) for i, n in places if i >= 0]
    assert len(phrases) > 3
    for query, period in (("last_expression", True), ("phrase_mean", False)):
        recipe = fg.Recipe(query=query, ensure_period=period)
        ours = attention_maps(lvlm(family), image, phrases, recipe=recipe)
        sample = Sample(image, sentence, image_id=-1)
        for i, each in enumerate(phrases):
            view = look(family, sample, recipe, each)
            maps = view.maps.reshape(-1, *view.maps.shape[2:])
            np.testing.assert_allclose(ours.maps[i], maps, atol=1e-5, err_msg=f"{query} {each}")
            np.testing.assert_allclose(ours.sums[i], view.sums.reshape(-1), atol=1e-5)


def table(rng, levels):
    """Random sums and entropies of 40 samples, some maps empty; `levels` makes ties."""
    sums = rng.beta(0.6, 1.5, (40, 5, 6))
    entropies = rng.gamma(3, 0.5, sums.shape)
    if levels:
        sums, entropies = (np.round(a * levels) / levels for a in (sums, entropies))
    entropies[rng.random(sums.shape) < 0.05] = np.inf
    return sums.astype(np.float32), entropies.astype(np.float32)


def assert_ranked(ranking, sums, entropies, recipe):
    sums, entropies = sums.astype(float), entropies.astype(float)
    order, frequency, ties = by_hand.heads.ranking(sums, entropies, recipe)
    assert ranking.tau == pytest.approx(by_hand.heads.elbow(sums.mean(0), recipe.elbow), abs=1e-6)
    assert [tuple(h.head) for h in ranking.heads] == order
    assert [h.frequency for h in ranking.heads] == [frequency[h] for h in order]
    assert ranking.ties == ties
    np.testing.assert_allclose(
        [h.attention_sum for h in ranking.heads], [sums.mean(0)[h] for h in order], rtol=1e-4
    )
    finite = np.ma.masked_invalid(entropies).mean(0).filled(np.inf)
    np.testing.assert_allclose(
        [h.entropy for h in ranking.heads], [finite[h] for h in order], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("levels", [None, 8])
def test_rankings_of_tables_under_many_recipes(levels):
    rng, random = np.random.default_rng(2), Random(2)
    tied = 0
    for _ in range(40):
        sums, entropies = table(rng, levels)
        recipe = recipe_of(random, "tiny")
        ranking = rank(sums, entropies, recipe=recipe, trials=4, seed=6)
        assert_ranked(ranking, sums, entropies, recipe)
        tied += ranking.ties
        mean = sums.mean(0, dtype=float)
        passed = kept_heads(mean, recipe) if recipe.scope == "mean" else None
        own = greedy(sums[::8], entropies[::8], recipe, kept=passed)
        for s, e, heads in zip(sums[::8], entropies[::8], own, strict=True):
            by = by_hand.heads.own_heads(s.astype(float), e.astype(float), mean, recipe)
            assert [divmod(head, 6) for head in heads] == by
        parts = np.random.default_rng(6).permutation(40).reshape(4, 10)
        each = [by_hand.heads.ranking(*(a[p].astype(float) for a in (sums, entropies)), recipe)
                for p in parts]  # fmt: skip
        assert ranking.trials == tuple(tuple(HeadId(*h) for h in e[0][: recipe.k]) for e in each)
        spread = np.std([e[1] for e in each], axis=0, ddof=1)
        for head in ranking.heads:
            assert head.frequency_std == pytest.approx(spread[head.head], abs=1e-12)
    assert bool(tied) == bool(levels)


def recipes(family):
    """The profiles, and some at random."""
    random = Random(family)
    names = ("paper", "repo-2025-08") if family == "tiny" else PROFILES
    yield from (PROFILES[name].replace(**FEWER) for name in names)
    yield from (recipe_of(random, family) for _ in range(0 if family == "tiny" else 6))


@pytest.mark.parametrize("family", FAMILIES)
def test_from_images_to_scores(family, tmp_path):
    """discover, its table, the grounder, evaluate and its rows: each recipe the whole way."""
    for number, recipe in enumerate(recipes(family)):
        whole_way(family, recipe, tmp_path / str(number))


def whole_way(family, recipe, folder):
    some, known = samples(family), lvlm(family)
    views = [look(family, s, recipe) for s in some]
    by = [by_hand.heads.statistics(view, recipe) for view in views]
    sums, entropies = (np.array(each, np.float32) for each in zip(*by, strict=True))
    ranking = None
    try:
        ranking = fg.discover(
            known.model, known.processor, some, recipe=recipe, trials=1, out=folder / "heads"
        )
    except ValueError as error:
        assert "must leave heads to elect" in str(error)
    table = runs.load(folder / "heads")
    np.testing.assert_allclose(table.sums, sums, atol=1e-5)
    np.testing.assert_allclose(table.entropies, entropies, atol=1e-5)
    ious = [
        by_hand.heads.ious(v, s.mask, s.ignore, recipe) for v, s in zip(views, some, strict=True)
    ]
    np.testing.assert_allclose(table.ious, ious, atol=1e-6)
    order, frequency, _ = by_hand.heads.ranking(sums, entropies, recipe)
    if ranking is None:
        assert not frequency.any()
        return
    assert_ranked(ranking, sums, entropies, recipe)

    grounder = fg.Grounder(known, ranking)
    scores = fg.evaluate(grounder, some, out=folder / "scores")
    columns, _ = runs.load_columns(folder / "scores", "evaluate")
    groups = by_image(some)
    told = [g for of in groups for g in grounder(of[0].image, [s.expression for s in of])]
    rows = []
    for i, (sample, view) in enumerate(zip(some, views, strict=True)):
        heads = order[: recipe.k]
        if recipe.selection == "greedy":
            heads = by_hand.heads.own_heads(sums[i], entropies[i], sums.mean(0), recipe)
        relative = recipe.sinks == "relative"
        generic = look(family, sample, recipe, recipe.generic) if relative else None
        maps = by_hand.grounding.cleared(view, heads, generic, recipe)
        by = by_hand.grounding.found(maps, view.place, recipe)
        assert [tuple(h) for h in told[i].heads] == heads
        assert_same(told[i], *by, recipe)
        rows.append(by_hand.scores.row(sample, *by, view.place, recipe))
        for name, value in rows[-1].items():
            near = 1 if name in ("intersections", "unions") else 1e-3
            np.testing.assert_allclose(columns[name][i], value, atol=near, err_msg=name)
    assert_scored(scores, some, rows, recipe)


def assert_scored(scores, some, rows, recipe):
    areas = np.array([r["truth_areas"] for r in rows])
    parts = {
        ("kind", "attribute"): ["attribute" in s.kind for s in some],
        ("kind", "location"): ["location" in s.kind for s in some],
        ("size", "small"): (areas > 0) & (areas < 32**2),
        ("size", "medium"): (areas >= 32**2) & (areas <= 96**2),
        ("size", "large"): areas > 96**2,
        ("sentence", "first"): [s.first for s in some],
    }
    for (by, name), where in parts.items():
        if by != "sentence" or not np.all(where):
            of = [r for r, here in zip(rows, where, strict=True) if here]
            assert_part(scores.parts[by][name] if of else None, of)
    assert_part(scores, rows)


def assert_part(part, rows):
    for name, value in by_hand.scores.scores(rows).items() if rows else ():
        assert getattr(part, name) == pytest.approx(value, abs=1e-3, nan_ok=True), name
