"""The tables of `evaluate --table` beside the method by hand: heads, boxes and scores of a row."""

import ast
import contextlib
import dataclasses
from random import Random

import by_hand
import fastground as fg
import numpy as np
import pytest
import test_method as whole
from fastground import comparison, runs
from fastground.settings import CRITERIA

HEADS, SCORES = by_hand.heads, by_hand.scores
BY = dict(CRITERIA)


def settings_of(recipe, rows, order_of):
    """By hand, of each row by its name: (recipe, its fixed heads or None)."""
    so_far = recipe
    for name in rows:
        one, heads = recipe, None
        words = name.removeprefix("+ ")
        if name.startswith("k = "):
            one = recipe.replace(k=int(name[4:]))
        elif name == "not smoothed":
            one = recipe.replace(sigma=0.0)
        elif name.startswith("sigma"):
            _, sigma, _, size = name.replace(",", "").split()
            one = recipe.replace(sigma=float(sigma), kernel_size=int(size))
        elif name == "one object":
            one = recipe.replace(objects=None)
        elif name.startswith("share"):
            one = recipe.replace(objects=float(name[6:]))
        elif "=" in words:
            field, _, value = words.partition("=")
            with contextlib.suppress(SyntaxError, ValueError):  # a number, or words
                value = ast.literal_eval(value)
            one = (so_far if name.startswith("+") else recipe).replace(**{field: value})
            so_far = one if name.startswith("+") else so_far
        elif name.endswith((", fixed", ", greedy")):
            words, _, selection = name.rpartition(", ")
            one = recipe.replace(criteria=BY[words], selection=selection)
            heads = order_of(one)
        yield one, heads


@pytest.mark.parametrize("number", ["4", "5", "8", "switches", "objects"])
@pytest.mark.parametrize("selection", ["fixed", "greedy"])
def test_a_table(number, selection, tmp_path):
    check(number, selection, Random(f"{number} {selection}"), tmp_path)


def found_heads(random, folder, **fixed):
    """(samples, ranking, table, their sums and entropies by hand, views) of a random recipe."""
    known, some = whole.lvlm("llava"), whole.samples("llava")
    recipe = whole.recipe_of(
        random, "llava", k=2, top_n=4, skip_layers=1, criteria="both", query="last_expression",
        ensure_period=True, bottom_row=None, kernel_size=random.choice([1, 3, 7]),
        elbow=random.choice(["chord", 0.02]), **fixed,
    )  # fmt: skip
    ranking = fg.discover(
        known.model, known.processor, some, recipe=recipe, trials=1, out=folder / "heads"
    )
    views = [whole.look("llava", s, recipe) for s in some]
    own = [HEADS.statistics(view, recipe) for view in views]
    told = (np.array(each, np.float32).astype(float) for each in zip(*own, strict=True))
    return some, ranking, runs.load(folder / "heads"), *told, views


def check(number, selection, random, folder):
    some, ranking, table, sums, entropies, views = found_heads(random, folder, selection=selection)
    if number == "objects":
        some = [
            dataclasses.replace(s, boxes=s.boxes or (s.box,) * (s.box is not None), kind="plural")
            for s in some
        ]
    found = comparison.paper_table(number, whole.lvlm("llava"), ranking, some, table=table)
    orders = {}

    def order_of(one):
        return orders.setdefault(one.criteria, HEADS.ranking(sums, entropies, one)[0])

    told = order_of(ranking.recipe)
    assert len(found.rows) > 4
    names = [row.name for row in found.rows]
    rows = zip(found.rows, settings_of(ranking.recipe, names, order_of), strict=True)
    for row, (one, order) in rows:
        assert_row(row, one, order or told, some, views, sums, unite=number == "objects")


@pytest.mark.parametrize("seed", range(2))
def test_the_method_beside_other_heads_and_the_ceiling(seed, tmp_path):
    check_heads(Random(seed), tmp_path)


def check_heads(random, folder):
    some, ranking, table, sums, entropies, views = found_heads(random, folder, selection="fixed")
    recipe = ranking.recipe
    found = comparison.compare(whole.lvlm("llava"), table, ranking, some, draws=2)
    ious = [HEADS.ious(v, s.mask, s.ignore, recipe) for v, s in zip(views, some, strict=True)]
    mean = np.mean(ious, 0)
    best = sorted(np.ndindex(mean.shape), key=lambda h: (-np.round(mean[h], 7), h))
    order = {
        name: HEADS.ranking(sums, entropies, recipe.replace(criteria=criteria))[0]
        for name, criteria in CRITERIA
    }
    for name, k, heads in (
        ("2 heads, both criteria", 2, order["both"]),
        ("2 heads, attention sum only", 2, order["attention sum only"]),
        ("2 heads, entropy only", 2, order["entropy only"]),
        ("1 head, both criteria", 1, order["both"]),
        ("5 heads, both criteria", 5, order["both"]),
        ("all heads", 12, order["both"]),
        ("2 oracle heads", 2, best),
    ):
        assert_row(found.row(name), recipe.replace(k=k), heads, some, views, sums)
    own = recipe.replace(selection="greedy")
    assert_row(found.row("2 heads, own for each sample"), own, [], some, views, sums)
    rows = []
    for sample, view in zip(some, views, strict=True):
        cells = by_hand.segments.coverage(sample.mask, view.place, view.maps.shape[2:])
        by = by_hand.grounding.found([cells], view.place, recipe)
        rows.append(SCORES.row(sample, *by, view.place, recipe))
    whole.assert_part(found.row(comparison.CEILING).scores, rows)
    rho, heads = HEADS.rho(sums, entropies, np.array(ious), recipe)
    assert found.rho_heads == heads and found.rho == pytest.approx(rho, abs=1e-3, nan_ok=True)
    assert found.shared_with_oracle == len(set(best[:2]) & set(order["both"][:2]))


def assert_row(row, one, order, some, views, sums, unite=False):
    rows = []
    for sample, view in zip(some, views, strict=True):
        heads = order[: one.k]
        if one.selection == "greedy":
            own = HEADS.statistics(view, one)
            heads = HEADS.own_heads(
                *(a.astype(np.float32).astype(float) for a in own), sums.mean(0), one
            )
        generic = whole.look("llava", sample, one, one.generic)
        maps = by_hand.grounding.cleared(view, heads, generic, one)
        by = by_hand.grounding.found(maps, view.place, one)
        united = unite and one.objects is not None
        rows.append(SCORES.row(sample, *by, view.place, one, unite=united))
    whole.assert_part(row.scores, rows)
