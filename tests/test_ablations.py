"""Ablations from the table: each setting as if the whole ranking were made anew under it."""

import dataclasses
import json

import numpy as np
import pytest
from fastground.ablations import ablate
from fastground.metrics import spearman
from fastground.ranking import rank_table
from fastground.table import HeadTable
from fastground.types import Recipe

RECIPE = Recipe(top_n=4, k=3)
SHAPE = (5, 6)


def made_up(n=60, seed=0, levels=None, masks=True):
    random = np.random.default_rng(seed)
    sums = random.beta(0.6, 1.5, SHAPE) * random.uniform(0.5, 1, (n, *SHAPE))
    entropies = random.gamma(3, 0.5, (n, *SHAPE))
    if levels:
        sums, entropies = np.round(sums * levels) / levels, np.round(entropies * levels) / levels
    sums[:, 3, 4] = 0
    entropies[random.random(entropies.shape) < 0.05] = np.inf
    columns = {"sums": sums.astype(np.float32), "entropies": entropies.astype(np.float32)}
    columns["image_ids"] = np.arange(n) // 4
    if masks:
        columns["ious"] = random.random((n, *SHAPE)).astype(np.float32)
        columns["ious"][::7] = np.nan
    return HeadTable.of(columns, recipe=RECIPE)


def top(ranking):
    return tuple(h.head for h in ranking.heads[: RECIPE.k] if h.frequency)


@pytest.mark.parametrize("levels", [None, 6])
@pytest.mark.parametrize("scope", ["mean", "sample"])
@pytest.mark.parametrize("criteria", ["both", "entropy"])
def test_each_setting_is_the_ranking_under_it(levels, criteria, scope):
    table = made_up(levels=levels)
    recipe = RECIPE.replace(criteria=criteria, scope=scope)
    ranking = rank_table(table, recipe)
    found = ablate(table, ranking, taus=(0.1, 0.25), resamples=5)
    assert [c.name for c in found.by_n] == [f"N {n}" for n in range(1, 15)]
    for n, choice in enumerate(found.by_n, start=1):
        assert choice.heads == top(rank_table(table, recipe.replace(top_n=n)))
        assert choice.shared == len(set(choice.heads) & set(ranking.top()))
    for tau, choice in zip((0.1, 0.25), found.by_tau, strict=True):
        changed = recipe.replace(criteria="both", elbow=tau)
        assert choice.heads == top(rank_table(table, changed))
        sums = table.mean_sums[recipe.skip_layers :]
        passing = (sums >= tau) & (sums > 0)
        if scope == "sample":
            passing = (table.sums[:, recipe.skip_layers :] >= tau).any(0) & (sums > 0)
        assert choice.kept == passing.sum()
    settings = [
        ("both", "mean"),
        ("both", "sample"),
        ("attention_sum", "mean"),
        ("entropy", "mean"),
    ]
    for (by, scope), choice in zip(settings, found.by_criteria, strict=True):
        changed = recipe.replace(criteria=by, scope=scope)
        assert choice.heads == top(rank_table(table, changed))
    assert [c.name for c in found.by_criteria] == [
        "both criteria", "both criteria, each sample's own tau", "attention sum only",
        "entropy only",
    ]  # fmt: skip


def test_own_heads_and_their_ious_by_hand():
    table = made_up(seed=4)
    ranking = rank_table(table)
    found = ablate(table, ranking, resamples=5)
    fixed, shared, own, ious = set(ranking.top()), 0, 0, []
    kept = table.mean_sums >= ranking.tau
    for sums, entropies, truth in zip(table.sums, table.entropies, table.ious, strict=True):
        heads = [h for h in np.ndindex(SHAPE) if h[0] >= 2 and kept[h] and entropies[h] < np.inf]
        heads = sorted(heads, key=lambda h: (entropies[h], -sums[h], h))[:3]
        own += len(heads)
        shared += len(fixed & set(heads))
        ious += [truth[h] for h in heads if np.isfinite(truth[h])]
    both = found.by_criteria[0]
    assert both.own_shared == pytest.approx(shared / own)
    assert both.own_iou == pytest.approx(np.mean(ious))
    mean = np.nanmean(table.ious, axis=0)
    assert both.iou == pytest.approx(np.mean([mean[h] for h in ranking.top()]))
    frequent = [h for h in ranking.heads if h.frequency >= 0.01]
    assert found.rho_heads == len(frequent)
    assert found.rho == pytest.approx(
        spearman([h.frequency for h in frequent], [mean[h.head] for h in frequent])
    )


