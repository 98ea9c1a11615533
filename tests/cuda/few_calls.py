"""One small call of every CUDA kernel, for compute-sanitizer: .ci/gpu-check.

compute-sanitizer --tool memcheck | racecheck python tests/cuda/few_calls.py
"""

import fastground as fg
import torch
from fastground import ops

GRIDS = [(24, 24), (14, 14), (27, 30), (1, 1), (33, 20), (3, 70), (80, 80)]
"""Rows of one word and of four, in shared memory and not."""


def main() -> None:
    for h, w in GRIDS:
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            maps = torch.rand(36, h, w).pow(3).to(dtype).cuda()
            valid = torch.rand(h, w) > 0.2
            fg.head_stats(maps)
            fg.head_stats(maps, weight="mass", cut="2mean+eps")
            fg.attention_sum(maps)
            fg.label(maps)
            fg.label(fg.binarize(maps))
            groups = maps.unflatten(0, (-1, 3))
            ops.combine(groups, recipe=fg.Recipe(kernel_size=15, border="reflect"))
            for region in ("hull", "component", "mass", "all"):
                fg.boxes(groups, recipe=fg.Recipe(region=region), valid=valid)
    for count in (2_500, 16_500):  # four maps, and 32, to a warp
        for side in (8, 20, 24, 32):
            fg.entropy(torch.rand(count, side, side).cuda())
    torch.cuda.synchronize()
    print("every kernel was called")


if __name__ == "__main__":
    main()
