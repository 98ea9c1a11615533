"""Every ablation of the ranking from the table alone: what the choice of heads hangs on.

    table, one more reading --+-- N = 1..14      how many heads a sample elects (Fig. 14)
                              +-- tau            a range around the elbow (Fig. 13)
                              +-- criteria       one, the other, both; fixed or own (Table 5)
                              +-- resamples      how sure a head is among the first k
    mean IoU of every head -------- rho          whether often elected is well localized (Fig. 6)

A sample's first heads in order hold its election for every N, and its own k heads, too; so each
criterion and each tau costs one partial sort.

Source: Kang et al., CVPR 2025 (arXiv 2503.06287), section 3 and appendix.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastground.election import elect, in_order, kept_heads
from fastground.ranking import correlation
from fastground.table import HeadTable
from fastground.types import HeadId, HeadRanking, Recipe

MOST_N = 14
TAUS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
"""The thresholds tried, over the ranking's."""
RESAMPLES = 1000

_NONE = float("nan")


@dataclass(frozen=True)
class Choice:
    """What one setting chooses."""

    name: str
    heads: tuple[HeadId, ...]
    """The first k by selection frequency, fewer where fewer are ever elected; or by their sums."""
    shared: int
    """How many of them are among the ranking's first k."""
    kept: int
    """Heads that pass the first criterion; with scope "sample", in any sample."""
    iou: float
    """Mean IoU of their binarized maps with the true masks; nan without masks."""
    own_shared: float
    """Share of the heads chosen anew for each sample that are among the fixed k: k of each, and
    fewer where fewer pass, where a grounder under selection "greedy" takes others to make k."""
    own_iou: float
    """As `iou`, of the heads chosen anew for each sample."""


@dataclass(frozen=True)
class Sureness:
    """One head, when the images are drawn anew."""

    head: HeadId
    in_top: float
    """Share of the resamples in which it is among the first k."""
    interval: tuple[float, float]
    """95 % of its selection frequencies."""


@dataclass(frozen=True)
class Ablations:
    """What the ranking becomes under other choices."""

    by_n: tuple[Choice, ...]
    """Of `top_n` from 1 on."""
    by_tau: tuple[Choice, ...]
    by_criteria: tuple[Choice, ...]
    """Both criteria by each scope, then each criterion alone."""
    sureness: tuple[Sureness, ...]
    """Of every head that is among the first k in some resample, by the ranking's order."""
    rho: float
    """Spearman's correlation of selection frequency and mean IoU; nan without masks."""
    rho_heads: int
    """Of how many heads: those elected in at least 1 % of the samples."""

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, as JSON keeps it."""
        return asdict(self)


def ablate(
    table: HeadTable,
    ranking: HeadRanking,
    *,
    most_n: int = MOST_N,
    taus: Sequence[float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ablations:
    """What the ranking becomes under other choices, from one more reading of its table.

    Args:
        table: the ranking's; read block by block.
        ranking: made from it; its recipe holds but for the one choice that is looked at.
        most_n: N goes from 1 to this.
        taus: thresholds; half to one and a half times the ranking's unless given.
        resamples: of the images, each drawn a Poisson-distributed number of times; tau stays.
        seed: of the resamples.

    Raises:
        ValueError: a table that is not the ranking's, or most_n or resamples below 1.
    """
    recipe = ranking.recipe
    table.check(recipe)
    if table.num_samples != ranking.num_samples or most_n < 1 or resamples < 1:
        raise ValueError(
            "table must be the ranking's and most_n and resamples at least 1, but got "
            f"{table.num_samples} and {ranking.num_samples} samples, {most_n} and {resamples}; "
            "rank this table first"
        )
    mean = np.zeros(table.shape)
    for ranked in ranking.heads:
        mean[ranked.head] = ranked.attention_sum
    base = (recipe, ranking.tau)
    taus = [factor * ranking.tau for factor in TAUS] if taus is None else taus
    by_tau = [(_at(recipe, float(tau)), float(tau)) for tau in taus]
    by_criteria = [
        (recipe.replace(criteria=criteria, scope=scope), ranking.tau)
        for criteria, scope in _CRITERIA
    ]
    # A setting that is met twice is counted once; the ranking's own comes first.
    counts = {s: _Count(*s, mean, most_n) for s in dict.fromkeys([base, *by_tau, *by_criteria])}
    draws = _Resamples(counts[base].columns, resamples, seed)
    columns = ("image_ids", "sums", "entropies", *["ious"][: table.has_ious])
    with ThreadPoolExecutor() as pool:
        for images, *matrices in table.blocks(*columns):
            found, *_ = pool.map(lambda count: count.add(*matrices), counts.values())  # noqa: B023
            draws.add(found[:, : recipe.top_n], images, matrices[0])

    ious, best = table.mean_ious, set(ranking.top())
    rho, rho_heads = correlation(ranking, ious)

    def choice(name: str, setting: tuple[Recipe, float], top_n: int = recipe.top_n) -> Choice:
        return counts[setting].choice(name, top_n, best, ious)

    return Ablations(
        by_n=tuple(choice(f"N {n}", base, n) for n in range(1, most_n + 1)),
        by_tau=tuple(choice(f"tau {s[1]:.3g}", s) for s in by_tau),
        by_criteria=tuple(choice(_called(s[0]), s) for s in by_criteria),
        sureness=draws.sureness(ranking),
        rho=rho,
        rho_heads=rho_heads,
    )


_CRITERIA = (
    ("both", "mean"), ("both", "sample"), ("attention_sum", "mean"), ("entropy", "mean"),
)  # fmt: skip


def _at(recipe: Recipe, tau: float) -> Recipe:
    """The recipe under which heads pass that threshold, by their mean or each sample's own sum."""
    sums = {} if recipe.scope == "mean" else {"elbow": tau}
    return recipe.replace(criteria="both", **sums)


