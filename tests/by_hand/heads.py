"""Maps -> their numbers; many samples' numbers -> heads, under one choice or others."""

import math

import numpy as np
import scipy.ndimage
import scipy.stats

from by_hand.look import inside, on_grid

EPS = 1e-3


def regions(mask):
    """8-connected regions in raster order of their first cells."""
    labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
    return sorted((labels == i + 1 for i in range(count)), key=lambda part: part.argmax())


def entropy(cells, recipe):
    if recipe.bottom_row is not None and cells[-1].max() > recipe.bottom_row:
        return math.inf
    mean = cells.mean()
    level = {"mean": mean, "mean+eps": mean + EPS, "2mean+eps": 2 * mean + EPS}[recipe.cut]
    parts = regions(cells > level)
    if not parts:
        return math.inf if recipe.empty == "inf" else 0.0
    over = np.ones_like(cells) if recipe.weight == "area" else cells - mean
    p = np.array([over[part].sum() for part in parts])
    p /= p.sum()
    return -float((p * np.log(p)).sum())


def statistics(view, recipe):
    """(layers, heads) each: attention sums and spatial entropies."""
    maps, sums = view.maps, view.sums
    if recipe.padding_stats == "exclude":
        valid = inside(view.place, maps.shape[2:])
        sums = sums - maps[..., ~valid].sum(-1)
        maps = maps[..., valid.any(1), :][..., valid.any(0)]
    return sums, np.array([[entropy(cells, recipe) for cells in layer] for layer in maps])


def ious(view, mask, ignore, recipe):
    """(layers, heads): of each binarized map, resized to the mask, with the mask."""
    valid = np.ones(view.maps.shape[2:], bool)
    if recipe.padding_stats == "exclude":
        valid = inside(view.place, valid.shape)
    counts = np.ones_like(mask) if ignore is None else ~ignore
    grid = view.maps.shape[2:]
    rows, columns = (np.floor(c).astype(int) for c in on_grid(view.place))
    out = np.zeros(view.maps.shape[:2])
    for head in np.ndindex(out.shape):
        cells = view.maps[head]
        mean = cells[valid].mean()
        level = {"mean": mean, "mean+eps": mean + EPS, "2mean+eps": 2 * mean + EPS}[recipe.cut]
        large = np.pad(valid & (cells > level), 1)[
            np.ix_(np.clip(rows, -1, grid[0]) + 1, np.clip(columns, -1, grid[1]) + 1)
        ]
        out[head] = (large & mask & counts).sum() / max(((large | mask) & counts).sum(), 1)
    return out


def elbow(values, method):
    if not isinstance(method, str):
        return method
    curve = np.sort(np.ravel(values))
    if np.ptp(curve) == 0:
        return curve[0]
    place, height = np.linspace(0, 1, len(curve)), (curve - curve[0]) / np.ptp(curve)
    if method == "chord":
        bend = place - height
    else:
        sigma = max(1.0, len(curve) / 32)
        reach = min(len(curve) - 1, round(4 * sigma))
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        longer = np.pad(height, reach, "reflect", reflect_type="odd")
        slope = np.gradient(np.convolve(longer, taps / taps.sum(), "valid"), place)
        bend = np.gradient(slope, place) / (1 + slope**2) ** 1.5
    if bend.max() <= 1e-12:
        return curve[0]
    return curve[np.flatnonzero(bend > bend.max() - 1e-9)[0]]  # of equals the lowest


def kept(sums, recipe):
    """(layers, heads) bool: criterion 1, of one sample's sums or of the mean."""
    passed = np.ones(sums.shape, bool)
    if recipe.criteria == "both":
        passed = sums >= elbow(sums, recipe.elbow)
    passed[: recipe.skip_layers] = False
    return passed


def elect(sums, entropies, passed, recipe):
    """All heads that a sample may elect, best first, and what each is judged by."""
    value = -sums if recipe.criteria == "attention_sum" else entropies
    heads = [h for h in np.ndindex(sums.shape) if passed[h] and np.isfinite(value[h])]
    return sorted(heads, key=lambda h: (value[h], -sums[h], h)), value


