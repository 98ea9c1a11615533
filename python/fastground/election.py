"""Elections: which heads may be chosen at all, which of them a sample elects, in which order.

    attention sums (L, H) or (N, L, H) --elbow--> kept heads: criterion 1
    entropies      (N, L, H)  --kept, finite, lowest--> each sample's heads: criterion 2

A head whose sum is 0 in every sample does not see the image at all: there is none in its layer
(hybrid models), or a window ends before it. It is on no curve, in no ranking, and never elected.

Source: Kang et al., CVPR 2025 (arXiv 2503.06287), section 3.
"""

from __future__ import annotations

import numpy as np

from fastground.elbow import elbow
from fastground.types import HeadId, HeadRanking, Recipe


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
    sums, entropy = checked(attention_sums, entropies)
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


def _seeing(sums: np.ndarray) -> np.ndarray:
    """(L, H) bool: the heads with any attention on the image in (L, H) or (N, L, H) sums."""
    return (sums != 0).reshape(-1, *sums.shape[-2:]).any(axis=0)


def checked(attention_sums: np.ndarray, entropies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    check_values(sums, entropy)
    return sums, entropy


def check_values(sums: np.ndarray, entropies: np.ndarray, start: int = 0) -> None:
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
