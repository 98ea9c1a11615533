"""Other choices from a table beside those made by hand: N, tau, criteria, own heads, resamples."""

from random import Random

import by_hand
import fastground as fg
import numpy as np
import pytest
from fastground.ablations import ablate
from fastground.ranking import rank_table
from fastground.table import HeadTable

HEADS = by_hand.heads
CRITERIA = [("both", "mean"), ("both", "sample"), ("attention_sum", "mean"), ("entropy", "mean")]


def table_of(seed):
    """(columns, recipe): of 30 samples on 12 images; some without a mask, some maps empty."""
    rng, random = np.random.default_rng(seed), Random(seed)
    shape = (30, random.randint(2, 4), random.randint(3, 6))
    sums = rng.beta(0.6, 1.5, shape[1:]) * rng.uniform(0.5, 1, shape)
    entropies = rng.gamma(3, 0.5, shape)
    if random.random() < 0.4:  # ties
        sums, entropies = np.ceil(sums * 8) / 8, np.round(entropies * 8) / 8
    entropies[rng.random(shape) < 0.05] = np.inf
    ious = rng.random(shape)
    ious[rng.random(30) < 0.2] = np.nan
    columns = {"sums": sums, "entropies": entropies, "ious": ious}
    columns = {name: value.astype(np.float32) for name, value in columns.items()}
    columns["image_ids"] = np.sort(rng.integers(0, 12, 30))
    recipe = fg.Recipe(
        elbow=random.choice(["chord", "curvature", 0.2]),
        scope=random.choice(["mean", "sample"]),
        criteria=random.choice(["both", "both", "attention_sum", "entropy"]),
        skip_layers=random.randint(0, 1), top_n=random.randint(1, 6), k=random.randint(1, 4),
    )  # fmt: skip
    return columns, recipe


def assert_choice(choice, arrays, recipe, best, name):
    by = HEADS.choice(*arrays, recipe, best)
    assert [tuple(h) for h in choice.heads] == by.pop("heads"), name
    for what, value in by.items():
        assert getattr(choice, what) == pytest.approx(value, abs=1e-6, nan_ok=True), (name, what)


@pytest.mark.parametrize("seed", [0, 4, 111, 118, 181, 217, 338, 473])
def test_every_choice(seed):
    check(seed)


def check(seed, draws=400):
    columns, recipe = table_of(seed)
    arrays = [columns[name].astype(float) for name in ("sums", "entropies", "ious")]
    try:
        ranking = rank_table(HeadTable.of(columns, recipe=recipe), trials=1)
    except ValueError as error:
        assert "must leave heads to elect" in str(error)
        assert not HEADS.ranking(*arrays[:2], recipe)[1].any()
        return
    found = ablate(HeadTable.of(columns, recipe=recipe), ranking, most_n=8, resamples=draws)
    mean = arrays[0].mean(0)
    tau, best = float(HEADS.elbow(mean, recipe.elbow)), [tuple(h) for h in ranking.top()]
    assert ranking.tau == pytest.approx(tau, abs=1e-6)
    for n, choice in enumerate(found.by_n, start=1):
        assert_choice(choice, arrays, recipe.replace(top_n=n), best, f"N {n}")
    for i, choice in enumerate(found.by_tau):
        changed = recipe.replace(elbow=round(0.5 + 0.1 * i, 1) * ranking.tau, criteria="both")
        assert_choice(choice, arrays, changed, best, f"tau {i}")
    assert len(found.by_tau) == 11
    for (criteria, scope), choice in zip(CRITERIA, found.by_criteria, strict=True):
        changed = recipe.replace(criteria=criteria, scope=scope)
        assert_choice(choice, arrays, changed, best, (criteria, scope))
    rho, heads = HEADS.rho(*arrays, recipe)
    assert found.rho_heads == heads and found.rho == pytest.approx(rho, abs=1e-9, nan_ok=True)
    tops, ends = HEADS.surenesses(*arrays[:2], columns["image_ids"], recipe, draws, seed)
    ours = {tuple(s.head): s for s in found.sureness}
    for head in np.ndindex(mean.shape):
        in_top, interval = 0.0, None
        if head in ours:
            in_top, interval = ours[head].in_top, ours[head].interval
            assert interval == pytest.approx(tuple(ends[(slice(None), *head)]), abs=0.12), head
        assert in_top == pytest.approx(tops[head], abs=0.15), head
