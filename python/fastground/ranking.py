"""Many samples' two numbers a head -> the heads ranked by selection frequency.

    attention sums (N, L, H) --mean, sort--> curve --elbow--> tau --> kept heads
    entropies      (N, L, H) --kept, finite, top_n lowest a sample--> elected heads
    share of samples that elected a head = its selection frequency; rank by it

The table is read block by block, its float32 numbers added up as float64. A head whose sum
is 0 in every sample does not see the image at all: there is none in its layer (hybrid models), or
a window ends before it. It is on no curve, in no ranking, and never elected.

Source: Kang et al., CVPR 2025 (arXiv 2503.06287), section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastground.elbow import elbow
from fastground.table import HeadTable
from fastground.types import HeadId, HeadRanking, RankedHead, Recipe

OFTEN = 0.01
"""Heads elected in less than this share of the samples are left out where rank and IoU meet."""


def kept_heads(
    attention_sums: np.ndarray,
    recipe: Recipe,
    *,
    tau: float | None = None,
    seeing: np.ndarray | None = None,
) -> np.ndarray:
    """Which heads pass the first criterion, the first `skip_layers` layers left out.

    Args:
        attention_sums: (L, H) means over the samples, or (N, L, H) of each sample.
        recipe: its elbow, criteria and skip_layers.
        tau: the threshold, where it is known already; else the elbow of the last two dimensions,
            so each sample's own for (N, L, H).
        seeing: (L, H) bool, the heads that see the image, where these samples do not tell.

    Returns:
        Bool of the same shape. With criteria "entropy" or "attention_sum" no head falls to tau.
        A head that never sees the image is not kept, nor on the curve whose elbow is tau.

    Raises:
        ValueError: sums that are not finite.
    """
    sums = np.asarray(attention_sums)
    kept = np.zeros(sums.shape, dtype=bool)
    kept[..., recipe.skip_layers :, :] = True
    seeing = _seeing(sums) if seeing is None else seeing
    if recipe.criteria == "both":
        if tau is None:
            curve = sums[..., seeing] if seeing.any() else sums.reshape(*sums.shape[:-2], -1)
            kept &= sums >= elbow(curve, recipe.elbow)[..., None, None]
        else:
            kept &= sums >= np.float64(tau)
    return kept & seeing


def kept_of(ranking: HeadRanking, recipe: Recipe) -> np.ndarray | None:
    """The heads that greedy choice may take in any sample, by the means of a ranking.

    Args:
        ranking: its attention sums and tau.
        recipe: scope, criteria and skip_layers.

    Returns:
        (L, H) bool; None where each sample's own sums decide (scope "sample").
    """
    if recipe.scope != "mean":
        return None
    shape = ranking.architecture["num_layers"], ranking.architecture["num_heads"]
    means = np.zeros(shape)
    for head in ranking.heads:
        means[head.head] = head.attention_sum
    return kept_heads(means, recipe, tau=ranking.tau)


def _seeing(sums: np.ndarray) -> np.ndarray:
    """(L, H) bool: the heads with any attention on the image in (L, H) or (N, L, H) sums."""
    return (sums != 0).reshape(-1, *sums.shape[-2:]).any(axis=0)


def first(values: np.ndarray, sums: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The heads of lowest finite value in every sample, in order.

    Args:
        values: (N, heads) entropies, +inf where a head may not be elected.
        sums: (N, heads) attention sums; equal values go to the higher sum, then to the head
            first in order.
        count: how many heads; no more are given than there are.

    Returns:
        (N, count) int64 heads, -1 where fewer are finite, and (N, count) bool: whether the value is
        shared with the head that comes next.
    """
    n, heads = values.shape
    count, wanted = min(count, heads), min(count + 1, heads)
    border = np.sort(values, axis=1)[:, wanted - 1 : wanted]
    low = (values <= border) & (values < np.inf)
    many = np.flatnonzero(low.sum(axis=1) > wanted)
    if len(many):  # equal values at the border: those of the higher sums
        level = np.where(low[many], -sums[many], np.inf)
        level[values[many] < border[many]] = -np.inf
        low[many] &= level <= np.sort(level, axis=1)[:, wanted - 1 : wanted]
    rows, columns = np.nonzero(low)
    counts = low.sum(axis=1)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = max(int(counts.max(initial=0)), count)
    some = np.full((n, width), np.inf, dtype=values.dtype)
    weights, found = np.zeros((n, width), dtype=sums.dtype), np.full((n, width), -1)
    some[rows, places] = values[rows, columns]
    weights[rows, places] = -sums[rows, columns]
    found[rows, places] = columns
    order = np.lexsort((weights, some), axis=1)  # stable: the rest goes by place
    found = np.take_along_axis(found, order, axis=1)
    some = np.take_along_axis(some, order, axis=1)
    tied = np.zeros((n, width), dtype=bool)
    tied[:, :-1] = (some[:, 1:] == some[:, :-1]) & (some[:, 1:] < np.inf)
    return found[:, :count], tied[:, :count]


