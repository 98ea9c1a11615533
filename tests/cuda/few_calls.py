"""Small calls of every CUDA kernel, for compute-sanitizer: .ci/gpu-check.

compute-sanitizer --tool memcheck | racecheck python tests/cuda/few_calls.py

Without a GPU test_cuda_races.py makes them.
"""

from collections.abc import Iterator

import torch
from fastground import Recipe, ops

GRIDS = [(24, 24), (33, 20), (3, 70), (14, 14), (27, 30), (1, 1)]
LARGE = [(66, 66), (130, 130)]
"""Rows of one word and of four, in shared memory and not."""

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def calls(of, device: str, few: int, counts: tuple[int, int]) -> Iterator[None]:
    """Calls every operation of `ops`, or of `gpu`; some of them before each step.

    Every place in the kernels is reached early: test_cuda_races.py stops at the first race.

    Args:
        of: where the operations are.
        device: where they get their maps.
        few: maps of each grid, a multiple of 3; three of a large one.
        counts: maps of which a warp loads four, and 32, one after another.
    """
    torch.manual_seed(0)
    for grid in GRIDS:
        for dtype in DTYPES:
            yield from _of_each_kind(of, torch.rand(few, *grid).pow(3).to(device, dtype))
            yield from _of_groups(of, torch.rand(few, *grid).pow(3).to(device, dtype))
    for count in counts:
        many = count > 10_000
        for side in (8, 20, 24, 32):
            for dtype in DTYPES[:: 2 if many else 1]:
                some = torch.rand(count, side, side).to(device, dtype)
                of.head_stats(some)
                if not many:
                    of.combine(some[:, None], recipe=Recipe())
                    of.boxes(some[:, None], recipe=Recipe())
                yield
    for grid in LARGE:
        for dtype in DTYPES[:2]:
            yield from _of_each_kind(of, torch.rand(3, *grid).pow(3).to(device, dtype))


def _of_each_kind(of, maps: torch.Tensor) -> Iterator[None]:
    n, h, w = maps.shape
    odd = torch.rand(n, h * w + 1).to(maps)[:, 1:].unflatten(1, (h, w))
    for some in (maps, maps[:3], odd):  # in which no vector of cells is aligned
        of.head_stats(some)
        of.label(some)
        of.combine(some[:, None], recipe=Recipe())
        of.combine(some[:, None], recipe=Recipe(kernel_size=15, border="reflect"))
        of.boxes(some[:, None], recipe=Recipe())
        yield
    of.attention_sum(maps)
    of.label(of.binarize(maps))
    of.head_stats(maps, weight="mass", cut="2mean+eps")
    yield


def _of_groups(of, maps: torch.Tensor) -> Iterator[None]:
    valid = (torch.rand(maps.shape[1:]) > 0.2).to(maps.device)
    groups = maps.unflatten(0, (-1, 3))
    huge = groups * (1 if maps.dtype == torch.float16 else 1e25)  # on the way beyond float32
    dots = (groups[:, :1] < 1e-4).to(maps.dtype)  # many regions, several of them the largest
    of.combine(huge, recipe=Recipe())
    for region in ("hull", "component", "mass", "all"):
        of.boxes(groups, recipe=Recipe(region=region), valid=valid)
        of.boxes(huge, recipe=Recipe(region=region))
        of.boxes(dots, recipe=Recipe(region=region, sigma=0.3))
        yield


def main() -> None:
    for _ in calls(ops, "cuda", 36, (2_500, 16_500)):
        pass
    torch.cuda.synchronize()
    print("every kernel was called")


if __name__ == "__main__":
    main()
