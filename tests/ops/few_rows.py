"""Small calls of the Triton kernels, for compute-sanitizer: .ci/gpu-check.

compute-sanitizer --tool memcheck | racecheck python tests/ops/few_rows.py

Run it once without, so that what Triton compiles is kept: under the sanitizer that takes minutes.
"""

import attention_rows_cases as cases
import torch
from fastground import ops


def calls():
    """(query, key, keywords): each way through `_logits`, and both ends of `_weights`."""
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float32):
        # A row of one layer; its keys end inside of a tile.
        yield torch.randn(2, 1, 4, 64, dtype=dtype), torch.randn(2, 4, 70, 64, dtype=dtype), {}
        # Of some of its heads.
        one = torch.randn(1, 2, 4, 64, dtype=dtype), torch.randn(1, 2, 70, 64, dtype=dtype)
        yield *one, {"heads": [3, 0]}
        # Layers of their own strides, heads in groups, tokens told and summed.
        keys = [
            cases.laid(torch.randn(1, 2, 130, 80, dtype=dtype), "slices, one turned", layer)
            for layer in range(3)
        ]
        asking = [torch.randn(1, 2, 4, 80, dtype=dtype) for _ in keys]
        yield asking, keys, {"tokens": range(9, 100, 2), "heads": [(2, 3), (0, 1), (2, 0)]}
        # Pages, of which one is not there, and more rows than one tile has.
        table = torch.tensor([[3, 0, 2, 1], [1, 4, -1, 0]])
        visible = torch.rand(2, 40, 64) > 0.3
        keywords = {"block_table": table, "visible": visible, "softcap": 5.0}
        keywords |= {"phrases": [[0, 3], [3, 40], [7, 7]], "tokens": [[5, 63, -1], [0, 1, 2]]}
        yield (
            torch.randn(2, 40, 4, 64, dtype=dtype),
            torch.randn(5, 2, 16, 64, dtype=dtype),
            keywords,
        )
    yield torch.randn(1, 1, 4, 64), torch.randn(1, 2, 70, 64, dtype=torch.bfloat16), {}


def on(device, value):
    """The same with its tensors, and those of lists of tensors, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list) and isinstance(value[0], torch.Tensor):
        return [each.to(device) for each in value]
    return value


def main(device: str) -> None:
    for query, key, keywords in calls():
        want = ops.attention_rows(query, key, **keywords)
        moved = {name: on(device, value) for name, value in keywords.items()}
        found = ops.attention_rows(on(device, query), on(device, key), **moved)
        assert cases.off(found, want) < 1e-5
    print("every kind of call was made")


if __name__ == "__main__":
    main("cuda")
