"""The ranking of heads: against a brute-force reading of the method, and by its properties."""

import numpy as np
import pytest
from fastground.elbow import elbow
from fastground.election import first, greedy, kept_heads
from fastground.ranking import rank, rank_table
from fastground.table import HeadTable
from fastground.types import HeadId, Recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def table(n=60, layers=5, heads=6, seed=0, levels=None):
    """Random sums and entropies; `levels` quantises them so that ties are common."""
    random = np.random.default_rng(seed)
    sums = random.beta(0.6, 1.5, (n, layers, heads))
    entropies = random.gamma(3, 0.5, (n, layers, heads))
    entropies[random.random(entropies.shape) < 0.05] = np.inf
    if levels:
        sums, entropies = np.round(sums * levels) / levels, np.round(entropies * levels) / levels
    return sums.astype(np.float32), entropies.astype(np.float32)


def chord_by_hand(values):
    """Perpendicular distance to the line through both ends, point by point."""
    y = sorted(float(v) for v in values)
    x0, y0, x1, y1 = 0.0, y[0], len(y) - 1.0, y[-1]
    best, tau = 0.0, y[0]
    for i, v in enumerate(y):
        below = ((x1 - x0) * (y0 - v) + (i - x0) * (y1 - y0)) / np.hypot(x1 - x0, y1 - y0)
        if below > best + 1e-12:
            best, tau = below, v
    return tau


def test_what_the_ranking_tells():
    sums, entropies = table(n=53)
    recipe = Recipe(top_n=4, k=2)
    about = {"checkpoint": "m", "dataset": "d", "split": "train"}
    ranking = rank_table(
        HeadTable.of({"sums": sums, "entropies": entropies}, recipe=recipe, **about)
    )
    assert ranking.num_samples == 53
    assert len(ranking.trials) == 5 and all(len(t) == 2 for t in ranking.trials)
    assert list(ranking.curve) == sorted(ranking.curve) and len(ranking.curve) == 30
    assert (ranking.checkpoint, ranking.dataset, ranking.split) == ("m", "d", "train")
    best = ranking.heads[0]
    assert best.attention_sum == pytest.approx(sums[(slice(None), *best.head)].mean(), abs=1e-6)
    column = entropies[(slice(None), *best.head)]
    assert best.entropy == pytest.approx(column[np.isfinite(column)].mean(), abs=1e-6)
    assert ranking.heads[-1].head.layer < recipe.skip_layers
    assert sum(h.frequency for h in ranking.heads) <= recipe.top_n + 1e-9


def test_trials_are_disjoint_equal_parts_and_give_the_spread():
    sums, entropies = table(n=103, seed=5)
    recipe = Recipe(top_n=3, skip_layers=0)
    ranking = rank(sums, entropies, recipe=recipe, trials=5, seed=7)
    order = np.random.default_rng(7).permutation(103)
    parts = [np.sort(order[i * 20 : i * 20 + 20]) for i in range(5)]
    alone = [rank(sums[p], entropies[p], recipe=recipe, trials=1) for p in parts]
    assert ranking.trials == tuple(a.top(3) for a in alone)
    for head in ranking.heads[:4]:
        each = [next(h.frequency for h in a.heads if h.head == head.head) for a in alone]
        assert head.frequency_std == pytest.approx(np.std(each, ddof=1), abs=1e-12)
    assert all(h.frequency_std == 0 for h in alone[0].heads)
    assert ranking == rank(sums, entropies, recipe=recipe, trials=5, seed=7)


def test_an_empty_map_is_never_elected_and_an_empty_head_has_infinite_entropy():
    sums, entropies = table(n=20)
    entropies[:, 3, 2] = np.inf
    sums[:, 3, 2] = 1
    ranking = rank(sums, entropies, recipe=Recipe(criteria="entropy", top_n=5))
    (head,) = [h for h in ranking.heads if h.head == HeadId(3, 2)]
    assert head.frequency == 0 and head.entropy == np.inf


def test_large_tables_are_worked_on_in_chunks(monkeypatch):
    sums, entropies = table(n=50, levels=6)
    whole = rank(sums, entropies)
    monkeypatch.setattr("fastground.table.ROWS", 7)
    assert rank(sums, entropies).heads == whole.heads


curves = hnp.arrays(np.float64, st.integers(2, 40), elements=st.floats(0, 1, width=32))


@settings(derandomize=True, deadline=None, database=None)
@given(curves)
def test_chord_is_the_farthest_point_below_the_chord(values):
    assert float(elbow(values, "chord")) == pytest.approx(chord_by_hand(values), abs=1e-9)


@settings(derandomize=True, deadline=None, database=None)
@given(curves, st.sampled_from(["chord", "curvature"]))
def test_elbow_is_one_of_the_values_whatever_their_order(values, method):
    tau = elbow(values, method)
    assert tau in values
    assert elbow(np.random.default_rng(0).permutation(values), method) == tau


@pytest.mark.parametrize("method", ["chord", "curvature"])
def test_elbow_moves_with_the_units(method):
    values = np.random.default_rng(2).beta(0.5, 2, 90)
    assert float(elbow(8 * values + 3, method)) == pytest.approx(
        8 * float(elbow(values, method)) + 3
    )


