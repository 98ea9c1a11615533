"""The threshold of the attention sums: where the heads' sorted curve bends upward.

                              /
    attention sum            /      few heads look at the image a lot,
                         _ /        most of them a little;
          __________---` ^          the bend parts them
                         tau

Source: Kang et al., CVPR 2025 (arXiv 2503.06287), section 3.
"""

from __future__ import annotations

import numpy as np


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
    curve = np.sort(sums, axis=-1).astype(np.float64)
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
    best = (bend >= (1 - 1e-9) * bend.max(axis=-1, keepdims=True)).argmax(axis=-1)
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
