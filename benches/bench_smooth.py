"""Gaussian smoothing of a batch of attention maps: fastground and what one would write instead.

    python benches/bench_smooth.py

All on one thread, 7 x 7 taps, sigma 1, border reflect101, float32 in and out. Who can write to an
array that is there already does so; a fresh one costs page faults, as the second row shows. The
floor is a copy of the maps.
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


def fastground_into(maps: np.ndarray, out: np.ndarray) -> np.ndarray:
    """fastground.smooth into an array that is there."""
    return fg.smooth(maps, out=out)


def fastground_fresh(maps: np.ndarray, out: np.ndarray) -> np.ndarray:
    """fastground.smooth, which returns a new array."""
    return fg.smooth(maps)


def opencv_per_map(maps: np.ndarray, out: np.ndarray) -> np.ndarray:
    """cv2.GaussianBlur on each map."""
    for cells, smoothed in zip(maps, out, strict=True):
        cv2.GaussianBlur(cells, (7, 7), 1.0, dst=smoothed, borderType=cv2.BORDER_REFLECT_101)
    return out


def scipy_stacked(maps: np.ndarray, out: np.ndarray) -> np.ndarray:
    """scipy.ndimage.gaussian_filter along two axes of the batch."""
    keywords = {"mode": "mirror", "radius": 3, "axes": (1, 2)}
    return scipy.ndimage.gaussian_filter(maps, 1.0, output=out, **keywords)


def torch_conv2d(maps: np.ndarray, out: np.ndarray) -> np.ndarray:
    """One dense convolution, as torchvision does it."""
    padded, weight = _padded(maps)
    return F.conv2d(padded[:, None], weight[None, None])[:, 0].numpy()


def torch_grouped(maps: np.ndarray, out: np.ndarray) -> np.ndarray:
    """One dense convolution with the maps as channels, each its own group."""
    padded, weight = _padded(maps)
    weight = weight.expand(len(maps), 1, 7, 7)
    return F.conv2d(padded[None], weight, groups=len(maps))[0].numpy()


def _padded(maps: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    taps = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)
    taps = taps / taps.sum()
    return F.pad(torch.from_numpy(maps), (3, 3, 3, 3), mode="reflect"), torch.outer(taps, taps)


def memory_copy(maps: np.ndarray, out: np.ndarray) -> np.ndarray:
    """No smoothing, but what must be read and written."""
    np.copyto(out, maps)
    return out


def _alone(call: Callable[..., np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda maps: call(maps, np.empty_like(maps))


CALLS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "fastground": fastground_into,
    "fastground, new array": fastground_fresh,
    "SciPy, one stack": scipy_stacked,
    "OpenCV, per map": opencv_per_map,
    "PyTorch conv2d": torch_conv2d,
    "PyTorch conv2d, groups": torch_grouped,
}
CONTENDERS = {name: _alone(call) for name, call in CALLS.items()}
FLOOR = "floor: a copy of the maps"


def main() -> None:
    options = harness.parser("Smoothing against its peers.")
    options.add_argument("--size", type=int, default=24, help="cells a side")
    given = options.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    for count in (512, 16384):
        maps = map_families.batch("attention", count, given.size)
        out = np.zeros_like(maps)
        truth = scipy_stacked(maps.astype(np.float64), np.empty(maps.shape))
        calls = CALLS if count == 512 else {n: c for n, c in CALLS.items() if n[-6:] != "groups"}
        errors = {
            name: f"{np.abs(call(maps, out) / truth - 1).max():.0e}" for name, call in calls.items()
        }
        rows += harness.compare(
            f"{count} maps",
            {
                name: partial(call, maps, out)
                for name, call in {**calls, FLOOR: memory_copy}.items()
            },
            items=count,
            errors=errors,
            repeats=given.repeats,
            min_time_ms=given.min_time_ms,
        )
    described = f"{given.size} x {given.size} float32, 7 taps, one thread, CPU time, relative error"
    harness.report("smooth", described, rows, save=not given.no_save)


if __name__ == "__main__":
    main()