def _called(recipe: Recipe) -> str:
    if recipe.criteria != "both":
        return f"{recipe.criteria.replace('_', ' ')} only"
    return "both criteria" + (", each sample's own tau" if recipe.scope == "sample" else "")


class _Count:
    """The elections under one recipe and threshold, for every N at once."""

    def __init__(self, recipe: Recipe, tau: float, mean: np.ndarray, most_n: int) -> None:
        self.recipe, self.mean = recipe, mean
        self.seeing = mean != 0
        self.kept = kept_heads(mean, recipe, tau=tau)
        if recipe.scope == "sample":
            self.kept = np.zeros_like(self.kept)
        self.most = min(max(most_n, recipe.top_n, recipe.k), mean.size)
        self.votes = np.zeros((self.most, mean.size), dtype=np.int64)  # by place in the order
        self.iou, self.iou_count, self.samples = 0.0, 0, 0

    @property
    def columns(self) -> np.ndarray:
        """The heads that may be elected."""
        if self.recipe.scope == "mean":
            return np.flatnonzero(self.kept)
        return np.flatnonzero(kept_heads(self.mean, self.recipe.replace(criteria="entropy")))

    def add(
        self, sums: np.ndarray, entropies: np.ndarray, ious: np.ndarray | None = None
    ) -> np.ndarray:
        """(n, most) heads that these samples elect, in order; -1 where there are fewer."""
        kept = self.kept
        if self.recipe.scope == "sample":
            kept = kept_heads(sums, self.recipe, seeing=self.seeing)
            self.kept = self.kept | kept.any(axis=0)
        found, _ = elect(sums, entropies, kept, self.recipe, self.most)
        n, count = found.shape
        there = found >= 0
        places = np.broadcast_to(np.arange(count), found.shape)
        numbers = places[there] * self.mean.size + found[there]
        self.votes += np.bincount(numbers, minlength=self.votes.size).reshape(self.votes.shape)
        self.samples += n
        if ious is not None:
            own, some = found[:, : self.recipe.k], there[:, : self.recipe.k]
            values = np.take_along_axis(ious.reshape(n, -1), np.maximum(own, 0), axis=1)
            some = some & np.isfinite(values)
            self.iou += float(values[some].sum(dtype=np.float64))
            self.iou_count += int(some.sum())
        return found

    def choice(self, name: str, top_n: int, best: set[HeadId], ious: np.ndarray | None) -> Choice:
        """What the elections of `top_n` heads a sample come to."""
        votes = self.votes[:top_n].sum(axis=0)
        order = in_order(votes, self.mean.reshape(-1), self.mean.shape, self.recipe)
        by_sum = self.recipe.criteria == "attention_sum"  # whether or not a sample elects them
        fixed = [i for i in order[: self.recipe.k] if by_sum or votes[i]]
        heads = tuple(HeadId(*map(int, divmod(i, self.mean.shape[1]))) for i in fixed)
        own = self.votes[: self.recipe.k].sum(axis=0)
        return Choice(
            name=name,
            heads=heads,
            shared=len(best & set(heads)),
            kept=int(self.kept.sum()),
            iou=_NONE if ious is None or not heads else float(np.mean([ious[h] for h in heads])),
            own_shared=float(own[fixed].sum() / max(own.sum(), 1)),
            own_iou=self.iou / self.iou_count if self.iou_count else _NONE,
        )