def ranking(sums, entropies, recipe):
    """Of a table (samples, layers, heads): heads best first, how often each is elected, ties."""
    mean = sums.mean(0)
    votes, ties = np.zeros(mean.shape), 0
    for s, e in zip(sums, entropies, strict=True):
        heads, value = elect(s, e, kept(mean if recipe.scope == "mean" else s, recipe), recipe)
        for head in heads[: recipe.top_n]:
            votes[head] += 1
        border = [value[h] for h in heads[recipe.top_n - 1 : recipe.top_n + 1]]
        ties += len(border) == 2 and border[0] == border[1]
    by = mean if recipe.criteria == "attention_sum" else votes
    order = sorted(
        (h for h in np.ndindex(mean.shape) if mean[h] > 0),
        key=lambda h: (h[0] < recipe.skip_layers, -by[h], -mean[h], h),
    )
    return order, votes / len(sums), ties


def own_heads(sums, entropies, mean, recipe):
    """A sample's own k heads; where too few pass, those with the largest attention sum follow."""
    passed = kept(mean if recipe.scope == "mean" else sums, recipe)
    heads, _ = elect(sums, entropies, passed, recipe)
    rest = [h for h in np.ndindex(sums.shape) if h not in heads]
    rest.sort(key=lambda h: (h[0] < recipe.skip_layers, -sums[h], h))
    return (heads + rest)[: recipe.k]


# Other choices from the same table.


def choice(sums, entropies, ious, recipe, best):
    """What one recipe chooses, by the names that fastground gives it; `best`: the ranking's k."""
    order, frequency, _ = ranking(sums, entropies, recipe)
    by_sum = recipe.criteria == "attention_sum"
    heads = [h for h in order[: recipe.k] if by_sum or frequency[h] > 0]
    mean = sums.mean(0)
    passed = [kept(mean if recipe.scope == "mean" else s, recipe) for s in sums]
    own = [
        elect(s, e, of, recipe)[0][: recipe.k]
        for s, e, of in zip(sums, entropies, passed, strict=True)
    ]
    each = [ious[(i, *h)] for i, of in enumerate(own) for h in of]
    known = ~np.isnan(ious[:, 0, 0])
    return {
        "heads": heads,
        "shared": len(set(heads) & set(best)),
        "kept": np.any(passed, 0).sum(),
        "iou": np.mean([ious[(known, *h)].mean() for h in heads]) if heads else math.nan,
        "own_shared": np.mean([h in heads for of in own for h in of]) if each else 0.0,
        "own_iou": np.nanmean(each) if each else math.nan,
    }


def surenesses(sums, entropies, images, recipe, draws, seed):
    """How often each head is among the first k, and of its frequency the middle 95 %.

    Each image is drawn a Poisson-distributed number of times; the heads that pass stay.
    """
    rng, mean = np.random.default_rng(seed), sums.mean(0)
    passed = [kept(mean if recipe.scope == "mean" else s, recipe) for s in sums]
    votes = np.zeros(sums.shape)
    for i, (s, e) in enumerate(zip(sums, entropies, strict=True)):
        for head in elect(s, e, passed[i], recipe)[0][: recipe.top_n]:
            votes[(i, *head)] = 1
    able = (
        passed[0] if recipe.scope == "mean" else np.arange(len(mean))[:, None] >= recipe.skip_layers
    )
    able = [h for h in np.ndindex(mean.shape) if np.broadcast_to(able, mean.shape)[h]]
    tops, shares = np.zeros(mean.shape), []
    for _ in range(draws):
        times = rng.poisson(1, images.max() + 1)[images]
        share, sum_ = (np.tensordot(times, a, 1) / max(times.sum(), 1) for a in (votes, sums))
        by = sum_ if recipe.criteria == "attention_sum" else share
        for head in sorted(able, key=lambda h: (-by[h], -sum_[h], h))[: recipe.k]:
            tops[head] += 1
        shares.append(share)
    return tops / draws, np.quantile(shares, [0.025, 0.975], axis=0)


def rho(sums, entropies, ious, recipe):
    """Spearman's, of frequency and mean IoU over the heads elected in 1 % of samples."""
    _, frequency, _ = ranking(sums, entropies, recipe)
    often = frequency >= 0.01
    if often.sum() < 2 or np.ptp(frequency[often]) == 0:
        return math.nan, often.sum()
    return scipy.stats.spearmanr(
        frequency[often], np.nanmean(ious, 0)[often]
    ).statistic, often.sum()
