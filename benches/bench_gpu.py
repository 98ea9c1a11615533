"""Operations on maps that lie on a GPU, beside a plain copy and what one would write instead.

    python benches/bench_gpu.py

    throughput   a million maps: "of floor" is the share of the copy's bandwidth that is reached,
                 each counted by the bytes that it must read and write
    one call     1,024 maps, one image's heads: from Python until the answer is there; a CUDA graph
    peers        16,384 maps: labels of CuPy and cuCIM, kornia's union-find, the PyTorch reference

All in one run, each contender repeated in a new order. Without a CUDA device nothing is done.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import fastground as fg
import harness
import map_families
import readme_tables
import torch
from fastground import dispatch, reference
from goals import COPIED, CUPY, KORNIA, MAPS, ONE_CALL, REPLAY

MANY, SOME, HEADS = 1 << 20, 1 << 14, 1 << 10
Call = Callable[[], Any]


def batch(family: str, count: int, grid: int = 24, dtype: torch.dtype = torch.float32) -> Any:
    """Maps on the device; 4,096 are drawn, and repeated."""
    some = torch.from_numpy(map_families.batch(family, min(count, 4096), grid)).cuda().to(dtype)
    return some.repeat(-(-count // len(some)), 1, 1)[:count]


def by_cupy(maps: torch.Tensor) -> torch.Tensor:
    """Labels of the batch as one volume without links between maps, then areas and entropies."""
    import cupy
    import cupyx.scipy.ndimage

    structure = cupy.zeros((3, 3, 3))
    structure[1] = 1
    labels, count = cupyx.scipy.ndimage.label(_above(maps), structure)
    return _entropies(labels.reshape(len(maps), -1), count)


def by_cucim(maps: torch.Tensor) -> torch.Tensor:
    """The same by cuCIM, which has no such structures: one tall image, a row empty below each."""
    import cupy
    from cucim.skimage.measure import label

    tall = cupy.pad(_above(maps), ((0, 0), (0, 1), (0, 0))).reshape(-1, maps.shape[-1])
    labels, count = label(tall, connectivity=2, return_num=True)
    return _entropies(labels.reshape(len(maps), -1), count)


def _above(maps: torch.Tensor) -> Any:
    import cupy

    cells = cupy.from_dlpack(maps.detach())
    return cells > cells.mean((1, 2), dtype=cupy.float64)[:, None, None]


def _entropies(labels: Any, count: int) -> torch.Tensor:
    """Of labels 1 to count that rise from map to map, (maps, cells)."""
    import cupy

    areas = cupy.bincount(labels.ravel(), minlength=count + 1)[1:]
    # CuPy has no running maximum; torch's works on the same memory.
    last = torch.from_dlpack(labels.max(1)).cummax(0).values
    owners = cupy.searchsorted(cupy.from_dlpack(last), cupy.arange(1, count + 1))
    total = cupy.bincount(owners, areas, minlength=len(labels))
    sums = cupy.bincount(owners, areas * cupy.log(areas), minlength=len(labels))
    return torch.from_dlpack(cupy.log(total) - sums / total)


def by_kornia(maps: torch.Tensor) -> torch.Tensor:
    """kornia's union-find, then areas and entropies."""
    import kornia

    above = maps.double() > maps.double().mean((1, 2), keepdim=True)
    find = kornia.contrib.connected_components_union_find
    labels = find(above[:, None].float())[:, 0].long().flatten(1)
    labels = labels - labels.amin(1, keepdim=True)
    areas = torch.zeros(len(maps), int(labels.max()) + 1, dtype=torch.float64, device=maps.device)
    areas.scatter_add_(1, labels, above.flatten(1).double())
    return torch.special.entr(areas / areas.sum(1, keepdim=True)).sum(1)