def greedy(
    attention_sums: np.ndarray, entropies: np.ndarray, recipe: Recipe, *, kept: np.ndarray | None
) -> np.ndarray:
    """Each sample's own `k` heads, best first: no ranking from other samples is asked.

    Args:
        attention_sums: (N, L, H) of these samples.
        entropies: (N, L, H), nats, +inf where a map is empty.
        recipe: its criteria and k; "attention_sum" takes the highest sums, else the lowest
            entropies.
        kept: (L, H) or (N, L, H) bool, the heads that passed criterion 1; None computes each
            sample's own.

    Returns:
        (N, k) int64 positions in the flattened L * H. Equal entropies: the higher attention sum,
        then the first in order. Where fewer than k heads are kept with a finite entropy, the
        others follow by attention sum, those of the skipped layers last.

    Raises:
        ValueError: arrays of other shapes, or fewer than k heads that see the image.
    """
    sums, entropy = _checked(attention_sums, entropies)
    n, layers, heads = sums.shape
    seeing = _seeing(sums)
    if recipe.k > seeing.sum():
        raise ValueError(
            f"recipe.k must be at most {seeing.sum()}, the heads that see the image, but got "
            f"{recipe.k}"
        )
    if kept is None:
        kept = kept_heads(sums, recipe)
    allowed = np.zeros((layers, heads), dtype=bool)
    allowed[recipe.skip_layers :] = True
    barred = np.broadcast_to(~allowed + 2 * ~seeing, sums.shape).reshape(n, -1)
    sums = np.asarray(sums, dtype=np.float64)
    if recipe.criteria == "attention_sum":
        value = np.where(kept, -sums, np.inf)
    else:
        value = np.where(kept, entropy, np.inf)
    # lexsort: the last key weighs most; its order is stable, so the rest goes by position.
    order = np.lexsort((-sums.reshape(n, -1), value.reshape(n, -1), barred), axis=-1)
    return order[:, : recipe.k]


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
    sums, entropy = _checked(attention_sums, entropies)
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
        ValueError: other statistics than the table holds, NaN, fewer samples than trials, or a
            recipe under which no sample elects any head.
    """
    recipe = table.recipe if recipe is None else recipe
    table.check(recipe)
    n = table.num_samples
    if not 1 <= trials <= n:
        raise ValueError(f"trials must be 1 to the {n} samples given, but got {trials}")
    part_of = np.full(n, trials)  # what is left over is in no part
    part_of[np.random.default_rng(seed).permutation(n)[: n // trials * trials]] = np.repeat(
        np.arange(trials), n // trials
    )
    everything, parts, entropy_mean = _means(table, part_of, trials)
    shape = everything.shape
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
        _check_values(sums, entropies, start)
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


def elect(
    sums: np.ndarray, entropies: np.ndarray, kept: np.ndarray, recipe: Recipe, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best kept heads of every sample by the recipe's criteria, in order.

    Args:
        sums, entropies: (N, L, H).
        kept: (L, H) or (N, L, H) bool.
        recipe: its criteria.
        count: heads a sample elects; fewer where fewer are kept with a finite entropy.

    Returns:
        As `first`, with heads numbered in the flattened L * H.
    """
    n, heads = len(sums), sums.shape[1] * sums.shape[2]
    values = -sums if recipe.criteria == "attention_sum" else entropies
    flat = kept.reshape(*kept.shape[:-2], heads)
    columns = np.flatnonzero(flat if flat.ndim == 1 else flat.any(axis=0))
    some = values.reshape(n, heads).take(columns, axis=1)
    if flat.ndim == 2:
        some = np.where(flat.take(columns, axis=1), some, np.float32(np.inf))
    if not len(columns):
        return np.full((n, 0), -1), np.zeros((n, 0), dtype=bool)
    found, tied = first(some, sums.reshape(n, heads).take(columns, axis=1), count)
    return np.where(found >= 0, columns[found], -1), tied


def in_order(
    votes: np.ndarray, mean: np.ndarray, shape: tuple[int, ...], recipe: Recipe
) -> np.ndarray:
    """The heads that see the image, best first.

    Args:
        votes: (heads,) in how many samples each was elected.
        mean: (heads,) mean attention sums.
        shape: (L, H).
        recipe: its criteria and skip_layers.

    Returns:
        Their numbers in the flattened L * H.
    """
    barred = np.arange(len(votes)) // shape[1] < recipe.skip_layers
    by = -mean if recipe.criteria == "attention_sum" else -votes
    order = np.lexsort((-mean, by, barred))
    return order[mean[order] != 0]


def _checked(attention_sums: np.ndarray, entropies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two arrays as (N, L, H), finite but for entropies of +inf.

    Raises:
        ValueError: anything else.
    """
    sums, entropy = np.asarray(attention_sums), np.asarray(entropies)
    if sums.ndim != 3 or sums.shape != entropy.shape or 0 in sums.shape:
        raise ValueError(
            "attention_sums and entropies must both be (samples, layers, heads) with at least one "
            f"of each, but got {sums.shape} and {entropy.shape}"
        )
    _check_values(sums, entropy)
    return sums, entropy


def _check_values(sums: np.ndarray, entropies: np.ndarray, start: int = 0) -> None:
    """ValueError unless all are finite but for entropies of +inf; the first sample is `start`."""
    for name, array, most in (("attention_sums", sums, 1e38), ("entropies", entropies, np.inf)):
        if -np.inf < array.min() and array.max() <= most:  # neither holds where there is NaN
            continue
        bad = ~((array > -np.inf) & (array <= most))
        sample, layer, head = np.argwhere(bad)[0]
        raise ValueError(
            f"{name} must be finite, but sample {start + sample} has {array[sample, layer, head]} "
            f"at {HeadId(layer, head)}; leave out samples whose maps hold NaN"
        )
