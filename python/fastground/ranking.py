"""Many samples' two numbers a head -> the heads ranked by selection frequency.

    attention sums (N, L, H) --mean, sort--> curve --elbow--> tau --> kept heads
    entropies      (N, L, H) --kept, finite, top_n lowest a sample--> elected heads
    share of samples that elected a head = its selection frequency; rank by it

Everything is float64 NumPy on two arrays, so a whole ablation takes milliseconds. A head whose sum
is 0 in every sample does not see the image at all: there is none in its layer (hybrid models), or
a window ends before it. It is on no curve, in no ranking, and never elected.

Source: Kang et al., CVPR 2025 (arXiv 2503.06287), section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastground.types import HeadId, HeadRanking, RankedHead, Recipe

ROWS = 4096  # samples worked on at once: 32 MB of float64 at 1,024 heads


def elbow(sums: np.ndarray, method: str | float = "chord") -> np.ndarray:
    """The attention sum at which the ascending curve of the heads bends upward.

    Args:
        sums: (..., heads) finite attention sums, in any order.
        method: "chord": the value lying farthest below the straight line from the lowest to the
            highest; the stable estimator of maximum curvature. "curvature": the value at the
            largest curvature of the curve after both axes are scaled to [0, 1] and the values are
            smoothed by a Gaussian of heads / 32 places (at least one), the curve continued beyond
            its ends by point reflection; shaky below some hundred heads. A number: that number.

    Returns:
        (...) float64. Where no value lies below the chord (or the curve bends nowhere upward) the
        lowest: every head passes. Equal candidates: the lower value.

    Raises:
        ValueError: no head, a value that is not finite, or an unknown method.
    """
    curve = np.sort(np.asarray(sums, dtype=np.float64), axis=-1)
    if curve.ndim == 0 or curve.shape[-1] == 0 or not np.isfinite(curve).all():
        raise ValueError(
            "sums must be (..., heads) finite numbers, at least one head, but got shape "
            f"{curve.shape}; leave out samples with NaN"
        )
    if not isinstance(method, str):
        return np.full(curve.shape[:-1], float(method))
    if method not in ("chord", "curvature"):
        raise ValueError(f"method must be chord, curvature or a number, but got {method!r}")
    low, span = curve[..., :1], curve[..., -1:] - curve[..., :1]
    height = (curve - low) / np.where(span > 0, span, 1)
    place = np.linspace(0, 1, curve.shape[-1])
    bend = np.where(span > 0, place - height, 0) if method == "chord" else _curvature(height)
    bend = np.where(bend > 1e-12, bend, 0)  # rounding makes no elbow
    best = bend.argmax(axis=-1)
    return np.take_along_axis(curve, best[..., None], axis=-1)[..., 0]


def _curvature(height: np.ndarray) -> np.ndarray:
    """Signed curvature of curves (..., n) over [0, 1], positive where they bend upward."""
    n = height.shape[-1]
    if n < 3:
        return np.zeros_like(height)
    sigma = max(1.0, n / 32)
    reach = min(n - 1, int(4 * sigma + 0.5))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    before = 2 * height[..., :1] - height[..., reach:0:-1]
    after = 2 * height[..., -1:] - height[..., -2 : -2 - reach : -1]
    longer = np.concatenate([before, height, after], axis=-1)
    windows = np.lib.stride_tricks.sliding_window_view(longer, 2 * reach + 1, axis=-1)
    smooth = windows @ (taps / taps.sum())
    slope = np.gradient(smooth, 1 / (n - 1), axis=-1)
    return np.gradient(slope, 1 / (n - 1), axis=-1) / (1 + slope**2) ** 1.5


def kept_heads(
    attention_sums: np.ndarray, recipe: Recipe, *, tau: float | None = None
) -> np.ndarray:
    """Which heads pass the first criterion, the first `skip_layers` layers left out.

    Args:
        attention_sums: (L, H) means over the samples, or (N, L, H) of each sample.
        recipe: its elbow, criteria and skip_layers.
        tau: the threshold, where it is known already; else the elbow of the last two dimensions,
            so each sample's own for (N, L, H).

    Returns:
        Bool of the same shape. With criteria "entropy" or "attention_sum" no head falls to tau.
        A head that never sees the image is not kept, nor on the curve whose elbow is tau.

    Raises:
        ValueError: sums that are not finite.
    """
    sums = np.asarray(attention_sums, dtype=np.float64)
    kept = np.zeros(sums.shape, dtype=bool)
    kept[..., recipe.skip_layers :, :] = True
    seeing = _seeing(sums)
    if recipe.criteria == "both":
        if tau is None:
            curve = sums[..., seeing] if seeing.any() else sums.reshape(*sums.shape[:-2], -1)
            kept &= sums >= elbow(curve, recipe.elbow)[..., None, None]
        else:
            kept &= sums >= tau
    return kept & seeing


def _seeing(sums: np.ndarray) -> np.ndarray:
    """(L, H) bool: the heads with any attention on the image in (L, H) or (N, L, H) sums."""
    return (sums != 0).reshape(-1, *sums.shape[-2:]).any(axis=0)


def elect(values: np.ndarray, sums: np.ndarray, top_n: int) -> tuple[np.ndarray, np.ndarray]:
    """The `top_n` heads of lowest finite value in every sample.

    Args:
        values: (N, heads) entropies, +inf where a head may not be elected.
        sums: (N, heads) attention sums; equal values go to the higher sum, then to the head first
            in order.
        top_n: heads a sample elects; fewer where fewer are finite.

    Returns:
        (N, heads) bool, and (N,) bool: whether the last elected value was shared with a head left
        out.
    """
    count = values.shape[1]
    finite = np.isfinite(values)
    if top_n >= count:
        return finite, np.zeros(len(values), dtype=bool)
    border = np.partition(values, top_n - 1, axis=1)[:, top_n - 1 : top_n]
    elected = (values < border) & finite
    level = (values == border) & finite
    room = top_n - elected.sum(axis=1)
    tied = level.sum(axis=1) > room
    elected[~tied] |= level[~tied]
    for row in np.flatnonzero(tied):
        at = np.flatnonzero(level[row])
        order = np.argsort(-sums[row, at], kind="stable")
        elected[row, at[order[: room[row]]]] = True
    return elected, tied


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
    checkpoint: str = "",
    architecture: dict[str, Any] | None = None,
    dataset: str = "",
    split: str = "",
    versions: dict[str, str] | None = None,
) -> HeadRanking:
    """All heads that see the image by selection frequency, best first.

    The order is: heads that may be chosen before those of the skipped layers, then frequency, then
    mean attention sum, then (layer, head); with criteria "attention_sum" the mean attention sum
    decides, and the frequency says how often a head was among the `top_n` highest.

    Args:
        attention_sums: (N, L, H) in [0, 1].
        entropies: (N, L, H) nats, +inf where a map is empty.
        recipe: elbow, scope, criteria, skip_layers, top_n and k are read here.
        trials: random disjoint parts of equal size, N // trials samples each, on which the whole
            procedure is repeated for the spread; the ranking itself is over all N. With 5,000
            samples and five trials a part is the paper's random set of 1,000.
        seed: of the parts.
        checkpoint, architecture, dataset, split, versions: where the numbers come from; kept.

    Returns:
        The ranking; `frequency_std` is the sample standard deviation over the trials (0 for one).

    Raises:
        ValueError: wrong shapes, NaN, no samples, fewer samples than trials, or a recipe under
            which no sample elects any head.
    """
    sums, entropy = _checked(attention_sums, entropies)
    n, layers, heads = sums.shape
    if not 1 <= trials <= n:
        raise ValueError(f"trials must be 1 to the {n} samples given, but got {trials}")
    everything = _Tally(sums, entropy, recipe, np.arange(n))
    if not everything.frequency.any():
        raise ValueError(
            f"recipe must leave heads to elect, but in the {max(0, layers - recipe.skip_layers)} "
            f"of {layers} layers behind skip_layers={recipe.skip_layers} no head has an attention "
            f"sum of at least {everything.tau:.3g} and a finite entropy; lower skip_layers or elbow"
        )
    shuffled = np.random.default_rng(seed).permutation(n)
    size = n // trials
    parts = [
        _Tally(sums, entropy, recipe, np.sort(shuffled[i * size : (i + 1) * size]))
        for i in range(trials)
    ]
    spread = np.zeros(layers * heads)
    if trials > 1:
        spread = np.std([part.frequency for part in parts], axis=0, ddof=1)
    finite = np.isfinite(entropy)
    seen = finite.sum(axis=0)
    total = np.sum(entropy, axis=0, dtype=np.float64, where=finite)
    entropy_mean = np.where(seen > 0, total / np.maximum(seen, 1), np.inf).reshape(-1)

    def head(place: int) -> HeadId:
        return HeadId(int(place) // heads, int(place) % heads)

    return HeadRanking(
        heads=tuple(
            RankedHead(
                head=head(i),
                frequency=float(everything.frequency[i]),
                frequency_std=float(spread[i]),
                attention_sum=float(everything.mean[i]),
                entropy=float(entropy_mean[i]),
            )
            for i in everything.order
        ),
        tau=everything.tau,
        curve=tuple(float(v) for v in everything.curve),
        num_samples=n,
        trials=tuple(tuple(head(i) for i in part.order[: recipe.k]) for part in parts),
        recipe=recipe,
        checkpoint=checkpoint,
        architecture=dict(architecture or {}),
        dataset=dataset,
        split=split,
        versions=dict(versions or {}),
        ties=everything.ties,
    )


class _Tally:
    """The procedure on some of the samples: tau, kept heads, elections, frequencies, order."""

    def __init__(
        self, sums: np.ndarray, entropy: np.ndarray, recipe: Recipe, samples: np.ndarray
    ) -> None:
        layers, heads = sums.shape[1:]
        total = np.zeros(layers * heads)
        for start in range(0, len(samples), ROWS):
            chunk = sums[samples[start : start + ROWS]]
            total += chunk.sum(axis=0, dtype=np.float64).reshape(-1)
        self.mean = total / len(samples)
        seeing = self.mean != 0
        self.curve = np.sort(self.mean[seeing] if seeing.any() else self.mean)
        self.tau = float(elbow(self.curve, recipe.elbow))
        mean_kept = kept_heads(self.mean.reshape(layers, heads), recipe, tau=self.tau)
        votes = np.zeros(layers * heads, dtype=np.int64)
        self.ties = 0
        for start in range(0, len(samples), ROWS):
            at = samples[start : start + ROWS]
            some = np.asarray(sums[at], dtype=np.float64)
            kept = mean_kept if recipe.scope == "mean" else kept_heads(some, recipe)
            value = -some if recipe.criteria == "attention_sum" else entropy[at]
            value = np.where(kept, value, np.inf).reshape(len(at), -1)
            elected, tied = elect(value, some.reshape(len(at), -1), recipe.top_n)
            votes += elected.sum(axis=0)
            self.ties += int(tied.sum())
        self.frequency = votes / len(samples)
        barred = np.arange(layers * heads) // heads < recipe.skip_layers
        first = -self.mean if recipe.criteria == "attention_sum" else -self.frequency
        order = np.lexsort((-self.mean, first, barred))
        self.order = order[seeing[order]]


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
    for name, array, bad in (
        ("attention_sums", sums, ~np.isfinite(sums)),
        ("entropies", entropy, np.isnan(entropy) | np.isneginf(entropy)),
    ):
        if bad.any():
            sample, layer, head = np.argwhere(bad)[0]
            raise ValueError(
                f"{name} must be finite, but sample {sample} has {array[sample, layer, head]} at "
                f"{HeadId(layer, head)}; leave out samples whose maps hold NaN"
            )
    return sums, entropy
