"""Choices of heads and of smoothing to be scored beside each other: what a table has rows of.

    heads     the method, its ablations, chance, the oracle            `of_heads`
    4         the number of heads, 1 to 5                              `of_counts`
    5         each criterion alone and both; fixed or chosen greedily  `of_criteria`
    8         sigma and kernel size of the smoothing                   `of_smoothing`
    switches  each choice of the box; the way to the released code     `of_switches`
    objects   which regions are objects                                `of_shares`

Numbers are the paper's own of its tables. Heads are chosen on the training split alone; nothing
here is fitted to a score.

Source: Kang et al., CVPR 2025 (arXiv 2503.06287), tables 4, 5 and 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastground.election import kept_of
from fastground.ranking import rank_table
from fastground.table import HeadTable
from fastground.types import CHOICES, PROFILES, HeadRanking, Recipe

COUNTS = (1, 2, 3, 4, 5)
CRITERIA = (("attention sum only", "attention_sum"), ("entropy only", "entropy"), ("both", "both"))
SIGMAS = (0.5, 1.0, 1.5, 2.0)
KERNEL_SIZES = (3, 5, 7, 9)
RELEASE = PROFILES["repo-2025-08"]
OF_BOXES = ("border", "region", "padding")
STEPS = (
    "scope", "criteria", "elbow", "selection", "weight", "cut", "empty", "bottom_row",
    "padding_stats", "skip_layers", "k", "kernel_size", "sigma", *OF_BOXES,
)  # fmt: skip
"""The fields in which a release may differ on the same maps, in the order of the way to it: what
the statistics read matters once each sample has its own heads."""
SHARES = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05)


@dataclass(frozen=True)
class Setting:
    """What one row of a table does."""

    name: str
    recipe: Recipe
    heads: np.ndarray | None
    """(draws, k) flat numbers, layer * heads + head; None: each sample's own ("greedy")."""
    kept: np.ndarray | None = None
    """(L, H) bool: the heads that greedy choice may take; None: by each sample's own sums."""


def of_heads(
    table: HeadTable, ranking: HeadRanking, *, draws: int = 10, seed: int = 0
) -> list[Setting]:
    """The method, its ablations, random heads, and the oracle where the table has masks.

    Args:
        table: head statistics on the training split.
        ranking: made from that table.
        draws: of random heads, from the layers that may be chosen.
        seed: of the draws.

    Raises:
        ValueError: fewer heads than k in the layers that may be chosen, or no draws.
    """
    recipe, (layers, heads) = ranking.recipe, table.shape
    k = recipe.k
    seeing = (table.mean_sums != 0).reshape(-1)  # of the others some layers have none
    random = np.random.default_rng(seed)
    pool = np.flatnonzero(seeing & (np.arange(layers * heads) >= recipe.skip_layers * heads))
    if k > len(pool) or draws < 1:
        raise ValueError(
            f"recipe.k must be at most the {len(pool)} heads that may be chosen and draws at least "
            f"1, but got {k} and {draws}"
        )
    drawn = np.stack([random.choice(pool, k, replace=False) for _ in range(draws)])
    says = {criteria: name for name, criteria in CRITERIA} | {"both": "both criteria"}
    by = says.pop(recipe.criteria)
    fixed = {
        f"{named(k)}, {by}": flat(ranking, k),
        **{f"{named(k)}, {name}": flat(_alone(table, recipe, c), k) for c, name in says.items()},
        f"{named(k)}, own for each sample": None,
        f"1 head, {by}": flat(ranking, 1),
        f"5 heads, {by}": flat(ranking, 5),
        "all heads": np.flatnonzero(seeing)[None],
        named(k, "random "): drawn,
    }
    if table.mean_ious is not None:
        best = np.argsort(-table.mean_ious.reshape(-1), kind="stable")
        fixed[oracle(k)] = best[None, :k]
    kept = kept_of(ranking, recipe)
    return [Setting(name, recipe, chosen, kept) for name, chosen in fixed.items()]


