"""Many samples' two numbers a head -> the heads ranked by selection frequency.

    attention sums (N, L, H) --mean, sort--> curve --elbow--> tau --> kept heads
    entropies      (N, L, H) --kept, finite, top_n lowest a sample--> elected heads
    share of samples that elected a head = its selection frequency; rank by it

The table is read block by block, its float32 numbers added up as float64.

Source: Kang et al., CVPR 2025 (arXiv 2503.06287), section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastground.counts import check_whole
from fastground.elbow import elbow
from fastground.election import check_values, checked, elect, in_order, kept_heads
from fastground.metrics import spearman
from fastground.table import HeadTable
from fastground.types import HeadId, HeadRanking, RankedHead, Recipe

MOST_TRIALS = 1000
"""Each of them is a ranking of its own."""


def rank(
    attention_sums: np.ndarray,
    entropies: np.ndarray,
    *,
    recipe: Recipe = Recipe(),
    trials: int = 5,
    seed: int = 0,
) -> HeadRanking:
    """The ranking of arrays in memory; all else as `rank_table`.

    Args:
        attention_sums: (N, L, H) in [0, 1].
        entropies: (N, L, H) nats, +inf where a map is empty.

    Raises:
        ValueError: wrong shapes, or what `rank_table` refuses.
    """
    sums, entropy = checked(attention_sums, entropies)
    table = HeadTable.of({"sums": sums, "entropies": entropy}, recipe=recipe)
    return rank_table(table, trials=trials, seed=seed)


def rank_table(
    table: HeadTable, recipe: Recipe | None = None, *, trials: int = 5, seed: int = 0
) -> HeadRanking:
    """All heads that see the image by selection frequency, best first.

    The order is: heads that may be chosen before those of the skipped layers, then frequency, then
    mean attention sum, then (layer, head); with criteria "attention_sum" the mean attention sum
    decides, and the frequency says how often a head was among the `top_n` highest.

    Args:
        table: read twice, block by block; never all at once.
        recipe: elbow, scope, criteria, skip_layers, top_n and k are read here; the table's own
            unless given, and its statistics' switches must be the table's.
        trials: random disjoint parts of equal size, N // trials samples each, on which the whole
            procedure is repeated for the spread; the ranking itself is over all N. With 5,000
            samples and five trials a part is the paper's random set of 1,000.
        seed: of the parts.

    Returns:
        The ranking; `frequency_std` is the sample standard deviation over the trials (0 for one).

    Raises:
        ValueError: other statistics than the table holds, NaN, fewer samples than trials, fewer
            heads than k, or a recipe under which no sample elects any head.
    """
    recipe = table.recipe if recipe is None else recipe
    table.check(recipe)
    check_whole("seed", seed, 0)
    check_whole("trials", trials, 1, MOST_TRIALS)
    n = table.num_samples
    if trials > n:
        raise ValueError(f"trials must be 1 to the {n} samples given, but got {trials}")
    part_of = np.full(n, trials)  # what is left over is in no part
    part_of[np.random.default_rng(seed).permutation(n)[: n // trials * trials]] = np.repeat(
        np.arange(trials), n // trials
    )
    everything, parts, entropy_mean = _means(table, part_of, trials)
    shape = everything.shape
    if recipe.k > everything.size:
        raise ValueError(
            f"recipe.k must be at most {everything.size}, the model's heads, but got {recipe.k}"
        )
    tallies = [_Tally(mean, recipe) for mean in (everything, *parts)]
    start = 0
    for sums, entropies in table.blocks("sums", "entropies"):
        part = part_of[start : start + len(sums)]
        start += len(sums)
        tallies[0].add(sums, entropies)
        for i, tally in enumerate(tallies[1:]):
            if trials > 1:
                tally.add(sums[part == i], entropies[part == i])
    if trials == 1:
        tallies[1] = tallies[0]
    whole, *each = tallies
    if not whole.votes.any():
        raise ValueError(
            f"recipe must leave heads to elect, but in the {max(0, shape[0] - recipe.skip_layers)} "
            f"of {shape[0]} layers behind skip_layers={recipe.skip_layers} no head has an "
            f"attention sum of at least {whole.tau:.3g} and a finite entropy; lower skip_layers or "
            "elbow"
        )
    spread = np.zeros(everything.size)
    if trials > 1:
        spread = np.std([tally.frequency for tally in each], axis=0, ddof=1)

    def head(place: int) -> HeadId:
        return HeadId(int(place) // shape[1], int(place) % shape[1])

    return HeadRanking(
        heads=tuple(
            RankedHead(
                head=head(i),
                frequency=float(whole.frequency[i]),
                frequency_std=float(spread[i]),
                attention_sum=float(everything.reshape(-1)[i]),
                entropy=float(entropy_mean.reshape(-1)[i]),
            )
            for i in whole.order
        ),
        tau=whole.tau,
        curve=tuple(float(v) for v in whole.curve),
        num_samples=n,
        trials=tuple(tuple(head(i) for i in tally.order[: recipe.k]) for tally in each),
        recipe=recipe,
        checkpoint=table.checkpoint,
        architecture=dict(table.architecture),
        dataset=table.dataset,
        split=table.split,
        versions=dict(table.versions),
        revision=table.revision,
        ties=whole.ties,
    )


def _means(
    table: HeadTable, part_of: np.ndarray, parts: int
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """(L, H) mean attention sums of all samples, those of each part, and mean finite entropies."""
    sum_total: Any = 0.0
    entropy_total: Any = 0.0
    finite_total: Any = 0
    part_totals: list[Any] = [0.0] * parts
    start = 0
    for sums, entropies in table.blocks("sums", "entropies"):
        check_values(sums, entropies, start)
        part = part_of[start : start + len(sums)]
        start += len(sums)
        sum_total = sum_total + sums.sum(axis=0, dtype=np.float64)
        for i in range(parts):
            part_totals[i] = part_totals[i] + sums[part == i].sum(axis=0, dtype=np.float64)
        finite = entropies < np.inf
        finite_total = finite_total + finite.sum(axis=0)
        entropy_total = entropy_total + np.where(finite, entropies, 0).sum(axis=0, dtype=np.float64)
    size = table.num_samples // parts
    entropy_mean = np.where(finite_total > 0, entropy_total / np.maximum(finite_total, 1), np.inf)
    return sum_total / table.num_samples, [total / size for total in part_totals], entropy_mean


class _Tally:
    """The procedure on some of the samples: tau, kept heads, elections, frequencies, order."""

    def __init__(self, mean: np.ndarray, recipe: Recipe) -> None:
        self.recipe = recipe
        self.mean = mean.reshape(-1)
        self.seeing = self.mean != 0
        self.curve = np.sort(self.mean[self.seeing] if self.seeing.any() else self.mean)
        self.tau = float(elbow(self.curve, recipe.elbow))
        self.kept = kept_heads(mean, recipe, tau=self.tau)
        self.votes = np.zeros(self.mean.size, dtype=np.int64)
        self.samples = self.ties = 0

    def add(self, sums: np.ndarray, entropies: np.ndarray) -> None:
        """The elections of some more samples."""
        recipe, kept = self.recipe, self.kept
        if not len(sums):
            return
        if recipe.scope == "sample":
            kept = kept_heads(sums, recipe, seeing=self.seeing.reshape(kept.shape))
        found, tied = elect(sums, entropies, kept, recipe, recipe.top_n)
        self.votes += np.bincount(found[found >= 0], minlength=len(self.votes))
        self.ties += int(tied[:, recipe.top_n - 1 :].sum())
        self.samples += len(sums)

    @property
    def frequency(self) -> np.ndarray:
        """(heads,) share of the samples that elected each head."""
        return self.votes / self.samples

    @property
    def order(self) -> np.ndarray:
        """The heads that see the image, best first."""
        return in_order(self.votes, self.mean, self.kept.shape, self.recipe)


def correlation(ranking: HeadRanking, ious: np.ndarray | None) -> tuple[float, int]:
    """Spearman's correlation of selection frequency and mask IoU, and over how many heads.

    Args:
        ranking: whose often elected heads are looked at.
        ious: (L, H) mean IoU of each head's binarized map with the true masks; nan without.
    """
    often = ranking.often()
    if ious is None:
        return float("nan"), len(often)
    return spearman([h.frequency for h in often], [ious[h.head] for h in often]), len(often)