class _Resamples:
    """Votes and attention sums when each image is drawn a Poisson-distributed number of times."""

    def __init__(self, columns: np.ndarray, resamples: int, seed: int) -> None:
        self.columns = columns
        self.random = np.random.default_rng(seed)
        self.votes = np.zeros((resamples, len(columns)))
        self.sums = np.zeros_like(self.votes)
        self.samples = np.zeros(resamples)
        self.last: tuple[int, np.ndarray] | None = None  # an image may go on in the next block

    def add(self, found: np.ndarray, images: np.ndarray, sums: np.ndarray) -> None:
        """Some more samples' elections, (n, top_n) heads, images and attention sums (n, L, H)."""
        starts = np.flatnonzero(np.concatenate([[True], images[1:] != images[:-1]]))
        weights = self.random.poisson(1, (len(starts), len(self.samples))).astype(np.float32)
        if self.last is not None and self.last[0] == images[0]:
            weights[0] = self.last[1]
        self.last = (int(images[-1]), weights[-1])
        run = np.repeat(np.arange(len(starts)), np.diff([*starts, len(images)]))
        there = found >= 0
        numbers = np.searchsorted(self.columns, found[there])
        numbers += np.broadcast_to(run[:, None], found.shape)[there] * len(self.columns)
        votes = np.bincount(numbers, minlength=len(starts) * len(self.columns))
        self.votes += weights.T @ votes.reshape(len(starts), -1).astype(np.float32)
        seen = sums.reshape(len(sums), -1).take(self.columns, axis=1)
        self.sums += weights.T @ np.add.reduceat(seen, starts, axis=0)
        self.samples += weights.T @ np.bincount(run)

    def sureness(self, ranking: HeadRanking) -> tuple[Sureness, ...]:
        """Of every head that is among the first k of some resample."""
        by = [-self.sums, -self.votes][: 1 if ranking.recipe.criteria == "attention_sum" else 2]
        first = np.lexsort(by, axis=1)[:, : ranking.recipe.k]  # of equals the first in order
        in_top = np.bincount(first.reshape(-1), minlength=len(self.columns)) / len(first)
        shares = self.votes / np.maximum(self.samples, 1)[:, None]
        low, high = np.quantile(shares, (0.025, 0.975), axis=0)
        heads = ranking.architecture["num_heads"]
        place = {HeadId(*divmod(int(h), heads)): i for i, h in enumerate(self.columns)}
        ranked = [(h.head, place[h.head]) for h in ranking.heads if h.head in place]
        return tuple(
            Sureness(head, float(in_top[i]), (float(low[i]), float(high[i])))
            for head, i in ranked
            if in_top[i] > 0
        )
