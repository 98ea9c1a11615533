"""Gaussian smoothing of a batch of attention maps: fastground and what one would write instead.

    python benches/bench_smooth.py

All on one thread, 7 x 7 taps, sigma 1, border reflect101, float32 in and out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import fastground as fg
import harness
import map_families
import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F


def opencv_per_map(maps: np.ndarray) -> np.ndarray:
    """cv2.GaussianBlur on each map."""
    result = np.empty_like(maps)
    for cells, out in zip(maps, result, strict=True):
        cv2.GaussianBlur(cells, (7, 7), 1.0, dst=out, borderType=cv2.BORDER_REFLECT_101)
    return result


def scipy_stacked(maps: np.ndarray) -> np.ndarray:
    """scipy.ndimage.gaussian_filter along two axes of the batch."""
    return scipy.ndimage.gaussian_filter(maps, 1.0, mode="mirror", radius=3, axes=(1, 2))


def torch_conv2d(maps: np.ndarray) -> np.ndarray:
    """One dense convolution, as torchvision does it."""
    taps = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)
    taps = taps / taps.sum()
    padded = F.pad(torch.from_numpy(maps)[:, None], (3, 3, 3, 3), mode="reflect")
    return F.conv2d(padded, torch.outer(taps, taps)[None, None])[:, 0].numpy()


CONTENDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fastground": fg.smooth,
    "SciPy, one stack": scipy_stacked,
    "OpenCV, per map": opencv_per_map,
    "PyTorch conv2d": torch_conv2d,
}


def main() -> None:
    options = harness.parser("Smoothing against its peers.")
    options.add_argument("--size", type=int, default=24, help="cells a side")
    given = options.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    for count in (512, 4096):
        maps = map_families.batch("attention", count, given.size)
        truth = scipy_stacked(maps.astype(np.float64))
        errors = {
            name: f"{np.abs(call(maps) / truth - 1).max():.0e}" for name, call in CONTENDERS.items()
        }
        rows += harness.compare(
            f"{count} maps",
            {name: partial(call, maps) for name, call in CONTENDERS.items()},
            items=count,
            errors=errors,
            repeats=given.repeats,
            min_time_ms=given.min_time_ms,
        )
    described = f"{given.size} x {given.size} float32, 7 taps, one thread, CPU time, relative error"
    harness.report("smooth", described, rows, save=not given.no_save)


if __name__ == "__main__":
    main()