def of_counts(ranking: HeadRanking) -> list[Setting]:
    """Table 4: the ranking's first k heads, for k from 1 to 5; k of each sample's if greedy."""
    return [
        _as_told(f"k = {k}", ranking, ranking.recipe.replace(k=k))
        for k in COUNTS
        if k <= len(ranking.heads)
    ]


def of_criteria(table: HeadTable, ranking: HeadRanking) -> list[Setting]:
    """Table 5: each criterion alone and both, fixed heads and each sample's own."""
    found = []
    for name, criteria in CRITERIA:
        recipe = ranking.recipe.replace(criteria=criteria)
        own = recipe.replace(selection="greedy")
        fixed = ranking
        if criteria != ranking.recipe.criteria:
            fixed = rank_table(table, recipe, trials=1)
        found.append(Setting(f"{name}, fixed", recipe, flat(fixed, recipe.k)))
        found.append(Setting(f"{name}, greedy", own, None, kept_of(fixed, recipe)))
    return found


def of_smoothing(ranking: HeadRanking) -> list[Setting]:
    """Table 8: no smoothing, then sigma by kernel size."""
    recipe = ranking.recipe.replace(sigma=0.0, kernel_size=1)
    found = [_as_told("not smoothed", ranking, recipe)]
    for sigma in SIGMAS:
        for size in KERNEL_SIZES:
            recipe = ranking.recipe.replace(sigma=sigma, kernel_size=size)
            found.append(_as_told(f"sigma {sigma}, kernel {size}", ranking, recipe))
    return found


def of_switches(ranking: HeadRanking) -> list[Setting]:
    """Where a score comes from, choice by choice, on the same maps.

    The recipe as it is; each other choice of how a box is made, alone; then, with a plus, the way
    to the box and heads of the authors' second release: each choice with all those above it. What
    decides which maps there are, such as sinks, stays as told.
    """
    recipe = ranking.recipe
    found = [_as_told("as told", ranking, recipe)]
    for name in OF_BOXES:
        for choice in CHOICES[name]:
            if choice != getattr(recipe, name):
                alone = recipe.replace(**{name: choice})
                found.append(_as_told(f"{name}={choice}", ranking, alone))
    for name in STEPS:
        value = getattr(RELEASE, name)
        if value != getattr(recipe, name):
            recipe = recipe.replace(**{name: value})
            found.append(_as_told(f"+ {name}={value}", ranking, recipe))
    return found


def of_shares(ranking: HeadRanking) -> list[Setting]:
    """The kept region alone, then with all that have so large a share of the attention."""
    recipes = {"one object": ranking.recipe.replace(objects=None)}
    recipes |= {f"share {share}": ranking.recipe.replace(objects=share) for share in SHARES}
    return [_as_told(name, ranking, recipe) for name, recipe in recipes.items()]


def flat(ranking: HeadRanking, count: int) -> np.ndarray:
    """(1, count) flat numbers of a ranking's first heads."""
    heads = ranking.architecture["num_heads"]
    return np.array([[h.layer * heads + h.head for h in ranking.top(count)]])


def named(k: int, kind: str = "") -> str:
    """So many heads of a kind, in words."""
    return f"1 {kind}head" if k == 1 else f"{k} {kind}heads"


def oracle(k: int) -> str:
    """The name of the oracle's row."""
    return named(k, "oracle ")


def _alone(table: HeadTable, recipe: Recipe, criteria: str) -> HeadRanking:
    return rank_table(table, recipe.replace(criteria=criteria), trials=1)


def _as_told(name: str, ranking: HeadRanking, recipe: Recipe) -> Setting:
    """The ranking's first k heads, or each sample's own where the recipe has it so."""
    if recipe.selection == "greedy":
        return Setting(name, recipe, None, kept_of(ranking, recipe))
    return Setting(name, recipe, flat(ranking, recipe.k))