def test_resamples_tell_how_sure_a_head_is():
    table = made_up(n=4000, seed=1)
    ranking = rank_table(table)
    found = ablate(table, ranking, resamples=400, seed=2)
    assert found == ablate(table, ranking, resamples=400, seed=2)
    assert sum(s.in_top for s in found.sureness) == pytest.approx(3)
    place = {h.head: h for h in ranking.heads}
    for sure in found.sureness:
        frequency = place[sure.head].frequency
        low, high = sure.interval
        assert low < frequency < high
        # Votes of one head are nearly independent here: the binomial spread, with images of four.
        spread = (frequency * (1 - frequency) / 4000) ** 0.5
        assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.25)
    certain = made_up(n=200)
    sums, entropies = certain.sums.copy(), certain.entropies.copy()
    for i, head in enumerate(((2, 0), (3, 1), (4, 2))):
        sums[(slice(None), *head)] = 0.99
        entropies[(slice(None), *head)] = 0.001 * i
    table = HeadTable.of({"sums": sums, "entropies": entropies}, recipe=RECIPE)
    assert [s.in_top for s in ablate(table, rank_table(table)).sureness] == [1, 1, 1]


def test_by_attention_sum_alone_a_head_is_as_sure_as_its_sums():
    """Two heads, each the largest in half of the images: neither is sure to be the first."""
    sums = np.zeros((40, 3, 2), np.float32) + 0.1
    sums[::2, 2, 0] = sums[1::2, 2, 1] = 0.5
    columns = {"sums": sums, "entropies": np.ones_like(sums)}
    recipe = Recipe(criteria="attention_sum", k=1, top_n=1)
    table = HeadTable.of(columns, recipe=recipe)
    found = ablate(table, rank_table(table, recipe, trials=1), resamples=400)
    assert [tuple(one.head) for one in found.sureness] == [(2, 0), (2, 1)]
    assert [one.in_top for one in found.sureness] == pytest.approx([0.5, 0.5], abs=0.15)


def test_the_first_by_attention_sum_need_not_be_elected():
    """The largest mean is of a head that is second everywhere."""
    sums = np.zeros((40, 3, 3), np.float32) + 0.01
    sums[:, 2, 0], sums[::2, 2, 1], sums[1::2, 2, 2] = 0.6, 0.7, 0.7
    columns = {"sums": sums, "entropies": np.ones_like(sums)}
    recipe = Recipe(criteria="attention_sum", k=2, top_n=1)
    table = HeadTable.of(columns, recipe=recipe)
    ranking = rank_table(table, recipe, trials=1)
    (choice,) = ablate(table, ranking, most_n=1, resamples=1).by_n
    assert choice.heads == ranking.top() and choice.heads[0] == (2, 0) and choice.shared == 2


def test_blocks_do_not_matter(monkeypatch):
    table = made_up(n=90, levels=6)
    ranking = rank_table(table)
    whole = ablate(table, ranking, resamples=3)
    monkeypatch.setattr("fastground.table.ROWS", 7)
    found = ablate(made_up(n=90, levels=6), ranking, resamples=3)
    assert found.by_n == whole.by_n and found.by_tau == whole.by_tau
    for one, other in zip(found.by_criteria, whole.by_criteria, strict=True):
        assert dataclasses.replace(one, own_iou=0, iou=0) == dataclasses.replace(
            other, own_iou=0, iou=0
        )
        assert one.own_iou == pytest.approx(other.own_iou)


def test_without_masks_and_as_json():
    table = made_up(masks=False)
    found = ablate(table, rank_table(table), resamples=2)
    assert np.isnan(found.rho) and np.isnan(found.by_n[0].iou) and np.isnan(found.by_n[0].own_iou)
    assert json.loads(json.dumps(found.to_dict()))["by_n"][0]["name"] == "N 1"


def test_bad_input_is_said():
    table = made_up()
    ranking = rank_table(table)
    with pytest.raises(ValueError, match="table must be the ranking's"):
        ablate(made_up(n=30), ranking)
    with pytest.raises(ValueError, match="most_n and resamples at least 1"):
        ablate(table, ranking, resamples=0)


def test_no_sample_elects_more_heads_than_there_are():
    table = made_up()
    all_of_them = RECIPE.replace(top_n=table.mean_sums.size)
    more = RECIPE.replace(top_n=10**11)
    found, same = (ablate(table, rank_table(table, r), resamples=5) for r in (more, all_of_them))
    assert found == same or repr(found) == repr(same)