@pytest.mark.parametrize("method", ["chord", "curvature"])
def test_elbow_of_a_hockey_stick_is_its_bend(method):
    curve = np.concatenate([np.linspace(0, 0.1, 150), np.linspace(0.1, 1, 50)])
    assert float(elbow(curve, method)) == pytest.approx(0.1, abs=0.06)


@pytest.mark.parametrize("method", ["chord", "curvature"])
def test_without_an_elbow_every_head_passes(method):
    assert elbow(np.full(40, 0.3), method) == 0.3
    assert float(elbow(np.sqrt(np.linspace(0, 1, 64)), "chord")) == 0
    assert float(elbow(np.linspace(0.2, 0.9, 64), method)) == pytest.approx(0.2)
    assert elbow([0.7], method) == 0.7
    assert elbow([0.1, 0.7], method) == 0.1


def test_of_equal_bends_the_lower_is_the_elbow():
    """Two steps of the same height far from each other, which rounding would tell apart."""
    curve = np.repeat([0, 0.25, 0.5, 1], [13, 12, 4, 1])
    assert elbow(curve, "curvature") == elbow(curve[::-1], "curvature") == 0


def test_elbow_of_many_samples_at_once_and_a_given_number():
    values = np.random.default_rng(1).random((6, 30))
    each = [float(elbow(v)) for v in values]
    assert elbow(values).tolist() == each
    assert elbow(values, 0.24).tolist() == [0.24] * 6


def test_kept_heads_leaves_out_the_first_layers_and_what_is_below_tau():
    sums = np.array([[0.9, 0.9], [0.9, 0.9], [0.1, 0.5], [0.4, 0.39]])
    assert np.argwhere(kept_heads(sums, Recipe(elbow=0.4))).tolist() == [[2, 1], [3, 0]]
    assert np.argwhere(kept_heads(sums, Recipe(), tau=0.45)).tolist() == [[2, 1]]
    assert kept_heads(sums, Recipe(criteria="entropy", skip_layers=3)).sum() == 2
    assert kept_heads(np.stack([sums, sums]), Recipe(elbow=0.4)).sum() == 4


def test_first_settles_ties_by_attention_sum_then_by_place():
    values = np.array([[1.0, 0.0, 1.0, 1.0, np.inf], [0.0, -0.0, 0.0, 0.0, 0.0]], np.float32)
    sums = np.array([[0.2, 0.1, 0.3, 0.3, 0.9], [0.5, 0.5, 0.5, 0.5, 0.5]], np.float32)
    found, tied = first(values, sums, 2)
    assert found.tolist() == [[1, 2], [0, 1]]
    assert tied.tolist() == [[False, True], [True, True]]
    found, tied = first(values, sums, 4)
    assert found[0].tolist() == [1, 2, 3, 0] and not tied[0, 3]
    assert first(values, sums, 9)[0].tolist() == [[1, 2, 3, 0, -1], [0, 1, 2, 3, 4]]


@settings(derandomize=True, deadline=None, database=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([1, 2, 5, 1000]))
def test_first_is_a_sort(seed, count, levels):
    random = np.random.default_rng(seed)
    values, sums = random.integers(-levels, levels, (2, 6, 10)).astype(np.float32) / 3
    values[random.random(values.shape) < 0.2] = np.inf
    found, tied = first(values, sums, count)
    for row, heads in enumerate(found):
        v = values[row]
        order = sorted(range(10), key=lambda h: (v[h], -sums[row][h], h))
        order = [h for h in order if np.isfinite(v[h])]
        assert [h for h in heads if h >= 0] == order[:count]
        for i, h in enumerate(order[:count]):
            assert tied[row, i] == (i + 1 < len(order) and v[h] == v[order[i + 1]])


def test_greedy_falls_back_on_attention_sums_and_on_skipped_layers_last():
    sums = np.array([[[0.9, 0.8], [0.1, 0.2], [0.3, 0.6]]])
    entropies = np.full((1, 3, 2), np.inf)
    entropies[0, 2, 0] = 1.0
    recipe = Recipe(k=5, skip_layers=1, elbow=0.25)
    assert greedy(sums, entropies, recipe, kept=None).tolist() == [[4, 5, 3, 2, 0]]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s, e: rank(s, e[:, :1]), "must both be"),
        (lambda s, e: rank(s[:0], e[:0]), "must both be"),
        (lambda s, e: rank(s, e * np.nan), "entropies must be finite, but sample 0 has nan at L0"),
        (lambda s, e: rank(s * np.inf, e), "attention_sums must be finite"),
        (lambda s, e: rank(s, e, trials=61), "trials must be 1 to the 60 samples"),
        (lambda s, e: rank(s, e, recipe=Recipe(k=31)), "recipe.k must be at most 30, the model's"),
        (lambda s, e: rank(s, e, recipe=Recipe(skip_layers=5)), "in the 0 of 5 layers behind"),
        (lambda s, e: rank(s, e, recipe=Recipe(elbow=2)), "an attention sum of at least 2"),
        (lambda s, e: rank(s, np.full_like(e, np.inf)), "and a finite entropy; lower skip_layers"),
        (lambda s, e: greedy(s, e, Recipe(k=31), kept=None), "recipe.k must be at most 30"),
        (lambda s, e: elbow([]), "at least one head"),
        (lambda s, e: elbow([0.1, np.nan]), "leave out samples"),
        (lambda s, e: elbow([0.1], "kink"), "method must be"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_input_is_said(call, says):
    with pytest.raises(ValueError, match=says):
        call(*table())