def peers() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Those that are installed."""
    found: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    if importlib.util.find_spec("cupyx"):
        found[CUPY] = by_cupy
        if importlib.util.find_spec("cucim"):
            found["cuCIM, one tall image"] = by_cucim
    if importlib.util.find_spec("kornia"):
        import kornia

        if hasattr(kornia.contrib, "connected_components_union_find"):
            found[KORNIA] = by_kornia
    found["PyTorch (reference)"] = reference.entropy
    return found


def throughput(name: str, maps: torch.Tensor, call: Call, given: Any) -> list[harness.Row]:
    """A call on many maps beside a copy of them; items are what it answers."""
    result = call()
    parts = [result] if isinstance(result, torch.Tensor) else list(result)
    room = torch.empty_like(maps)
    contenders = {"fastground": call, COPIED: lambda: room.copy_(maps)}
    items = max(1, len(parts[0]))
    rows = harness.compare(
        name, contenders, items=items, clock="cuda", errors=checked(name, maps, parts[0]), **given
    )
    ours, copy = rows
    moved = maps.nbytes + sum(part.nbytes for part in parts)
    ours.floor = copy.time_us / ours.time_us * moved / (2 * maps.nbytes)
    copy.floor, copy.error = 1.0, f"{2 * maps.nbytes / items / copy.time_us / 1e3:.0f} GB/s"
    return rows


def checked(name: str, maps: torch.Tensor, result: torch.Tensor) -> dict[str, str]:
    """What the first maps' entropies are off by from the native core's on the CPU."""
    if not name.startswith("entropy"):
        return {}
    expected = fg.entropy(maps[:4096].cpu())
    wrong = int((result[:4096].cpu() != expected).sum())
    return {"fastground": f"{wrong} of {len(expected)} differ"}


def many(given: Any) -> Iterator[list[harness.Row]]:
    """First what goals are about."""
    quiet = {"nan": "propagate"}
    maps = batch("attention", MANY)
    yield throughput("entropy, attention", maps, partial(fg.entropy, maps, **quiet), given)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        other = maps.to(dtype)
        name = f"entropy, {str(dtype).removeprefix('torch.')}"
        yield throughput(name, other, partial(fg.entropy, other, **quiet), given)
    yield throughput("smooth", maps, partial(fg.smooth, maps, **quiet), given)
    groups = maps[: MANY // 3 * 3].unflatten(0, (-1, 3))
    yield throughput("boxes, k = 3", groups, partial(fg.boxes, groups, **quiet), given)
    yield throughput("attention_sum", maps, partial(fg.attention_sum, maps, **quiet), given)
    yield throughput("binarize", maps, partial(fg.binarize, maps, **quiet), given)
    yield throughput(
        "label", maps[: MANY // 4], partial(fg.label, maps[: MANY // 4], **quiet), given
    )
    for family in ("noise", "blob", "speckle"):
        maps = batch(family, MANY)
        yield throughput(f"entropy, {family}", maps, partial(fg.entropy, maps, **quiet), given)
    for grid, count in ((14, MANY), (27, MANY), (32, MANY // 2), (64, MANY // 8)):
        maps = batch("attention", count, grid)
        name = f"entropy, {grid} x {grid}"
        yield throughput(name, maps, partial(fg.entropy, maps, **quiet), given)


def one_call(given: Any) -> Iterator[list[harness.Row]]:
    """Microseconds of a call, waited for."""
    maps = batch("attention", HEADS)
    groups = maps[: HEADS // 3 * 3].unflatten(0, (-1, 3))
    calls: dict[str, Call] = {
        "entropy": partial(fg.entropy, maps, nan="propagate"),
        "smooth": partial(fg.smooth, maps, nan="propagate"),
        "boxes, k = 3": partial(fg.boxes, groups, nan="propagate"),
    }
    for name, call in calls.items():
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        contenders = {ONE_CALL: waited(call), "one after another": call}
        contenders |= {REPLAY: waited(graph.replay), "graph": graph.replay}
        yield harness.compare(f"{name}, 1,024 maps", contenders, items=1, clock="cuda", **given)


def waited(call: Call) -> Call:
    """The call, and then the device."""

    def both() -> None:
        call()
        torch.cuda.synchronize()

    return both


def beside_peers(given: Any) -> Iterator[list[harness.Row]]:
    maps = batch("attention", SOME)
    truth = fg.entropy(maps.cpu()).double()
    contenders, errors = {"fastground": partial(fg.entropy, maps, nan="propagate")}, {}
    for name, peer in peers().items():
        try:
            off = (peer(maps).cpu().double() - truth).abs().max()
        except Exception as error:  # a peer of another version must not end the run
            print(f"{name} left out: {type(error).__name__}: {error}")
            continue
        contenders[name], errors[name] = partial(peer, maps), f"{off:.0e}"
    yield harness.compare(MAPS, contenders, items=len(maps), errors=errors, clock="cuda", **given)


def main() -> None:
    options = harness.parser("Operations on maps that lie on a GPU.").parse_args()
    if not torch.cuda.is_available() or dispatch.cuda_core is None:
        print("bench_gpu: no CUDA device here, or a build without CUDA kernels: nothing to measure")
        return
    given = harness.sampling(options)
    failed = []
    for name, described, measure in (
        ("gpu-call", "1,024 maps of 24 x 24 float32, microseconds a call", one_call),
        ("gpu", "a million maps of 24 x 24 float32 unless said; share of a copy's bandwidth", many),
        ("gpu-peers", "16,384 attention maps of 24 x 24 float32", beside_peers),
    ):
        try:
            rows = harness.kept(name, described, measure(given), save=not options.no_save)
        except Exception:  # must not keep the others from being measured
            traceback.print_exc()
            failed.append(name)
            continue
        harness.report(name, described, rows, save=not options.no_save)
        readme_tables.print_goals({name: {"rows": [vars(row) for row in rows]}}, only=name)
    if failed:
        sys.exit(f"bench_gpu: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
